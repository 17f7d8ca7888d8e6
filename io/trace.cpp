#include "io/trace.hpp"

#include <algorithm>
#include <exception>
#include <limits>
#include <span>
#include <utility>

#include "cuda/error.hpp"

namespace cpstep {
namespace {

constexpr std::int64_t name_width = 64;
constexpr std::int16_t compute_stream = 0;
constexpr std::int16_t comm_stream = 1;

void describe(H5File& file, RankFileInfo const& info) {
    file.attribute("/", "format", std::string("cpstep-trace"));
    file.attribute("/", "format_version", std::int64_t{1});
    file.attribute("/", "rank", std::int64_t{info.rank});
    file.attribute("/", "world", std::int64_t{info.world});
    file.attribute("/", "host", info.host);
    file.attribute("/", "run_id", info.run_id);
    file.attribute("/", "epoch_ns", info.epoch_ns);
    file.attribute("/", "epoch_unix_ns", info.epoch_unix_ns);
}

void create_datasets(H5File& file, std::vector<ShardSpec> const& shards,
                     std::vector<ShardIndex> const& indices) {
    file.create_table("/events", event_columns(), event_units);
    file.attribute("/events", "kinds", std::string("0 step,1 pass,2 compute,3 comm,4 wait"));
    file.create_table("/steps", step_columns(), step_units);
    file.create_string_table("/names", name_width);
    for (ShardSpec const& shard : shards) {
        std::vector<float> const unwritten(static_cast<std::size_t>(shard.rows),
                                           std::numeric_limits<float>::quiet_NaN());
        file.write("/tensors/" + shard.path, unwritten, {shard.rows}, shard.units);
    }
    for (ShardIndex const& index : indices) {
        file.write("/tensors/" + index.path, std::span<std::int64_t const>(index.rows),
                   {static_cast<std::int64_t>(index.rows.size())}, "1");
    }
}

}  // namespace

Span::Span(Trace* trace, SpanKind kind, std::string_view name) : trace_(trace), kind_(kind) {
    if (trace_ != nullptr && trace_->keeps(kind, name)) {
        name_ = trace_->name_id(name);
        begin_ = trace_->mark();
        if (trace_->backend_ != nullptr) {
            trace_->backend_->push_range(trace_->names_[name_].c_str());
        }
    } else {
        trace_ = nullptr;
    }
}

Span::~Span() noexcept(false) {
    if (trace_ == nullptr || std::uncaught_exceptions() > 0) {
        return;
    }
    if (trace_->backend_ != nullptr) {
        trace_->backend_->pop_range();
    }
    trace_->add(kind_, compute_stream, name_, begin_, trace_->mark(), 0, -1);
}

Trace::Trace(std::filesystem::path const& output, RankFileInfo const& info,
             std::vector<ShardSpec> const& shards, std::vector<ShardIndex> const& indices)
    : info_(info) {
    std::filesystem::path const path = output / rank_file_name(info.rank);
    std::error_code error;  // the ranks of a folder race for it; only its existence counts
    std::filesystem::create_directories(path.parent_path(), error);
    require(std::filesystem::is_directory(path.parent_path()), ExitCode::output,
            "{}: cannot make this folder: {}", path.parent_path().string(), error.message());
    file_ = std::make_unique<H5File>(H5File::create_swmr(path));
    describe(*file_, info);
    create_datasets(*file_, shards, indices);
    file_->start_swmr();
}

/// Passes of layers, and their leaves, are the detail.
bool Trace::keeps(SpanKind kind, std::string_view name) const {
    bool const detail = kind == SpanKind::compute || name.starts_with("layer.");
    return in_step_ &&
           (detail_ == TraceDetail::layers || (detail_ == TraceDetail::passes && !detail));
}

std::uint32_t Trace::name_id(std::string_view name) {
    auto at = std::find(names_.begin(), names_.end(), name);
    if (at == names_.end()) {
        require(static_cast<std::int64_t>(name.size()) <= name_width, ExitCode::internal,
                "span name '{}' is over {} bytes", name, name_width);
        at = names_.emplace(at, name);
    }
    return static_cast<std::uint32_t>(at - names_.begin());
}

void Trace::add(SpanKind kind, std::int16_t stream, std::uint32_t name, Mark begin, Mark end,
                std::uint64_t bytes, std::int32_t peer) {
    if (in_step_) {
        events_.push_back({.step = step_,
                           .kind = kind,
                           .stream = stream,
                           .t0_ns = begin,
                           .dur_ns = end,
                           .bytes = bytes,
                           .peer = peer,
                           .name = name});
    }
}

void Trace::on_comm(CommRecord const& record) {
    if (!wants_times()) {
        return;
    }
    std::uint32_t const name = name_id(record.label);
    add(SpanKind::comm, comm_stream, name, record.posted, record.done,
        static_cast<std::uint64_t>(record.bytes), record.peer);
    add(SpanKind::wait, compute_stream, name, record.waited, record.done, 0, record.peer);
}

/// Marks of the step at hand become times, which a device tells of those it has reached.
void Trace::resolve_marks() {
    if (backend_ != nullptr) {
        backend_->synchronize();
    }
    std::vector<Event*> calls_on_device;
    for (Event& event : events_) {
        bool const on_device = event.dur_ns < 0;
        std::int64_t begin = event.t0_ns;
        std::int64_t end = event.dur_ns;
        if (backend_ != nullptr) {
            begin = backend_->mark_ns(begin);
            end = backend_->mark_ns(end);
        }
        event.t0_ns = begin - info_.epoch_ns;
        event.dur_ns = std::max<std::int64_t>(end - begin, 0);  // nobody waits for what is done
        if (on_device && event.kind == SpanKind::comm) {
            calls_on_device.push_back(&event);
        }
    }
    one_after_another(std::move(calls_on_device));
}

void Trace::begin_step(std::string_view variant, TraceDetail detail, int block) {
    require(!in_step_, ExitCode::internal, "step {} begun twice", step_);
    events_.clear();
    variant_ = variant;
    if (backend_ != nullptr) {
        backend_->begin_marks();
    }
    in_step_ = true;
    detail_ = detail;
    block_ = block;
    step_begin_ns_ = now_ns();
}

void Trace::end_step() {
    std::int64_t const end_ns = now_ns();
    require(in_step_, ExitCode::internal, "step {} ended before it was begun", step_);
    std::uint32_t const variant = name_id(variant_);
    add(SpanKind::step, compute_stream, variant, step_begin_ns_, end_ns, 0, -1);
    in_step_ = false;
    resolve_marks();
    if (file_) {
        auto const count = static_cast<std::int64_t>(events_.size());
        file_->append_strings("/names", std::span(names_).subspan(names_written_));
        names_written_ = names_.size();
        file_->append_records("/events", events_.data(), count);
        file_->flush();
        // Its row in /steps comes after the flush: a step that is listed has all its events.
        StepRecord const row{.step = step_,
                             .variant = variant,
                             .block = block_,
                             .detail = static_cast<std::uint32_t>(detail_),
                             .t0_ns = step_begin_ns_ - info_.epoch_ns,
                             .dur_ns = end_ns - step_begin_ns_,
                             .events = static_cast<std::uint64_t>(count),
                             .sums = sums_of(events_, end_ns - step_begin_ns_)};
        file_->append_records("/steps", &row, 1);
        file_->flush();
    }
    event_count_ += static_cast<std::int64_t>(events_.size());
    last_step_ = std::exchange(events_, {});
    ++step_;
}

void Trace::write_shard(std::string const& path, std::span<float const> data) {
    if (file_) {
        file_->overwrite("/tensors/" + path, data);
        file_->flush();
    }
}

void Trace::close() {
    if (file_) {
        file_->close();
        file_.reset();
    }
}

}  // namespace cpstep
