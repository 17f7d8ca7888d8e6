// Views of a backend's memory: `Matrix<T>` typed (host operations), `Tensor` type-erased (Backend).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/error.hpp"

namespace cpstep {

/// Element types a backend computes with. bf16: the high 16 bits of a float.
enum class DType : std::uint8_t { f32, i32, bf16 };

template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
    static constexpr DType value = DType::f32;
};
template <>
struct dtype_of<std::int32_t> {
    static constexpr DType value = DType::i32;
};

/// Bytes of one element.
constexpr std::size_t element_bytes(DType dtype) {
    return dtype == DType::bf16 ? 2 : 4;
}

/// A typed view of `rows` x `cols` elements, row i at data + i*stride. Never owns.
template <class T>
struct Matrix {
    T* data = nullptr;
    std::int64_t rows = 0;
    std::int64_t cols = 0;
    std::int64_t stride = 0;

    T* row(std::int64_t i) const { return data + i * stride; }
    bool absent() const { return data == nullptr; }
};

/// A view of `rows` x `cols` elements in a backend's memory, row i at data + i*stride elements.
/// A vector of n elements is n x 1. An absent optional argument is a default-constructed Tensor.
struct Tensor {
    void* data = nullptr;
    DType dtype = DType::f32;
    std::int64_t rows = 0;
    std::int64_t cols = 0;
    std::int64_t stride = 0;

    bool absent() const { return data == nullptr; }
    bool contiguous() const { return stride == cols || rows <= 1; }
    std::int64_t elements() const { return rows * cols; }
    std::size_t bytes() const {
        return static_cast<std::size_t>(elements()) * element_bytes(dtype);
    }

    /// Columns [begin, begin + count) of every row.
    Tensor columns(std::int64_t begin, std::int64_t count) const {
        return slice(0, rows, begin, count);
    }
    /// Rows [begin, begin + count).
    Tensor row_range(std::int64_t begin, std::int64_t count) const {
        return slice(begin, count, 0, cols);
    }

    /// The typed view; the element type must match.
    template <class T>
    Matrix<T> as() const {
        require(absent() || dtype == dtype_of<T>::value, ExitCode::internal,
                "tensor accessed with another element type");
        return {static_cast<T*>(data), rows, cols, stride};
    }

  private:
    Tensor slice(std::int64_t row, std::int64_t n_rows, std::int64_t col,
                 std::int64_t n_cols) const {
        require(row >= 0 && n_rows >= 0 && row + n_rows <= rows && col >= 0 && n_cols >= 0 &&
                    col + n_cols <= cols,
                ExitCode::internal, "tensor slice out of range");
        auto* bytes = static_cast<std::byte*>(data);
        auto const offset = static_cast<std::size_t>(row * stride + col) * element_bytes(dtype);
        return {bytes + offset, dtype, n_rows, n_cols, stride};
    }
};

}  // namespace cpstep
