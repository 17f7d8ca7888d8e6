// One block of memory handed out as matrices.
#pragma once

#include "cuda/tensor.hpp"

namespace cpstep {

/// The contiguous matrix that begins `offset` bytes into a contiguous block.
inline Tensor matrix_at(Tensor block, std::int64_t offset, std::int64_t rows, std::int64_t cols,
                        DType dtype) {
    Tensor const part{static_cast<std::byte*>(block.data) + offset, dtype, rows, cols, cols};
    require(offset >= 0 && offset + static_cast<std::int64_t>(part.bytes()) <=
                               static_cast<std::int64_t>(block.bytes()),
            ExitCode::internal, "a matrix of {} x {} at byte {} does not fit a block of {}", rows,
            cols, offset, block.bytes());
    return part;
}

/// Consecutive contiguous views of a block, each on a 256-byte border as device kernels like it.
class Carver {
  public:
    explicit Carver(Tensor block) : block_(block) {}

    Tensor take(std::int64_t rows, std::int64_t cols, DType dtype) {
        Tensor const part = matrix_at(block_, at_, rows, cols, dtype);
        at_ += bytes(rows, cols, dtype);
        return part;
    }

    /// Bytes that take(rows, cols, dtype) uses up.
    static constexpr std::int64_t bytes(std::int64_t rows, std::int64_t cols, DType dtype) {
        constexpr std::int64_t border = 256;
        std::int64_t const taken = rows * cols * static_cast<std::int64_t>(element_bytes(dtype));
        return (taken + border - 1) / border * border;
    }

  private:
    Tensor block_;
    std::int64_t at_ = 0;
};

}  // namespace cpstep
