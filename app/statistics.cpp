#include "app/statistics.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

#include "cuda/error.hpp"

namespace cpstep {
namespace {

constexpr int kResamples = 10000;

std::vector<double> sorted_copy(std::span<double const> values) {
    require(!values.empty(), ExitCode::internal, "statistics of an empty set");
    for (double const value : values) {
        require(std::isfinite(value), ExitCode::nonfinite, "statistics of a non-finite value: {}",
                value);
    }
    std::vector<double> sorted(values.begin(), values.end());
    std::sort(sorted.begin(), sorted.end());
    return sorted;
}

double quantile_of_sorted(std::vector<double> const& sorted, double q) {
    require(q >= 0 && q <= 1, ExitCode::internal, "quantile {} is outside [0, 1]", q);
    double const position = q * static_cast<double>(sorted.size() - 1);
    auto const below = static_cast<std::size_t>(position);
    std::size_t const above = std::min(below + 1, sorted.size() - 1);
    double const fraction = position - static_cast<double>(below);
    return sorted[below] + fraction * (sorted[above] - sorted[below]);
}

}  // namespace

double median(std::span<double const> values) {
    return quantile_of_sorted(sorted_copy(values), 0.5);
}

double quantile(std::span<double const> values, double q) {
    return quantile_of_sorted(sorted_copy(values), q);
}

double median_abs_deviation(std::span<double const> values) {
    double const center = median(values);
    std::vector<double> deviations;
    for (double const value : values) {
        deviations.push_back(std::abs(value - center));
    }
    return median(deviations);
}

RatioEstimate bootstrap_ratio(std::span<double const> log_ratios, std::uint64_t seed) {
    RatioEstimate estimate{.ratio = std::exp(median(log_ratios)),
                           .low = 0,
                           .high = 0,
                           .blocks = static_cast<std::int64_t>(log_ratios.size())};
    // Engine and index mapping are fixed by us: std::uniform_int_distribution differs between
    // standard libraries. The bias of the remainder is below blocks / 2^64.
    std::mt19937_64 engine(seed);
    std::vector<double> resample(log_ratios.size());
    std::vector<double> medians;
    medians.reserve(kResamples);
    for (int i = 0; i < kResamples; ++i) {
        for (double& value : resample) {
            value = log_ratios[engine() % log_ratios.size()];
        }
        medians.push_back(median(resample));
    }
    estimate.low = std::exp(quantile(medians, 0.025));
    estimate.high = std::exp(quantile(medians, 0.975));
    return estimate;
}

GateResult judge_gate(RatioEstimate const& estimate, double gate) {
    if (gate <= 0) {
        return GateResult::off;
    }
    if (estimate.high <= gate) {
        return GateResult::pass;
    }
    return estimate.low > gate ? GateResult::fail : GateResult::inconclusive;
}

}  // namespace cpstep
