#include "app/analysis/export_trace.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>

#include "app/analysis/variant_times.hpp"
#include "cuda/error.hpp"
#include "io/atomic_file.hpp"

namespace cpstep {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t most_events = 5'000'000;
constexpr std::size_t buffer_bytes = std::size_t{1} << 20;
constexpr int compute_stream = 7;  // as PyTorch numbers its streams; HTA asks for > 0
constexpr int comm_stream = 20;
constexpr double launch_us = 0.001;

std::string quoted(std::string const& text) {
    return json(text).dump(-1, ' ', false, json::error_handler_t::replace);
}

/// A trace file that is written event by event and appears whole.
class TraceFile {
  public:
    TraceFile(fs::path path, std::string const& header)
        : path_(std::move(path)), out_(part_of(path_), std::ios::binary) {
        text_ = "{\"displayTimeUnit\": \"ns\", " + header + "\"traceEvents\": [\n";
    }

    /// The members of one event, without braces.
    template <class... Args>
    void add(fmt::format_string<Args...> format, Args&&... args) {
        text_ += first_ ? "{" : ",\n{";
        first_ = false;
        fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
        text_ += "}";
        if (text_.size() > buffer_bytes) {
            flush();
        }
    }

    void close() {
        text_ += "\n]}\n";
        flush();
        out_.close();
        require(!out_.fail(), ExitCode::output, "{}: cannot be written: {}", path_.string(),
                std::strerror(errno));
        publish(path_);
    }

  private:
    void flush() {
        out_ << text_;
        text_.clear();
    }

