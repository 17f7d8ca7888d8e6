// The same matrix on the host and on the device, for tests that run one operation on both.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/gpu_fixture.hpp"

namespace cpstep {

enum class Side : std::uint8_t { host, device };
inline constexpr std::array<Side, 2> sides{Side::host, Side::device};
inline constexpr std::array<Precision, 2> precisions{Precision::fp32, Precision::bf16};

inline Backend& backend_of(Side side, Precision precision) {
    return side == Side::host ? host() : gpu(precision);
}

/// A host matrix of floats without gaps, and a device matrix whose rows lie `gap` elements apart.
class Pair {
  public:
    Pair(Precision precision, std::int64_t rows, std::int64_t cols, DType dtype,
         std::int64_t gap = 0)
        : host_(host(), rows, cols, DType::f32),
          device_(gpu(precision), rows, cols, dtype, cols + gap) {}
    /// `values` are of dtype already: both sides get the same.
    Pair(Precision precision, std::vector<float> const& values, std::int64_t rows,
         std::int64_t cols, DType dtype, std::int64_t gap = 0)
        : host_(host(), values, rows, cols, DType::f32),
          device_(gpu(precision), values, rows, cols, dtype, cols + gap) {}

    Tensor operator[](Side side) const { return side == Side::host ? host_ : device_; }
    std::vector<float> values(Side side) const {
        return (side == Side::host ? host_ : device_).values();
    }
    /// Relative L2 of the device against the host.
    double error() const { return relative_error(values(Side::device), values(Side::host)); }
    bool gaps_untouched() const { return device_.gaps_untouched(); }

  private:
    DeviceMatrix host_, device_;
};

/// Relative L2 bound of sums of `length` terms in fp32; c <= 8.
inline double fp32_bound(double c, double length) {
    return c * 0x1p-24 * std::sqrt(length);
}
/// Relative L2 bound of values rounded to dtype after an fp32 computation of that bound.
inline double bound_in(DType dtype, double fp32) {
    return dtype == DType::bf16 ? 0x1p-8 : fp32;
}

}  // namespace cpstep
