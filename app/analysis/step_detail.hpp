// One step in detail, from its events on all ranks.
#pragma once

#include <string>
#include <vector>

#include "app/analysis/run_data.hpp"
#include "app/analysis/variant_times.hpp"

namespace cpstep {

/// A pass of the step ("train_forward", ...); passes inside others (layers) are left out. Over
/// ranks, seconds.
struct PhaseTime {
    std::string name;
    Spread total, compute, exposed;
};

/// Calls of one label. Over ranks, seconds.
struct CallTime {
    std::string label;
    std::int64_t calls = 0;  ///< on all ranks
    std::uint64_t bytes = 0;
    Spread comm, wait;  ///< of a rank's calls together
};

/// The n-th exchange of each attention pass: how long a hop of the ring is waited for.
struct HopTime {
    std::string label;
    int hop = 0;
    std::int64_t calls = 0;
    Spread wait;  ///< over calls of all ranks
};

/// The drawn part of one rank: events relative to the start of its own step, so that no clock is
/// compared with another.
struct RankTimeline {
    int rank = 0;
    std::vector<std::string> names;
    std::vector<Event> events;
};

struct StepDetail {
    std::uint32_t step = 0;
    std::string variant;
    int block = -1;
    double seconds = 0;  ///< slowest rank
    TraceDetail detail = TraceDetail::layers;
    std::vector<PhaseTime> phases;
    std::vector<CallTime> calls;
    std::vector<HopTime> hops;  ///< none where the step has no layers
    std::vector<RankTimeline> timelines;
};

/// Timelines are kept of at most `most_timelines` ranks, evenly spaced.
StepDetail step_detail(RunData const& run, std::uint32_t step, int most_timelines);

}  // namespace cpstep
