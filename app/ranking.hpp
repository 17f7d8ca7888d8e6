// What the variants cost beside each other, and what a loss path saves against the trainer's old
// one.
#pragma once

#include <string>
#include <vector>

#include "app/verdict.hpp"

namespace cpstep {

/// Communication of one step, mean over ranks; seconds are 0 without timing.
struct VariantCost {
    std::string name;
    double wire_bytes = 0;  ///< ledger.hpp
    double calls = 0;
    double loss_bytes = 0, loss_calls = 0;  ///< the part whose labels begin with "loss."
    double step_seconds = 0;
    int by_time = 0, by_bytes = 0;  ///< place among the variants, from 1; by_time 0: not timed
};

/// One a result, fastest first, without timing fewest bytes first.
std::vector<VariantCost> rank_variants(Report const& report);

/// A variant on a trainer's old loss path against the one that differs in nothing but `scalar`.
struct LossSaving {
    std::string old_name, new_name;
    std::string trainer;                  ///< whose path it was
    double old_calls = 0, new_calls = 0;  ///< of the loss, a step and rank
    double old_bytes = 0, new_bytes = 0;
    double old_seconds = 0,
           new_seconds = 0;  ///< in loss calls, slowest rank, median; waits included
    double old_share = 0;    ///< old_seconds of the old step
    RatioEstimate ratio;     ///< step time new / old, paired blocks; 0 blocks: untimed
};
std::vector<LossSaving> loss_savings(Report const& report);

/// For a terminal; empty when there is only one variant.
std::string ranking_text(Report const& report);

}  // namespace cpstep
