// What a run left on disk, without the events.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/trace_records.hpp"

namespace cpstep {

/// One rank's file: attributes, /names and /steps.
struct RankData {
    int rank = 0;
    int world = 1;
    std::string host, run_id;
    std::filesystem::path file;
    std::vector<std::string> names;
    std::vector<StepRecord> steps;
};

/// A step as the run timed it: the slowest rank's seconds.
struct TimedStep {
    std::string variant;
    int block = -1;
    double seconds = 0;
};

struct RunData {
    std::filesystem::path folder;
    int world = 1;
    std::vector<RankData> ranks;        ///< those that could be read, by rank
    std::vector<std::string> variants;  ///< in the order they ran, the baseline first
    std::vector<TimedStep> timed;       ///< blocks >= 0
    nlohmann::json summary;             ///< of run.h5; null when the run did not finish
    std::vector<std::string> problems;  ///< files that are missing, damaged or of another run

    bool finished() const { return !summary.is_null(); }
};

/// A finished run. Error(input_data) when DIR holds none, or no rank file can be read; single files
/// that cannot be read are problems.
RunData load_run(std::filesystem::path const& folder);

/// What can be read of a run in any state: steps that every readable rank has.
RunData load_unfinished_run(std::filesystem::path const& folder);

/// Error(input_data) when it cannot be read.
RankData load_rank(std::filesystem::path const& file);

/// Name of the variant that a step ran.
std::string const& variant_of(RankData const& rank, StepRecord const& step);

/// Events of one step of a rank, in the order they ended.
std::vector<Event> load_events(RankData const& rank, std::uint32_t step);

}  // namespace cpstep
