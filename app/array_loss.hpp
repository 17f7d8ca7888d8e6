// The policy loss of gathered arrays: what a result's numbers must be if it summed its own tokens
// right.
#pragma once

#include <vector>

#include "app/options.hpp"
#include "app/results.hpp"

namespace cpstep {

/// By the host's operations, in double.
struct ArrayLoss {
    StepMetrics metrics;              ///< without grad_norm
    std::vector<double> seq_kl;       ///< per sample, from log-probs and old log-probs
    std::vector<double> d_log_probs;  ///< dL/dlog-prob per response token, also through k_j
};

/// NaN and empty arrays where an array of the result is missing or misses the rollout's size.
/// `border_shift` moves every border of clipping and masking outwards: what lies within it of a
/// border shows as a difference between shifts of unequal sign.
ArrayLoss loss_of_arrays(VariantResult const& result, Rollout const& rollout,
                         Options const& options, double border_shift = 0);

}  // namespace cpstep
