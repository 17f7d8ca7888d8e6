// y_c = x_c r w_c, r = 1/sqrt(mean_c x_c^2 + eps).   x,y (S,h)  w (1,h)   Zhang & Sennrich 2019
// Sums over a row and over the rows are kept in double: h and S terms would cost float 1e-6 and
// more.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "cuda/layers.hpp"
#include "cuda/operands.hpp"
#include "cuda/shape.hpp"

namespace cpstep {
namespace {

/// dx_c += r (g_c - n_c mean_c(g n)), n_c = x_c r, g_c = dy_c w_c, for one row.
template <class T>
void add_row_gradient(T* dx, T const* dy, T const* x, T const* w, T r, std::int64_t h) {
    double dot = 0.0;
    for (std::int64_t c = 0; c < h; ++c) {
        dot += static_cast<double>(dy[c] * w[c]) * static_cast<double>(x[c]);
    }
    T const mean = static_cast<T>(dot * static_cast<double>(r) / static_cast<double>(h));
    for (std::int64_t c = 0; c < h; ++c) {
        dx[c] += r * (dy[c] * w[c] - x[c] * r * mean);
    }
}

/// dw_c += sum_s dy_c x_c r_s for columns [begin, begin + count).
template <class T>
void add_weight_gradient(Matrix<T> dw, Matrix<T> dy, Matrix<T> x, Matrix<T> rstd,
                         std::int64_t begin, std::int64_t count) {
    std::array<double, column_block> sum{};
    for (std::int64_t s = 0; s < x.rows; ++s) {
        T const* const dy_row = dy.row(s) + begin;
        T const* const x_row = x.row(s) + begin;
        T const r = *rstd.row(s);
        for (std::int64_t c = 0; c < count; ++c) {
            sum[static_cast<std::size_t>(c)] += static_cast<double>(dy_row[c] * (x_row[c] * r));
        }
    }
    for (std::int64_t c = 0; c < count; ++c) {
        dw.data[begin + c] += static_cast<T>(sum[static_cast<std::size_t>(c)]);
    }
}

}  // namespace

template <class T>
void rmsnorm_forward(Matrix<T> y, Matrix<T> rstd, Matrix<T> x, Matrix<T> delta, Matrix<T> w,
                     T eps) {
    check_rmsnorm_forward(y, rstd, x, delta, w);
    std::int64_t const h = x.cols;
#pragma omp parallel for schedule(static) if (x.rows * h >= parallel_elements)
    for (std::int64_t s = 0; s < x.rows; ++s) {
        T* const x_row = x.row(s);
        T* const y_row = y.row(s);
        if (!delta.absent()) {
            T const* const delta_row = delta.row(s);
            for (std::int64_t c = 0; c < h; ++c) {
                x_row[c] += delta_row[c];
            }
        }
        double square = 0.0;
        for (std::int64_t c = 0; c < h; ++c) {
            square += static_cast<double>(x_row[c]) * static_cast<double>(x_row[c]);
        }
        double const mean = square / static_cast<double>(h);
        T const r = static_cast<T>(1.0 / std::sqrt(mean + static_cast<double>(eps)));
        *rstd.row(s) = r;
        for (std::int64_t c = 0; c < h; ++c) {
            y_row[c] = x_row[c] * r * w.data[c];
        }
    }
}

template <class T>
void rmsnorm_backward(Matrix<T> dx, Matrix<T> dw, Matrix<T> dy, Matrix<T> x, Matrix<T> w,
                      Matrix<T> rstd) {
    check_rmsnorm_backward(dx, dw, dy, x, w, rstd);
    std::int64_t const h = x.cols;
#pragma omp parallel for schedule(static) if (x.rows * h >= parallel_elements)
    for (std::int64_t s = 0; s < x.rows; ++s) {
        add_row_gradient(dx.row(s), dy.row(s), x.row(s), w.data, *rstd.row(s), h);
    }
#pragma omp parallel for schedule(static) if (x.rows * h >= parallel_elements)
    for (std::int64_t begin = 0; begin < h; begin += column_block) {
        add_weight_gradient(dw, dy, x, rstd, begin, std::min(column_block, h - begin));
    }
}

template void rmsnorm_forward(Matrix<float>, Matrix<float>, Matrix<float>, Matrix<float>,
                              Matrix<float>, float);
template void rmsnorm_forward(Matrix<double>, Matrix<double>, Matrix<double>, Matrix<double>,
                              Matrix<double>, double);
template void rmsnorm_backward(Matrix<float>, Matrix<float>, Matrix<float>, Matrix<float>,
                               Matrix<float>, Matrix<float>);
template void rmsnorm_backward(Matrix<double>, Matrix<double>, Matrix<double>, Matrix<double>,
                               Matrix<double>, Matrix<double>);

}  // namespace cpstep
