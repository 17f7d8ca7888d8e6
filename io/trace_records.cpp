#include "io/trace_records.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace cpstep {
namespace {

constexpr int files_per_folder = 256;

using Intervals = std::vector<Interval>;

/// Unions of a step's intervals by kind.
struct Sets {
    explicit Sets(std::vector<Event> const& events)
        : comm(intervals_of(events, SpanKind::comm)),
          compute(intervals_of(events, SpanKind::compute)),
          wait(intervals_of(events, SpanKind::wait)) {}

    Intervals comm, compute, wait;
};

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

void one_after_another(std::vector<Event*> calls) {
    auto const end_of = [](Event const* call) { return call->t0_ns + call->dur_ns; };
    std::ranges::sort(calls, {}, end_of);
    for (std::size_t i = 1; i < calls.size(); ++i) {
        std::int64_t const late = std::max<std::int64_t>(end_of(calls[i - 1]) - calls[i]->t0_ns, 0);
        calls[i]->t0_ns += late;
        calls[i]->dur_ns -= late;
    }
}

std::vector<Interval> intervals_of(std::vector<Event> const& events, SpanKind kind) {
    Intervals found;
    for (Event const& event : events) {
        if (event.kind == kind) {
            found.push_back({event.t0_ns, event.t0_ns + event.dur_ns});
        }
    }
    return merged(std::move(found));
}

std::int64_t exposed_comm_ns(std::vector<Event> const& events) {
    return exposed_of(Sets(events));
}

StepSums sums_of(std::vector<Event> const& events, std::int64_t dur_ns) {
    Sets const sets(events);
    bool const leaves = !sets.compute.empty();
    Intervals busy = leaves ? sets.compute : intervals_of(events, SpanKind::pass);
    StepSums sums{.compute_ns = length_ns(busy) - (leaves ? 0 : overlap_ns(busy, sets.wait)),
                  .comm_ns = length_ns(sets.comm),
                  .exposed_ns = exposed_of(sets),
                  .wait_ns = length_ns(sets.wait)};
    for (Event const& event : events) {
        sums.bytes += event.kind == SpanKind::comm ? event.bytes : 0;
    }
    for (Intervals const* set : {&sets.comm, &sets.wait}) {
        busy.insert(busy.end(), set->begin(), set->end());
    }
    sums.idle_ns = std::max<std::int64_t>(dur_ns - length_ns(merged(std::move(busy))), 0);
    return sums;
}

}  // namespace cpstep
