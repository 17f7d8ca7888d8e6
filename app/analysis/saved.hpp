// What the files of a run hold, whatever became of it.
#pragma once

#include <string>

#include "app/analysis/run_data.hpp"

namespace cpstep {

/// What one rank's file holds.
struct SavedRank {
    int rank = 0;
    std::int64_t steps = 0, events = 0;
    std::int64_t loose_events = 0;  ///< of a step that was not finished
    std::int64_t shards = 0, shards_written = 0;
    std::string last;  ///< "step 12, cp2, block 3", or "no step"
};

/// Error(input_data) when the file cannot be read.
SavedRank saved_rank(RankData const& rank);

/// A line a group of ranks that saved the same; then the problems. At most `most_lines` groups.
std::string saved_text(RunData const& run, std::size_t most_lines);

}  // namespace cpstep
