// What one variant's verification step computed, gathered over ranks.
#pragma once

#include <string>
#include <vector>

#include "app/step.hpp"
#include "app/variant.hpp"
#include "mpi/world.hpp"

namespace cpstep {

struct VariantResult {
    std::string name;
    StepMetrics metrics;
    std::vector<double> log_probs, ref_log_probs,
        entropy;  ///< response order; ref empty without one
    std::vector<double> old_log_probs, rollout_log_probs;  ///< same; rollout empty without TIS
    std::vector<double> seq_kl, advantages;                ///< per sample
    std::vector<float> gradients, updated;                 ///< layout.size, root only
    std::vector<float> fp32_gradients;                     ///< anchor_gradients(); root only
    Ledger ledger;                                         ///< summed over ranks
    Ledger budget;                                         ///< summed over ranks
    std::vector<std::string> ledger_faults;                ///< "[rank r] label: ..." of every rank
    double replica_spread = 0;   ///< max - min over ranks of |gradient|^2 and |updated weights|^2
    double coverage_error = 0;   ///< largest |ranks that computed a response token - 1|
    std::string coverage_place;  ///< that token, "" if each came from exactly one rank
};

/// Collective, after a step of `variant`.
VariantResult collect_result(World& world, Backend& backend, TrainStep& step, Variant& variant,
                             ParameterLayout const& layout, Rollout const& rollout,
                             StepMetrics const& metrics);

}  // namespace cpstep
