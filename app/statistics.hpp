// Medians, spread and the paired bootstrap of ABBA blocks.
#pragma once

#include <cstdint>
#include <span>

namespace cpstep {

/// Median of a non-empty set; the mean of the middle two for an even count.
double median(std::span<double const> values);
/// Linear-interpolated quantile, q in [0,1].
double quantile(std::span<double const> values, double q);
/// Median absolute deviation from the median.
double median_abs_deviation(std::span<double const> values);

struct RatioEstimate {
    double ratio = 0;  ///< exp(median of per-block log ratios)
    double low = 0;    ///< 95 % bootstrap interval, resampling blocks
    double high = 0;
    std::int64_t blocks = 0;
};

/// `log_ratios`: one per ABBA block, log(mean T_variant / mean T_base). 10 000 resamples from
/// `seed`.
RatioEstimate bootstrap_ratio(std::span<double const> log_ratios, std::uint64_t seed);

/// pass: high <= gate; fail: low > gate; inconclusive otherwise.
enum class GateResult : std::uint8_t { off, pass, fail, inconclusive };
GateResult judge_gate(RatioEstimate const& estimate, double gate);

}  // namespace cpstep
