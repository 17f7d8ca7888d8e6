// fp32 gradients by the probability ratios that a bf16 step has.
#pragma once

#include <vector>

#include "app/processor.hpp"
#include "app/results.hpp"
#include "app/setup.hpp"

namespace cpstep {

/// Whether both have the same ratios up to fp32 rounding. So it is where old log-probs come from a
/// pass of the step itself, which bf16 moves as it moves the new ones; recorded ones stay.
bool has_ratios_of(VariantResult const& reference, VariantResult const& result);

/// The step whose ratios in fp32 are those of `result`: its old and rollout log-probs as recorded
/// ones, moved as far as its new log-probs are from fp32's; reference values as `reference` has
/// them, so that no weights but the policy's are needed. Only the first plan.
Setup anchored_setup(Setup setup, VariantResult const& reference, VariantResult const& result);

/// Gradients jump where rounding carries a token or a sample over a border of clipping: by 10 % of
/// the norm for some of 300 tokens, by half for one of 8 samples. Errors against fp32 would then be
/// those few tokens, and a wrong gradient small beside them. Results whose ratios are not those of
/// `reference` (the baseline's step in fp32) get the gradients of their anchored_setup() in fp32,
/// an fp32 step each; whether a result makes of its ratios what it should is for its metrics to
/// say. Collective.
void anchor_gradients(World& world, Processor const& processor, Setup const& setup,
                      std::vector<float> const& policy, VariantResult const& reference,
                      std::vector<VariantResult>& results);

}  // namespace cpstep
