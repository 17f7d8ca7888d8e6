// Advantages from rewards: grouping and whitening.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace cpstep {

/// grpo/gspo/cispo: reward minus group mean, over (sample std + 1e-6) for groups of two or more; a
/// singleton group gives 0. `std_normalization` off: no division; `normalize` off: the rewards
/// themselves.
std::vector<float> group_advantages(std::span<float const> rewards,
                                    std::span<std::int32_t const> groups, bool normalize,
                                    bool std_normalization);

/// Sums over unmasked rows; added up over ranks before whiten().
struct Moments {
    double sum = 0;
    double sum_squares = 0;
    double count = 0;
};
Moments masked_moments(std::span<float const> advantages, std::span<std::int32_t const> mask);

/// A <- (A - mean) / sqrt(var + 1e-8), var with Bessel's correction for two rows or more. `global`
/// are the sums over DP x CP; Error(input_data) when count is 0.
void whiten(std::span<float> advantages, Moments const& global);

}  // namespace cpstep
