// An exponential that compilers vectorise.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace cpstep {

/// e^x. double: std::exp.
template <class T>
inline T exp_inline(T x) {
    return std::exp(x);
}

/// e^x without a call or a branch: x = n ln2 + r with |r| <= ln2 / 2, Taylor of e^r to r^7 (its
/// remainder is 5e-9), 2^n written into the exponent. Error below 2 units in the last place; 0
/// below -87.33 (no subnormals), infinity above 88.37 (n = 127.5), NaN for NaN.
template <>
inline float exp_inline<float>(float x) {
    constexpr float lowest = -87.33F;
    constexpr float highest = 88.37F;
    constexpr float log2_e = 1.44269504F;
    constexpr float ln2_high = 0.693359375F;  // ln2 in two parts: n * ln2_high is exact
    constexpr float ln2_low = -2.12194440e-4F;
    float const inside = x > lowest ? (x < highest ? x : highest) : lowest;
    float const n = std::nearbyint(inside * log2_e);
    float const r = std::fma(n, -ln2_low, std::fma(n, -ln2_high, inside));
    float p = 1.0F / 5040;
    p = std::fma(p, r, 1.0F / 720);
    p = std::fma(p, r, 1.0F / 120);
    p = std::fma(p, r, 1.0F / 24);
    p = std::fma(p, r, 1.0F / 6);
    p = std::fma(p, r, 0.5F);
    p = std::fma(p, r, 1.0F);
    p = std::fma(p, r, 1.0F);
    auto const exponent = static_cast<std::uint32_t>(static_cast<std::int32_t>(n) + 127);
    float const y = p * std::bit_cast<float>(exponent << 23);
    float const bounded = x < highest ? y : std::numeric_limits<float>::infinity();
    float const result = x > lowest ? bounded : 0.0F;
    return x != x ? x : result;
}

}  // namespace cpstep
