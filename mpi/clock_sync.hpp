// How far each rank's clock is from rank 0's, and how well that is known: ping-pong, of which the
// round trip that took least time counts.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "cuda/clock.hpp"
#include "mpi/world.hpp"

namespace cpstep {

/// One round trip: a question leaves at `sent_ns`, the other rank stamps it with its own clock, the
/// answer is here at `received_ns`.
struct ClockSample {
    std::int64_t sent_ns = 0;
    std::int64_t remote_ns = 0;
    std::int64_t received_ns = 0;
};

/// Own time + offset_ns = rank 0's time, at the own time `at_ns`, to within +- bound_ns.
struct ClockReading {
    std::int64_t at_ns = 0;
    std::int64_t offset_ns = 0;
    std::int64_t bound_ns = 0;
};

/// Of the sample with the shortest round trip: offset = remote - (sent + received) / 2. The stamp
/// was taken somewhere within the trip, so the error is at most half of it, however unequal the two
/// ways are. (Cristian, Distributed Computing 3, 1989.)
ClockReading best_reading(std::span<ClockSample const> samples);

/// A rank's clock at both ends of a run. Moments between are put on rank 0's time axis with the
/// offset of the start, so what the clock drifted adds to the bound.
struct RankClock {
    ClockReading start;
    ClockReading end;

    /// Parts per billion this clock is slow against rank 0's; 0 if no time passed.
    double drift_ppb() const;
    /// max(bound at start, bound at end + |offset at end - offset at start|).
    std::int64_t bound_ns() const;
};

/// Of two ranks, the most that the order of their moments can be wrong by: the sum of the two
/// largest bounds; 0 for one rank.
std::int64_t pair_bound_ns(std::span<RankClock const> clocks);

/// Whom each rank asks, by rank; -1 for rank 0. Up to `flat_up_to` ranks all ask rank 0; of more,
/// the lowest rank of each host asks rank 0 and the others ask the lowest of their host.
std::vector<int> clock_servers(std::vector<std::string> const& hosts, int flat_up_to = 64);

/// Readings along the chain of servers, added up: those against rank 0.
std::vector<ClockReading> chained(std::vector<ClockReading> readings,
                                  std::vector<int> const& servers);

/// Collective: every rank's reading against rank 0, on every rank, from 200 round trips each.
/// `clock` is what a rank takes for its time; tests give it a known skew.
std::vector<ClockReading> read_clocks(World& world, std::vector<int> const& servers,
                                      std::function<std::int64_t()> const& clock = now_ns);
std::vector<ClockReading> read_clocks(World& world);

}  // namespace cpstep
