// Does a variant compute what the baseline computes? Every quantity with a derived bound.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "app/parameters.hpp"
#include "app/results.hpp"

namespace cpstep {

/// One comparison. NaN, Inf, empty and unequal sizes never pass.
struct Check {
    std::string variant;
    std::string name;  ///< "log_probs", "gradient model.norm.weight", "ledger", ...
    double measured = 0;
    double bound = 0;
    std::string unit;   ///< "max abs", "rel L2", "calls"
    std::string where;  ///< worst place: "sample 3 token 17", a label
    bool pass = false;
    bool exact = false;  ///< arithmetic that no rounding of the step enters
};

/// Rounding bounds of fp32 sums, c eps sqrt(length) with c = 8 and eps = 2^-24 (half an ulp of 1):
/// forward length = L (2h + F + T) + h + V, the inner dimensions of the products and sums a
/// log-prob passes through (T: longest sequence), added because their errors are independent;
/// backward length = 2 forward length + tokens of the batch, since a gradient runs through the
/// chain twice and is summed over tokens.
struct ParityBounds {
    ParityBounds(ModelConfig const& config, Rollout const& rollout);

    double value;     ///< relative to max(1, largest magnitude of the array)
    double gradient;  ///< relative L2 of a tensor
};

/// Forward values, per-sample sequence KL, metrics, every gradient tensor, every updated weight,
/// replicas, ledger. Root only (it holds the gradients).
std::vector<Check> compare_results(VariantResult const& base, VariantResult const& other,
                                   ParameterLayout const& layout, Rollout const& rollout,
                                   AdamWOptions const& adamw, double clip_grad);

/// The same in bf16, where bounds from sizes alone would be wide enough to hide bugs. Errors are
/// taken against `reference`, the baseline in fp32; with e that of the baseline, `other` may have
///   rms over tokens         c(n) e + 2^-10 max(1, rms of the reference)
///   largest over tokens   2 c(n) e + 2^-8 max(1, largest of the reference)
///   relative L2 of a tensor's gradient, and of all  c(n) e + 2^-10
/// c(n) = max(1.5, exp(4.5 / sqrt(n))): the logarithms of two rms of n independent errors differ
/// with a standard deviation of 1/sqrt(n); 4.5 of them are within 1.5 from 124 values on. The
/// largest error is a single draw of a long tail, hence the 2. The absolute term is about one
/// rounding to bf16, for a baseline that has none by chance: half an ulp is 2^-8, the rms of a
/// rounding 2^-9.2 of the value.
/// Single numbers (k_j, metrics, the norm) have no error ratio, one of them is 0 by chance. They
/// are sums that bf16 has no part in, so each must be what the host makes of other's own tokens and
/// gradients in double: c eps sqrt(tokens) max(1, |A|) max(1, rms of log-probs and entropies), c
/// and eps as in ParityBounds, plus the weight of tokens within 2^-20 of a border of clipping.
/// Advantages and updated weights as in compare_results(). Gradients of a result are held against
/// its fp32_gradients where it has them, else against those of `reference`.
std::vector<Check> compare_results_bf16(VariantResult const& reference, VariantResult const& base,
                                        VariantResult const& other, ParameterLayout const& layout,
                                        Rollout const& rollout, Options const& options);

/// Of the baseline: its numbers against its own arrays, and whether its errors leave anything to
/// tell a right variant from a wrong one by: rms of log-probs and entropies (nats) and the relative
/// error of the whole gradient at most 0.5, no more than 1 % of its square in tensors above that.
std::vector<Check> check_baseline_bf16(VariantResult const& reference, VariantResult const& base,
                                       ParameterLayout const& layout, Rollout const& rollout,
                                       Options const& options);
/// A check of check_baseline_bf16() that fails makes every other one idle.
bool limits_resolution(Check const& check);

/// Sharp attention (large K biases) and the like amplify rounding beyond what sizes explain.
/// `noise` is compare_results() of the baseline and itself after TrainStep::run_nudged: each bound
/// becomes at least 8 times the same check's difference there; that of a sum over tokens grows with
/// the bounds of its terms. Returns the largest factor by which the bound of an array or a gradient
/// grew, 1 if none did.
double widen_bounds(std::vector<Check>& checks, std::vector<Check> const& noise);
/// Bounds that grew more than this prove nothing: a wrong gradient of some per cent would pass, and
/// a right one may fail.
inline constexpr double max_growth = 100;
/// The check compares finite numbers that rounding moves, so that noise may explain its failure.
bool noise_may_explain(Check const& check);

/// Checks one result alone: each response token from one rank, replicas equal, ledger against
/// budget.
std::vector<Check> check_result(VariantResult const& result);

/// Where the first NaN or Inf of a result is, "" if none.
std::string first_nonfinite(VariantResult const& result, ParameterLayout const& layout,
                            Rollout const& rollout);

/// "sample j token t" of a response index.
std::string token_place(Rollout const& rollout, std::int64_t index);

/// max |a-b| with its index; NaN anywhere, unequal or zero size give NaN.
struct Difference {
    double value;
    std::int64_t index;
};
Difference max_difference(std::vector<double> const& a, std::vector<double> const& b);
/// |a-b| / |b| over a range, in double; 0 when both are zero; NaN if any value is not finite or the
/// range is empty.
double relative_l2(std::span<float const> a, std::span<float const> b);

}  // namespace cpstep
