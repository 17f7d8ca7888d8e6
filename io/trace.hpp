// Spans of time on this rank, written to its HDF5 file at the end of every step.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/backend.hpp"
#include "io/trace_records.hpp"
#include "mpi/comm.hpp"

namespace cpstep {

/// Attributes and shards a rank file is born with.
struct RankFileInfo {
    int rank = 0;
    int world = 1;
    std::string host;
    std::string run_id;
    std::int64_t epoch_ns = 0;       ///< steady clock value that is time 0
    std::int64_t epoch_unix_ns = 0;  ///< the same moment in Unix time
};

/// A dataset of /tensors, sized before the first step (SWMR allows no new objects) and filled
/// later.
struct ShardSpec {
    std::string path;  ///< below /tensors, e.g. "cp2/log_probs"
    std::int64_t rows = 0;
    std::string units;
};

/// Where the rows of a variant's shards belong in the gathered arrays; known before the first step.
struct ShardIndex {
    std::string path;
    std::vector<std::int64_t> rows;
};

class Trace;

/// Ends its span when destroyed, unless an exception unwinds.
class Span {
  public:
    Span(Trace* trace, SpanKind kind, std::string_view name);
    Span(Span const&) = delete;
    Span& operator=(Span const&) = delete;
    ~Span() noexcept(false);

  private:
    Trace* trace_;
    SpanKind kind_;
    std::uint32_t name_ = 0;
    Mark begin_ = 0;
};

/// Collects spans and communication records of one rank, as moments on the backend's queues: on a
/// GPU a span lasts as long as the work queued in it. A communication call gives two events: comm
/// on stream 1 (posted to done) and wait on stream 0 (time the rank stood waiting). Spans are NVTX
/// ranges of the same names too.
/// DIR/ranks/000/rank00000.h5: /events /names /steps /tensors, SWMR, flushed per step: readable
/// after kill -9.
class Trace final : public CommObserver {
  public:
    /// Without a file: spans are kept for the summary only.
    Trace() = default;
    Trace(std::filesystem::path const& output, RankFileInfo const& info,
          std::vector<ShardSpec> const& shards, std::vector<ShardIndex> const& indices);

    /// Times are marks of this backend from now on; it must outlive the trace or the next call.
    void set_backend(Backend* backend) { backend_ = backend; }

    Span span(SpanKind kind, std::string_view name) { return {this, kind, name}; }
    void on_comm(CommRecord const& record) override;
    bool wants_times() const override { return in_step_ && detail_ != TraceDetail::off; }

    /// Steps are numbered from 0; `variant` and `block` are stored in /steps.
    void begin_step(std::string_view variant, TraceDetail detail = TraceDetail::layers,
                    int block = -1);
    /// Writes and flushes the step's events; outside timed code.
    void end_step();
    void write_shard(std::string const& path, std::span<float const> data);
    void close();

    /// Events of the last finished step.
    std::vector<Event> const& last_step() const { return last_step_; }
    std::vector<std::string> const& names() const { return names_; }
    std::int64_t event_count() const { return event_count_; }

  private:
    friend class Span;
    bool keeps(SpanKind kind, std::string_view name) const;
    std::uint32_t name_id(std::string_view name);
    Mark mark() { return backend_ != nullptr ? backend_->mark(Queue::compute) : now_ns(); }
    void add(SpanKind kind, std::int16_t stream, std::uint32_t name, Mark begin, Mark end,
             std::uint64_t bytes, std::int32_t peer);
    void resolve_marks();

    Backend* backend_ = nullptr;
    std::unique_ptr<H5File> file_;
    RankFileInfo info_;
    std::vector<std::string> names_;
    std::size_t names_written_ = 0;
    std::vector<Event> events_, last_step_;  // of the step at hand: marks in place of times
    std::uint32_t step_ = 0;
    bool in_step_ = false;  // outside of steps nothing is kept
    TraceDetail detail_ = TraceDetail::layers;
    int block_ = -1;
    std::string variant_;
    std::int64_t step_begin_ns_ = 0;
    std::int64_t event_count_ = 0;
};

}  // namespace cpstep
