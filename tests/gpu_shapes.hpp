// Sizes, gaps and precisions that tests of element-wise operations go through.
#pragma once

#include <cstdint>
#include <ostream>
#include <vector>

#include "tests/gpu_pair.hpp"

namespace cpstep {

struct Shape {
    std::int64_t rows, cols;
    std::int64_t gap = 0;  ///< of device rows; 8 keeps them aligned for the widest access, 3 not
};
inline std::ostream& operator<<(std::ostream& to, Shape const& s) {
    return to << s.rows << " x " << s.cols << " + " << s.gap;
}

inline std::vector<Shape> const shapes = {{1, 1},        {300, 1, 1},   {67, 131, 3}, {67, 131, 0},
                                          {130, 896},    {130, 896, 8}, {50, 72, 3},  {7, 4864, 8},
                                          {5000, 24, 8}, {3, 9000, 1},  {0, 16, 8}};

using Floats = std::vector<float>;
using Ids = std::vector<std::int32_t>;

/// f(backend, side) on the host and on the device.
template <class F>
void on_both(Precision precision, F const& f) {
    for (Side const side : sides) {
        f(backend_of(side, precision), side);
    }
}

/// What the device has is what the host has, rounded once to dtype; of f32 the same bits.
inline bool equal(Pair const& pair, DType dtype) {
    return pair.values(Side::device) == rounded(pair.values(Side::host), dtype);
}

/// f(precision, dtype) for both precisions.
template <class F>
void in_both_precisions(F const& f) {
    for (Precision const precision : precisions) {
        f(precision, dtype_of_precision(precision));
    }
}

}  // namespace cpstep
