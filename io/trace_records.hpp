// Records of a rank file: their layout, and what a step's events add up to. Without MPI.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/h5.hpp"
#include "io/intervals.hpp"

namespace cpstep {

/// What a span is. compute and comm are leaves; the others contain them.
enum class SpanKind : std::uint16_t { step = 0, pass = 1, compute = 2, comm = 3, wait = 4 };

/// How much of a step is kept. A mark costs a device 2 us, which layers add up to some per cent of
/// a step; passes alone have no leaves on stream 0 but waits. off: the step and nothing in it.
enum class TraceDetail : std::uint8_t { layers, passes, off };
inline constexpr std::array<std::string_view, 3> trace_detail_names{"layers", "passes", "off"};
constexpr std::string_view name_of(TraceDetail detail) {
    return trace_detail_names.at(static_cast<std::size_t>(detail));
}

/// What a step's events add up to. Times: lengths of unions of intervals, ns.
struct StepSums {
    /// Leaves; of a step that has none, its passes where they do not wait.
    std::int64_t compute_ns = 0;
    std::int64_t comm_ns = 0;     ///< calls, posted to done
    std::int64_t exposed_ns = 0;  ///< exposed_comm_ns()
    std::int64_t wait_ns = 0;     ///< compute stands still for a call
    std::int64_t idle_ns = 0;     ///< step without compute, comm and wait
    std::uint64_t bytes = 0;      ///< of calls, as in the ledger
};

#pragma pack(push, 1)
/// One record of /events: packed, little endian, 40 bytes. Times: ns since the run's epoch.
struct Event {
    std::uint32_t step = 0;
    SpanKind kind = SpanKind::compute;
    std::int16_t stream = 0;  ///< 0 compute, 1 communication
    std::int64_t t0_ns = 0;
    std::int64_t dur_ns = 0;
    std::uint64_t bytes = 0;
    std::int32_t peer = -1;
    std::uint32_t name = 0;  ///< row of /names
};

/// One record of /steps: packed, 88 bytes. The events of a step are the `events` rows of /events
/// after those of the steps before it.
struct StepRecord {
    std::uint32_t step = 0;
    std::uint32_t variant = 0;  ///< row of /names
    std::int32_t block = -1;    ///< of the timing; -1: verification or warm-up
    std::uint32_t detail = 0;   ///< TraceDetail
    std::int64_t t0_ns = 0;
    std::int64_t dur_ns = 0;
    std::uint64_t events = 0;
    StepSums sums;
};
#pragma pack(pop)
static_assert(sizeof(Event) == 40 && sizeof(StepRecord) == 88);

/// Columns of /events and /steps, as H5File wants them.
std::vector<H5Column> event_columns();
inline constexpr char const* event_units = "ns (t0_ns, dur_ns), byte (bytes)";
std::vector<H5Column> step_columns();
inline constexpr char const* step_units = "ns (names in _ns), byte (bytes)";

/// "ranks/000/rank00000.h5" for a rank: 256 files a folder.
std::string rank_file_name(int rank);

/// Calls of a queue that does one after the other: one that was posted before the end of another
/// that ended before it begins at that end.
void one_after_another(std::vector<Event*> calls);

/// The union of the intervals of one kind.
std::vector<Interval> intervals_of(std::vector<Event> const& events, SpanKind kind);

/// Communication of a step that no compute hides, in ns: the union of the comm intervals minus the
/// union of the compute intervals. Where a step has no compute leaves (TraceDetail::passes), the
/// part of the comm intervals in which stream 0 waits, since stream 0 computes where it does not
/// wait.
std::int64_t exposed_comm_ns(std::vector<Event> const& events);

/// Of all events of one step that took `dur_ns`.
StepSums sums_of(std::vector<Event> const& events, std::int64_t dur_ns);

}  // namespace cpstep
