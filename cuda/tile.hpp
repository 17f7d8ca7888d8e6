// Tiles of attention: cache-aligned copies of rows, and the one inner loop of its matrix products.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cuda/tensor.hpp"

namespace cpstep::tiles {

constexpr std::int64_t tile_rows = 64;  // rows of a tile: 64 x 64 floats are 16 KiB of the L1 cache
constexpr std::int64_t lanes = 8;  // widths of rows are rounded up to one AVX register of floats

constexpr std::int64_t rounded_up(std::int64_t n) {
    return (n + lanes - 1) / lanes * lanes;
}

/// Rows of T that start on cache lines; columns reach up to a multiple of `lanes`.
template <class T>
class TileBuffer {
  public:
    TileBuffer(std::int64_t rows, std::int64_t width)
        : stride_((width + line - 1) / line * line),
          lines_(static_cast<std::size_t>(rows * stride_ / line)) {}

    T* row(std::int64_t i) { return reinterpret_cast<T*>(lines_.data()) + i * stride_; }
    std::int64_t stride() const { return stride_; }
    void zero() { std::fill(lines_.begin(), lines_.end(), Line{}); }

  private:
    static constexpr std::int64_t line = 64 / static_cast<std::int64_t>(sizeof(T));
    struct alignas(64) Line {
        T values[line] = {};
    };
    std::int64_t stride_;
    std::vector<Line> lines_;
};

/// The rows of one head that an item works on: columns [column, column + D) of `matrix`.
template <class T>
struct HeadRows {
    Matrix<T> matrix;
    std::int64_t column;
    std::int64_t head_dim;

    T* row(std::int64_t i) const { return matrix.row(i) + column; }
};

template <class T>
HeadRows<T> head_rows(Matrix<T> matrix, std::int64_t head, std::int64_t head_dim) {
    return {matrix, head * head_dim, head_dim};
}

/// Part of a segment: queries (or keys) [begin, begin + count), counted from the segment's first.
struct Range {
    std::int64_t begin;
    std::int64_t count;
};

/// The rows of tile `t` that lie in [row, row + rows), counted from `row`.
inline Range tile_part(std::int64_t t, std::int64_t row, std::int64_t rows) {
    std::int64_t const begin = std::max(t * tile_rows, row);
    std::int64_t const end = std::min((t + 1) * tile_rows, row + rows);
    return {begin - row, std::max<std::int64_t>(end - begin, 0)};
}

/// out[j] += sum_t a[t] b[t][j] for `count` vectors of columns, which stay in registers over t <
/// terms. GCC 12 keeps an array of T in memory here; the vector type gives 2.4 times its speed.
template <int count, class T>
void add_columns(T* __restrict out, T const* __restrict a, T const* __restrict b,
                 std::int64_t stride, std::int64_t terms) {
    using Vector [[gnu::vector_size(32)]] = T;
    constexpr int length = 32 / sizeof(T);
    Vector sum[count];
#pragma GCC unroll 8
    for (int j = 0; j < count; ++j) {
        std::memcpy(&sum[j], out + j * length, sizeof(Vector));
    }
    for (std::int64_t t = 0; t < terms; ++t, b += stride) {
#pragma GCC unroll 8
        for (int j = 0; j < count; ++j) {
            Vector row;
            std::memcpy(&row, b + j * length, sizeof(row));
            sum[j] += a[t] * row;
        }
    }
#pragma GCC unroll 8
    for (int j = 0; j < count; ++j) {
        std::memcpy(out + j * length, &sum[j], sizeof(Vector));
    }
}

/// out[j] += sum_t a[t] b[t][j] for t < terms, j < width; width is a multiple of `lanes`.
template <class T>
void add_products(T* __restrict out, T const* __restrict a, T const* __restrict b,
                  std::int64_t stride, std::int64_t terms, std::int64_t width) {
    constexpr std::int64_t length = 32 / sizeof(T);
    std::int64_t j = 0;
    for (; j + 8 * length <= width; j += 8 * length) {
        add_columns<8>(out + j, a, b + j, stride, terms);
    }
    for (; j + 4 * length <= width; j += 4 * length) {
        add_columns<4>(out + j, a, b + j, stride, terms);
    }
    for (; j < width; j += length) {
        add_columns<1>(out + j, a, b + j, stride, terms);
    }
}

/// dst (tile_rows, D) = scale * rows; rows after the last are zero.
template <class T>
void load_rows(TileBuffer<T>& dst, HeadRows<T> src, std::int64_t first, std::int64_t count,
               T scale = T(1)) {
    for (std::int64_t i = 0; i < count; ++i) {
        T const* const from = src.row(first + i);
        std::transform(from, from + src.head_dim, dst.row(i), [scale](T x) { return scale * x; });
    }
    std::fill(dst.row(count), dst.row(tile_rows), T(0));
}

/// dst (D, tile_rows) = scale * transposed rows; columns after the last are zero.
template <class T>
void load_transposed(TileBuffer<T>& dst, HeadRows<T> src, std::int64_t first, std::int64_t count,
                     T scale = T(1)) {
    for (std::int64_t i = 0; i < count; ++i) {
        T const* const from = src.row(first + i);
        for (std::int64_t d = 0; d < src.head_dim; ++d) {
            dst.row(d)[i] = scale * from[d];
        }
    }
    for (std::int64_t d = 0; d < src.head_dim; ++d) {
        std::fill(dst.row(d) + count, dst.row(d) + tile_rows, T(0));
    }
}

}  // namespace cpstep::tiles
