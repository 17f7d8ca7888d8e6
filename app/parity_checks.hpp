// Pieces that the checks of parity.cpp and parity_bf16.cpp share. Private to them.
#pragma once

#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "app/parity.hpp"

namespace cpstep::parity_checks {

inline constexpr double nan_value = std::numeric_limits<double>::quiet_NaN();
inline constexpr double half_ulp = 0x1.0p-24;

/// Written so that NaN is false.
inline bool holds(double measured, double bound) {
    return std::isfinite(bound) && measured <= bound;
}

/// The largest magnitude of an array, at least 1.
double largest(std::vector<double> const& values);

/// The slice of a gathered array that is a parameter's.
std::span<float const> part(std::vector<float> const& array, Parameter const& parameter);

/// AdamW's first step moves a weight by lr g/(|g|+eps) after clipping. Two gradients a, b move it
/// apart by at most lr 2|a-b|/(max(|a|,|b|)+eps): the exact difference is
/// eps|a-b|/((|a|+eps)(|b|+eps)) for equal signs and at most twice the larger term for unequal
/// ones. To this comes the rounding of w itself: 4 half ulps.
struct UpdateBound {
    UpdateBound(AdamWOptions const& adamw, double clip_grad, VariantResult const& a,
                VariantResult const& b);

    double operator()(double a, double b, double w) const;

    double lr, eps, clip_a, clip_b;
};

Check updated_check(VariantResult const& base, VariantResult const& other,
                    Parameter const& parameter, UpdateBound const& bound);

}  // namespace cpstep::parity_checks
