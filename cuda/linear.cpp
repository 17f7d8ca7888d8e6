// y = x w^T + b.   y (S,out)  x (S,in)  w (out,in)  b (1,out)
#include <algorithm>
#include <array>
#include <cstdint>

#include "cuda/gemm.hpp"
#include "cuda/layers.hpp"
#include "cuda/operands.hpp"
#include "cuda/shape.hpp"

namespace cpstep {
namespace {

template <class T>
void add_bias(Matrix<T> y, Matrix<T> b) {
#pragma omp parallel for schedule(static) if (y.rows * y.cols >= parallel_elements)
    for (std::int64_t s = 0; s < y.rows; ++s) {
        T* const row = y.row(s);
        for (std::int64_t c = 0; c < y.cols; ++c) {
            row[c] += b.data[c];
        }
    }
}

/// db_c += sum_s dy_sc, summed in double.
template <class T>
void add_column_sums(Matrix<T> db, Matrix<T> dy) {
#pragma omp parallel for schedule(static) if (dy.rows * dy.cols >= parallel_elements)
    for (std::int64_t begin = 0; begin < dy.cols; begin += column_block) {
        std::int64_t const count = std::min(column_block, dy.cols - begin);
        std::array<double, column_block> sum{};
        for (std::int64_t s = 0; s < dy.rows; ++s) {
            T const* const row = dy.row(s) + begin;
            for (std::int64_t c = 0; c < count; ++c) {
                sum[static_cast<std::size_t>(c)] += static_cast<double>(row[c]);
            }
        }
        for (std::int64_t c = 0; c < count; ++c) {
            db.data[begin + c] += static_cast<T>(sum[static_cast<std::size_t>(c)]);
        }
    }
}

}  // namespace

template <class T>
void linear_forward(Matrix<T> y, Matrix<T> x, Matrix<T> w, Matrix<T> b) {
    check_linear_forward(y, x, w, b);
    if (x.rows == 0) {
        return;
    }
    gemm<T>(false, true, x.rows, w.rows, w.cols, T{1}, x.data, x.stride, w.data, w.stride, T{0},
            y.data, y.stride);
    if (!b.absent()) {
        add_bias(y, b);
    }
}

template <class T>
void linear_backward(Matrix<T> dx, Matrix<T> dw, Matrix<T> db, Matrix<T> dy, Matrix<T> x,
                     Matrix<T> w, bool add_dx) {
    check_linear_backward(dx, dw, db, dy, x, w);
    if (x.rows == 0) {
        return;
    }
    if (!dx.absent()) {
        gemm<T>(false, false, x.rows, w.cols, w.rows, T{1}, dy.data, dy.stride, w.data, w.stride,
                add_dx ? T{1} : T{0}, dx.data, dx.stride);
    }
    gemm<T>(true, false, w.rows, w.cols, x.rows, T{1}, dy.data, dy.stride, x.data, x.stride, T{1},
            dw.data, dw.stride);
    if (!db.absent()) {
        add_column_sums(db, dy);
    }
}

template void linear_forward(Matrix<float>, Matrix<float>, Matrix<float>, Matrix<float>);
template void linear_forward(Matrix<double>, Matrix<double>, Matrix<double>, Matrix<double>);
template void linear_backward(Matrix<float>, Matrix<float>, Matrix<float>, Matrix<float>,
                              Matrix<float>, Matrix<float>, bool);
template void linear_backward(Matrix<double>, Matrix<double>, Matrix<double>, Matrix<double>,
                              Matrix<double>, Matrix<double>, bool);

}  // namespace cpstep
