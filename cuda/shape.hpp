// Conditions on shapes and the sizes at which host loops are shared among threads.
#pragma once

#include <cstdint>

#include "cuda/tensor.hpp"

namespace cpstep {

/// Fewer elements than this are not worth waking the threads for (about 10 us of work).
inline constexpr std::int64_t parallel_elements = 16384;

/// Columns a thread sums down all rows. Sums over rows are split by columns only, so that the order
/// of each sum, and with it every bit, is the same for any number of threads.
inline constexpr std::int64_t column_block = 64;

/// Of views of the host (Matrix) or of a device (Tensor).
template <class A, class B>
bool same_shape(A a, B b) {
    return a.rows == b.rows && a.cols == b.cols;
}

template <class A>
bool has_shape(A a, std::int64_t rows, std::int64_t cols) {
    return a.rows == rows && a.cols == cols;
}

}  // namespace cpstep
