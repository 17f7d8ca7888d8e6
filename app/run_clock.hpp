// The ranks' clocks in the outputs of a run: one time axis, and how well it holds.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "io/h5.hpp"
#include "mpi/clock_sync.hpp"

namespace cpstep {

/// Time 0 of a run: one moment, by this rank's steady clock and in Unix time (rank 0's).
struct RunEpoch {
    std::int64_t own_ns = 0;
    std::int64_t unix_ns = 0;
};

/// Collective: the present moment of rank 0, which `clocks` (read_clocks) put on every rank's
/// clock. `clock` as in read_clocks().
RunEpoch agree_on_epoch(World& world, std::vector<ClockReading> const& clocks,
                        std::function<std::int64_t()> const& clock = now_ns);

/// Readings of both ends of a run, by rank.
std::vector<RankClock> joined(std::vector<ClockReading> const& start,
                              std::vector<ClockReading> const& end);

/// A line of the report; "" for one rank.
std::string clock_line(std::span<RankClock const> clocks);

nlohmann::json clock_json(std::span<RankClock const> clocks);

/// /clock: the same by rank, in ns and parts per billion.
void write_clocks(H5File& file, std::span<RankClock const> clocks);

}  // namespace cpstep
