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
