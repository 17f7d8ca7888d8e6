#include "app/advantages.hpp"

#include <algorithm>
#include <cmath>
#include <map>

#include "cuda/error.hpp"

namespace cpstep {

namespace {

// Mean, and sample standard deviation (0 for a single reward), of one group's rewards.
struct GroupStatistics {
    double mean = 0;
    double deviation = 0;
};

GroupStatistics group_statistics(std::vector<double> const& rewards) {
    double const count = static_cast<double>(rewards.size());
    double sum = 0;
    for (double const reward : rewards) {
        sum += reward;
    }
    GroupStatistics result{sum / count, 0.0};
    if (rewards.size() >= 2) {
        double squares = 0;
        for (double const reward : rewards) {
            squares += (reward - result.mean) * (reward - result.mean);
        }
        result.deviation = std::sqrt(squares / (count - 1.0));
    }
    return result;
}

}  // namespace

std::vector<float> group_advantages(std::span<float const> rewards,
                                    std::span<std::int32_t const> groups, bool normalize,
                                    bool std_normalization) {
    require(rewards.size() == groups.size(), ExitCode::internal, "{} rewards for {} group numbers",
            rewards.size(), groups.size());
    std::vector<float> advantages(rewards.begin(), rewards.end());
    if (!normalize) {
        return advantages;
    }
    std::map<std::int32_t, std::vector<double>> members;
    for (std::size_t j = 0; j < rewards.size(); ++j) {
        members[groups[j]].push_back(rewards[j]);
    }
    std::map<std::int32_t, GroupStatistics> statistics;
    for (auto const& [group, values] : members) {
        statistics[group] = group_statistics(values);
    }
    for (std::size_t j = 0; j < rewards.size(); ++j) {
        GroupStatistics const& group = statistics[groups[j]];
        double const centred = static_cast<double>(rewards[j]) - group.mean;
        double const scale = std_normalization ? group.deviation + 1e-6 : 1.0;
        advantages[j] = static_cast<float>(centred / scale);
    }
    return advantages;
}

Moments masked_moments(std::span<float const> advantages, std::span<std::int32_t const> mask) {
    require(advantages.size() == mask.size(), ExitCode::internal, "{} advantages for {} mask rows",
            advantages.size(), mask.size());
    Moments moments;
    for (std::size_t i = 0; i < advantages.size(); ++i) {
        if (mask[i] != 0) {
            double const value = advantages[i];
            moments.sum += value;
            moments.sum_squares += value * value;
            moments.count += 1.0;
        }
    }
    return moments;
}

void whiten(std::span<float> advantages, Moments const& global) {
    require(global.count > 0, ExitCode::input_data,
            "--normalize-advantages needs an unmasked response token, the batch has none");
    double const mean = global.sum / global.count;
    // Rounding can leave the one-pass variance of equal numbers below zero.
    double variance = std::max(0.0, global.sum_squares / global.count - mean * mean);
    if (global.count >= 2) {
        variance *= global.count / (global.count - 1.0);
    }
    double const scale = 1.0 / std::sqrt(variance + 1e-8);
    for (float& value : advantages) {
        value = static_cast<float>((static_cast<double>(value) - mean) * scale);
    }
}

}  // namespace cpstep
