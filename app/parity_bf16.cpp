// The checks of a bf16 step: errors against fp32 beside those of the baseline.
#include <algorithm>
#include <string_view>

#include "app/array_loss.hpp"
#include "app/parity_checks.hpp"

namespace cpstep {

namespace {

using namespace parity_checks;

constexpr double absolute = 0x1.0p-10;
constexpr double bf16_half_ulp = 0x1.0p-8;
constexpr double border_width = 0x1.0p-20;  // 16 half ulps of a ratio of 1 in fp32
constexpr double sum_factor = 8;
constexpr double largest_base_error = 0.5;
constexpr double largest_idle_share = 0.01;
constexpr char const* rms_unit = "rms vs fp32";
constexpr char const* base_unit = "vs fp32, to resolve";

/// c(n) of compare_results_bf16().
double margin(std::size_t n) {
    return std::max(1.5, std::exp(4.5 / std::sqrt(static_cast<double>(n))));
}

double rms(std::vector<double> const& values) {
    double sum = 0;
    for (double const value : values) {
        sum += value * value;
    }
    return std::sqrt(sum / static_cast<double>(values.size()));
}

/// rms of a - b; NaN for unequal or no sizes and values that are not finite.
double rms_error(std::vector<double> const& a, std::vector<double> const& b) {
    if (a.size() != b.size() || a.empty()) {
        return nan_value;
    }
    std::vector<double> difference(a.size());
    std::transform(a.begin(), a.end(), b.begin(), difference.begin(), std::minus<>());
    double const result = rms(difference);
    return std::isfinite(result) ? result : nan_value;
}

double sum_of_squares(std::span<float const> values) {
    double sum = 0;
    for (float const value : values) {
        sum += static_cast<double>(value) * value;
    }
    return sum;
}

struct Compared {
    VariantResult const& reference;
    VariantResult const& base;
    VariantResult const& other;
};

void check_array(std::vector<Check>& checks, char const* name, Compared const& results,
                 std::vector<double> VariantResult::* array, Rollout const& rollout) {
    auto const& want = results.reference.*array;
    auto const& base = results.base.*array;
    auto const& got = results.other.*array;
    double const c = margin(want.size());
    double const error = rms_error(got, want);
    double const bound =
        c * rms_error(base, want) + absolute * std::max(1.0, want.empty() ? 0.0 : rms(want));
    Difference const worst = max_difference(got, want);
    double const most = 2 * c * max_difference(base, want).value + bf16_half_ulp * largest(want);
    std::string const place =
        worst.index < 0 ? "unequal or empty" : token_place(rollout, worst.index);
    checks.push_back({results.other.name, name, error, bound, rms_unit, "", holds(error, bound)});
    checks.push_back({results.other.name, std::string(name) + " max", worst.value, most,
                      "max vs fp32", place, holds(worst.value, most)});
}

void check_arrays(std::vector<Check>& checks, Compared const& results, Rollout const& rollout) {
    check_array(checks, "log_probs", results, &VariantResult::log_probs, rollout);
    check_array(checks, "entropy", results, &VariantResult::entropy, rollout);
    if (!results.reference.ref_log_probs.empty() || !results.other.ref_log_probs.empty()) {
        check_array(checks, "ref_log_probs", results, &VariantResult::ref_log_probs, rollout);
    }
}

Check own_check(VariantResult const& result, std::string name, double error, double bound) {
    Check check{result.name, std::move(name),    error, bound, "vs its own arrays",
                "",          holds(error, bound)};
    check.exact = true;
    return check;
}

/// k_j as fp32 adds up its differences old - new.
Check seq_kl_check(VariantResult const& result, ArrayLoss const& loss) {
    Difference const worst = max_difference(result.seq_kl, loss.seq_kl);
    Difference const terms = max_difference(result.old_log_probs, result.log_probs);
    double const bound = sum_factor * half_ulp *
                         std::sqrt(static_cast<double>(result.log_probs.size())) * terms.value;
    Check check = own_check(result, "seq_kl", worst.value, bound);
    check.where = worst.index < 0 ? "unequal or empty" : fmt::format("sample {}", worst.index);
    return check;
}

/// The single numbers of a result against its own tokens and gradients.
void check_own_arrays(std::vector<Check>& checks, VariantResult const& result,
                      Rollout const& rollout, Options const& options) {
    ArrayLoss const loss = loss_of_arrays(result, rollout, options);
    checks.push_back(seq_kl_check(result, loss));
    auto const inside = loss_of_arrays(result, rollout, options, border_width).metrics.named();
    auto const outside = loss_of_arrays(result, rollout, options, -border_width).metrics.named();
    double const size = std::max({1.0, rms(result.log_probs), rms(result.entropy)});
    double const rounding = sum_factor * half_ulp *
                            std::sqrt(static_cast<double>(result.log_probs.size())) * size *
                            largest(result.advantages);
    auto const got = result.metrics.named();
    auto const want = loss.metrics.named();
    for (std::size_t i = 0; i < got.size(); ++i) {
        if (got[i].first != "grad_norm") {
            double const border = std::abs(inside[i].second - outside[i].second);
            checks.push_back(own_check(
                result, got[i].first, std::abs(got[i].second - want[i].second), rounding + border));
        }
    }
    double const norm =
        result.gradients.empty() ? nan_value : std::sqrt(sum_of_squares(result.gradients));
    checks.push_back(own_check(result, "grad_norm", std::abs(result.metrics.grad_norm - norm),
                               sum_factor * half_ulp * norm));
}

Check advantages_check(VariantResult const& base, VariantResult const& other,
                       ParityBounds const& bounds) {
    Difference const worst = max_difference(other.advantages, base.advantages);
    double const bound = bounds.value * largest(base.advantages);
    return {other.name,
            "advantages",
            worst.value,
            bound,
            "max abs",
            worst.index < 0 ? "unequal or empty" : fmt::format("sample {}", worst.index),
            holds(worst.value, bound)};
}

/// What a result's gradients are held against.
std::vector<float> const& fp32_gradients(VariantResult const& reference,
                                         VariantResult const& result) {
    return result.fp32_gradients.empty() ? reference.gradients : result.fp32_gradients;
}

Check gradient_check(std::string name, std::string const& variant, std::size_t elements,
                     double of_base, double error) {
    double const bound = margin(elements) * of_base + absolute;
    return {variant, std::move(name), error, bound, "rel L2 vs fp32", "", holds(error, bound)};
}

void check_gradients(std::vector<Check>& checks, Compared const& results,
                     ParameterLayout const& layout, Options const& options) {
    auto const& [reference, base, other] = results;
    auto const& want_base = fp32_gradients(reference, base);
    auto const& want = fp32_gradients(reference, other);
    UpdateBound const update(options.adamw, options.clip_grad, base, other);
    checks.push_back(gradient_check("whole gradient", other.name, want.size(),
                                    relative_l2(base.gradients, want_base),
                                    relative_l2(other.gradients, want)));
    for (Parameter const& parameter : layout.parameters) {
        auto const error = [&](VariantResult const& result, std::vector<float> const& fp32) {
            return relative_l2(part(result.gradients, parameter), part(fp32, parameter));
        };
        checks.push_back(gradient_check("gradient " + parameter.spec.name, other.name,
                                        static_cast<std::size_t>(parameter.elements()),
                                        error(base, want_base), error(other, want)));
        checks.push_back(updated_check(base, other, parameter, update));
    }
}

/// Whether errors of this size leave room to see a wrong variant.
Check resolution_check(VariantResult const& base, std::string name, double error) {
    return {base.name,
            std::move(name),
            error,
            largest_base_error,
            base_unit,
            "",
            holds(error, largest_base_error)};
}

/// The share of |gradient|^2 that lies in tensors the baseline itself has more wrong than right.
Check idle_tensors_check(VariantResult const& reference, VariantResult const& base,
                         ParameterLayout const& layout) {
    double all = 0;
    double idle = 0;
    std::string first;
    int count = 0;
    for (Parameter const& parameter : layout.parameters) {
        auto const want = part(fp32_gradients(reference, base), parameter);
        double const squares = sum_of_squares(want);
        all += squares;
        if (!(relative_l2(part(base.gradients, parameter), want) <= largest_base_error)) {
            idle += squares;
            first = count++ == 0 ? parameter.spec.name : first;
        }
    }
    double const share = all > 0 ? idle / all : 0;
    std::string const where = count > 1 ? fmt::format("{} and {} more", first, count - 1) : first;
    return {base.name,
            "unresolved",
            share,
            largest_idle_share,
            "of |gradient|^2",
            where,
            holds(share, largest_idle_share)};
}

}  // namespace

std::vector<Check> compare_results_bf16(VariantResult const& reference, VariantResult const& base,
                                        VariantResult const& other, ParameterLayout const& layout,
                                        Rollout const& rollout, Options const& options) {
    Compared const results{reference, base, other};
    std::vector<Check> checks;
    check_arrays(checks, results, rollout);
    check_own_arrays(checks, other, rollout, options);
    checks.push_back(advantages_check(base, other, ParityBounds(layout.config, rollout)));
    check_gradients(checks, results, layout, options);
    return checks;
}

std::vector<Check> check_baseline_bf16(VariantResult const& reference, VariantResult const& base,
                                       ParameterLayout const& layout, Rollout const& rollout,
                                       Options const& options) {
    std::vector<Check> checks{
        resolution_check(base, "log_probs", rms_error(base.log_probs, reference.log_probs)),
        resolution_check(base, "entropy", rms_error(base.entropy, reference.entropy)),
        resolution_check(base, "whole gradient",
                         relative_l2(base.gradients, fp32_gradients(reference, base))),
        idle_tensors_check(reference, base, layout)};
    if (!reference.ref_log_probs.empty()) {
        checks.push_back(resolution_check(base, "ref_log_probs",
                                          rms_error(base.ref_log_probs, reference.ref_log_probs)));
    }
    check_own_arrays(checks, base, rollout, options);
    return checks;
}

bool limits_resolution(Check const& check) {
    return check.unit == base_unit || check.name == "unresolved";
}

}  // namespace cpstep
