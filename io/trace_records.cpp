#include "io/trace_records.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "io/intervals.hpp"

namespace cpstep {
namespace {

constexpr int files_per_folder = 256;
constexpr std::int16_t comm_stream = 1;

using Intervals = std::vector<Interval>;

/// Unions of a step's intervals by kind.
struct Sets {
    Intervals comm, compute, wait, pass;
};

Sets sets_of(std::vector<Event> const& events) {
    Sets sets;
    for (Event const& event : events) {
        Interval const interval{event.t0_ns, event.t0_ns + event.dur_ns};
        if (event.kind == SpanKind::comm && event.stream == comm_stream) {
            sets.comm.push_back(interval);
        } else if (event.kind == SpanKind::compute) {
            sets.compute.push_back(interval);
        } else if (event.kind == SpanKind::wait) {
            sets.wait.push_back(interval);
        } else if (event.kind == SpanKind::pass) {
            sets.pass.push_back(interval);
        }
    }
    for (Intervals* set : {&sets.comm, &sets.compute, &sets.wait, &sets.pass}) {
        *set = merged(std::move(*set));
    }
    return sets;
}

std::int64_t exposed_of(Sets const& sets) {
    if (sets.compute.empty() && !sets.wait.empty()) {
        return overlap_ns(sets.comm, sets.wait);
    }
    return length_ns(sets.comm) - overlap_ns(sets.comm, sets.compute);
}

}  // namespace

std::vector<H5Column> event_columns() {
    using Type = H5Column::Type;
    return {{"step", Type::u32},  {"kind", Type::u16},   {"stream", Type::i16},
            {"t0_ns", Type::i64}, {"dur_ns", Type::i64}, {"bytes", Type::u64},
            {"peer", Type::i32},  {"name", Type::u32}};
}

std::vector<H5Column> step_columns() {
    using Type = H5Column::Type;
    return {{"step", Type::u32},       {"variant", Type::u32},    {"block", Type::i32},
            {"detail", Type::u32},     {"t0_ns", Type::i64},      {"dur_ns", Type::i64},
            {"events", Type::u64},     {"compute_ns", Type::i64}, {"comm_ns", Type::i64},
            {"exposed_ns", Type::i64}, {"wait_ns", Type::i64},    {"idle_ns", Type::i64},
            {"bytes", Type::u64}};
}

std::string rank_file_name(int rank) {
    return fmt::format("ranks/{:03}/rank{:05}.h5", rank / files_per_folder, rank);
}

std::int64_t exposed_comm_ns(std::vector<Event> const& events) {
    return exposed_of(sets_of(events));
}

StepSums sums_of(std::vector<Event> const& events, std::int64_t dur_ns) {
    Sets sets = sets_of(events);
    bool const leaves = !sets.compute.empty();
    StepSums sums{.compute_ns = leaves ? length_ns(sets.compute)
                                       : length_ns(sets.pass) - overlap_ns(sets.pass, sets.wait),
                  .comm_ns = length_ns(sets.comm),
                  .exposed_ns = exposed_of(sets),
                  .wait_ns = length_ns(sets.wait)};
    for (Event const& event : events) {
        sums.bytes += event.kind == SpanKind::comm ? event.bytes : 0;
    }
    Intervals busy = leaves ? std::move(sets.compute) : std::move(sets.pass);
    for (Intervals const* set : {&sets.comm, &sets.wait}) {
        busy.insert(busy.end(), set->begin(), set->end());
    }
    sums.idle_ns = std::max<std::int64_t>(dur_ns - length_ns(merged(std::move(busy))), 0);
    return sums;
}

}  // namespace cpstep