    fs::path path_;
    std::ofstream out_;
    std::string text_;
    bool first_ = true;
};

double us(std::int64_t ns) {
    return static_cast<double>(ns) * 1e-3;
}

std::vector<std::uint32_t> steps_of(RunData const& run, std::optional<std::uint32_t> step) {
    std::vector<std::uint32_t> steps;
    std::uint64_t events = 0;
    if (step) {
        (void)row_of_step(run, *step);
    }
    for (RankData const& rank : run.ranks) {
        for (StepRecord const& row : rank.steps) {
            if (!step || row.step == *step) {
                events += row.events;
            }
        }
    }
    require(
        events <= most_events, ExitCode::usage,
        "{} events are more than a viewer can hold ({}): choose one step with --step, such as {}",
        events, most_events, typical_step(run));
    for (StepRecord const& row : run.ranks.front().steps) {
        if (!step || row.step == *step) {
            steps.push_back(row.step);
        }
    }
    return steps;
}

/// Slices of a track must nest: calls that overlap are spread over as many tracks as they need.
std::vector<int> lanes_of(std::vector<Event> const& calls) {
    std::vector<std::int64_t> ends;
    std::vector<int> lanes;
    for (Event const& call : calls) {
        auto const free = std::find_if(ends.begin(), ends.end(),
                                       [&](std::int64_t end) { return end <= call.t0_ns; });
        lanes.push_back(static_cast<int>(free - ends.begin()));
        if (free == ends.end()) {
            ends.push_back(call.t0_ns + call.dur_ns);
        } else {
            *free = call.t0_ns + call.dur_ns;
        }
    }
    return lanes;
}

std::vector<Event> sorted_calls(std::vector<Event> const& events) {
    std::vector<Event> calls;
    std::copy_if(events.begin(), events.end(), std::back_inserter(calls),
                 [](Event const& event) { return event.kind == SpanKind::comm; });
    std::sort(calls.begin(), calls.end(),
              [](Event const& a, Event const& b) { return a.t0_ns < b.t0_ns; });
    return calls;
}

char const* kind_name(SpanKind kind) {
    constexpr char const* names[] = {"step", "pass", "compute", "comm", "wait"};
    auto const index = static_cast<std::size_t>(kind);
    return index < std::size(names) ? names[index] : "?";
}

void add_rank(TraceFile& file, RankData const& rank, std::vector<std::uint32_t> const& steps) {
    int lanes = 0;
    for (std::uint32_t const step : steps) {
        std::vector<Event> const events = load_events(rank, step);
        for (Event const& event : events) {
            if (event.kind == SpanKind::comm) {
                continue;
            }
            std::string const& name = rank.names[event.name];
            file.add(
                R"("ph": "X", "name": {}, "cat": "{}", "pid": {}, "tid": 0, "ts": {:.3f}, "dur": {:.3f}, "args": {{"step": {}}})",
                quoted(event.kind == SpanKind::wait   ? "wait " + name
                       : event.kind == SpanKind::step ? fmt::format("step {} {}", step, name)
                                                      : name),
                kind_name(event.kind), rank.rank, us(event.t0_ns), us(event.dur_ns), step);
        }
        std::vector<Event> const calls = sorted_calls(events);
        std::vector<int> const lane = lanes_of(calls);
        for (std::size_t i = 0; i < calls.size(); ++i) {
            lanes = std::max(lanes, lane[i] + 1);
            file.add(
                R"("ph": "X", "name": {}, "cat": "comm", "pid": {}, "tid": {}, "ts": {:.3f}, "dur": {:.3f}, "args": {{"step": {}, "bytes": {}, "peer": {}}})",
                quoted(rank.names[calls[i].name]), rank.rank, lane[i] + 1, us(calls[i].t0_ns),
                us(calls[i].dur_ns), step, std::uint64_t{calls[i].bytes},
                std::int32_t{calls[i].peer});
        }
    }
    file.add(R"("ph": "M", "name": "process_name", "pid": {}, "args": {{"name": {}}})", rank.rank,
             quoted(fmt::format("rank {} ({})", rank.rank, rank.host)));
    file.add(R"("ph": "M", "name": "process_sort_index", "pid": {}, "args": {{"sort_index": {}}})",
             rank.rank, rank.rank);
    for (int track = 0; track <= lanes; ++track) {
        file.add(
            R"("ph": "M", "name": "thread_name", "pid": {}, "tid": {}, "args": {{"name": {}}})",
            rank.rank, track,
            track == 0 ? "\"compute\"" : quoted(fmt::format("communication {}", track)));
    }
}

/// Passes of a step without leaves, where they do not wait.
std::vector<Event> working_parts(std::vector<Event> const& events) {
    std::vector<Interval> const waits = intervals_of(events, SpanKind::wait);
    std::vector<Event> parts;
    for (Event pass : events) {
        if (pass.kind != SpanKind::pass) {
            continue;
        }
        std::int64_t const end = pass.t0_ns + pass.dur_ns;
        for (Interval const& wait : waits) {
            if (wait.end > pass.t0_ns && wait.begin < end) {
                pass.dur_ns = wait.begin - pass.t0_ns;
                if (pass.dur_ns > 0) {
                    parts.push_back(pass);
                }
                pass.t0_ns = wait.end;
            }
        }
        pass.dur_ns = end - pass.t0_ns;
        if (pass.dur_ns > 0) {
            parts.push_back(pass);
        }
    }
    return parts;
}

/// What a rank's processor and wire did in a step.
std::vector<Event> kernels_of(std::vector<Event> const& events) {
    std::vector<Event> kernels;
    std::copy_if(events.begin(), events.end(), std::back_inserter(kernels),
                 [](Event const& event) { return event.kind == SpanKind::compute; });
    if (kernels.empty()) {
        kernels = working_parts(events);
    }
    std::vector<Event> const calls = sorted_calls(events);
    kernels.insert(kernels.end(), calls.begin(), calls.end());
    return kernels;
}

/// A kernel has a launch of the same correlation, since HTA pairs them; communication has a name
/// that begins as NCCL's do.
void write_hta_rank(fs::path const& folder, RunData const& run, RankData const& rank,
                    std::vector<std::uint32_t> const& steps) {
    TraceFile file(
        folder / fmt::format("rank{:05}.json", rank.rank),
        fmt::format(R"("distributedInfo": {{"backend": "nccl", "rank": {}, "world_size": {}}}, )",
                    rank.rank, run.world));
    std::int64_t correlation = 0;
    for (std::uint32_t const step : steps) {
        StepRecord const& row = rank.steps[row_of_step(run, step)];
        file.add(
            R"("ph": "X", "name": "ProfilerStep#{}", "cat": "user_annotation", "pid": {}, "tid": 1, "ts": {:.3f}, "dur": {:.3f}, "args": {{}})",
            step, rank.rank, us(row.t0_ns), us(row.dur_ns));
        for (Event const& kernel : kernels_of(load_events(rank, step))) {
            bool const call = kernel.kind == SpanKind::comm;
            ++correlation;
            double const begin = us(kernel.t0_ns);
            file.add(
                R"("ph": "X", "name": "cudaLaunchKernel", "cat": "cuda_runtime", "pid": {}, "tid": 1, "ts": {:.3f}, "dur": {:.3f}, "args": {{"correlation": {}}})",
                rank.rank, begin - launch_us, launch_us, correlation);
            file.add(
                R"("ph": "X", "name": {}, "cat": "kernel", "pid": {}, "tid": {}, "ts": {:.3f}, "dur": {:.3f}, "args": {{"stream": {}, "correlation": {}, "device": {}}})",
                quoted((call ? "ncclKernel_" : "") + rank.names[kernel.name]), rank.rank,
                call ? comm_stream : compute_stream, begin, us(kernel.dur_ns),
                call ? comm_stream : compute_stream, correlation, rank.rank);
        }
    }
    file.close();
}

}  // namespace

void export_trace(RunData const& run, ExportFormat format, fs::path const& output,
                  std::optional<std::uint32_t> step) {
    std::vector<std::uint32_t> const steps = steps_of(run, step);
    require(!steps.empty(), ExitCode::input_data, "{}: holds no finished step",
            run.folder.string());
    if (format == ExportFormat::perfetto) {
        TraceFile file(output, "");
        for (RankData const& rank : run.ranks) {
            add_rank(file, rank, steps);
        }
        file.close();
        return;
    }
    std::error_code error;
    fs::create_directories(output, error);
    require(fs::is_directory(output), ExitCode::output, "{}: cannot make this folder: {}",
            output.string(), error.message());
    for (RankData const& rank : run.ranks) {
        write_hta_rank(output, run, rank, steps);
    }
}

}  // namespace cpstep
