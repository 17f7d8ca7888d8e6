// One block of floats handed out as matrices.
#pragma once

#include "cuda/tensor.hpp"

namespace cpstep {

/// The contiguous matrix that begins at element `offset` of a contiguous block.
inline Tensor matrix_at(Tensor block, std::int64_t offset, std::int64_t rows, std::int64_t cols) {
    Tensor flat = block;
    flat.rows = block.elements();
    flat.cols = flat.stride = 1;
    Tensor part = flat.row_range(offset, rows * cols);
    part.rows = rows;
    part.cols = part.stride = cols;
    return part;
}

/// Consecutive contiguous views of a block, each on a 256-byte border as device kernels like it.
class Carver {
  public:
    explicit Carver(Tensor block) : block_(block) {}

    Tensor take(std::int64_t rows, std::int64_t cols) {
        Tensor const part = matrix_at(block_, at_, rows, cols);
        at_ += floats(rows, cols);
        return part;
    }

    /// Floats that take(rows, cols) uses up.
    static constexpr std::int64_t floats(std::int64_t rows, std::int64_t cols) {
        constexpr std::int64_t border = 64;
        return (rows * cols + border - 1) / border * border;
    }

  private:
    Tensor block_;
    std::int64_t at_ = 0;
};

}  // namespace cpstep
