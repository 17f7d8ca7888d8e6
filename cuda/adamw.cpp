// AdamW and the squared norm over a flat arena (N,1).   Loshchilov & Hutter 2019, PyTorch's order
#include "cuda/adamw.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cuda/shape.hpp"

namespace cpstep {
namespace {

/// Elements summed as one; block sums are added in order, so the result ignores the thread count.
constexpr std::int64_t norm_block = 65536;

/// Sum of squares of elements [begin, end) of x, counted along its rows.
template <class T>
double block_sum(Matrix<T> x, std::int64_t begin, std::int64_t end) {
    double sum = 0.0;
    while (begin < end) {
        std::int64_t const col = begin % x.cols;
        std::int64_t const count = std::min(x.cols - col, end - begin);
        T const* const values = x.row(begin / x.cols) + col;
        for (std::int64_t i = 0; i < count; ++i) {
            sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
        }
        begin += count;
    }
    return sum;
}

/// Factors of one update: everything that does not depend on the element, found in double.
template <class T>
struct UpdateFactors {
    T gradient_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
    T root_correction2;  ///< sqrt(1 - beta2^step)
    T step_size;         ///< lr / (1 - beta1^step)
    T eps;
    T decay;  ///< lr * weight_decay, where decay applies
};

template <class T>
UpdateFactors<T> update_factors(AdamWOptions const& o) {
    double const step = static_cast<double>(o.step);
    return {static_cast<T>(o.gradient_scale),
            static_cast<T>(o.beta1),
            static_cast<T>(1.0 - o.beta1),
            static_cast<T>(o.beta2),
            static_cast<T>(1.0 - o.beta2),
            static_cast<T>(std::sqrt(1.0 - std::pow(o.beta2, step))),
            static_cast<T>(o.lr / (1.0 - std::pow(o.beta1, step))),
            static_cast<T>(o.eps),
            static_cast<T>(o.lr * o.weight_decay)};
}

}  // namespace

template <class T>
void adamw(Matrix<T> w, Matrix<T> m, Matrix<T> v, Matrix<T> g,
           std::span<ParameterRange const> ranges, AdamWOptions const& options) {
    for (Matrix<T> const& array : {w, m, v, g}) {
        require(has_shape(array, w.rows, 1) && (array.stride == 1 || w.rows <= 1),
                ExitCode::internal, "adamw: an array is {} x {} with stride {}, expected {} x 1",
                array.rows, array.cols, array.stride, w.rows);
    }
    require(options.step >= 1, ExitCode::internal, "adamw: step is {}, the first is 1",
            options.step);
    for (ParameterRange const& range : ranges) {
        require(range.begin >= 0 && range.begin <= range.end && range.end <= w.rows,
                ExitCode::internal, "adamw: range [{}, {}) is outside the arena of {}", range.begin,
                range.end, w.rows);
    }
    UpdateFactors<T> const f = update_factors<T>(options);
    for (ParameterRange const& range : ranges) {
        T const decay = range.decay ? f.decay : T{0};
#pragma omp parallel for simd schedule(static) if (range.end - range.begin >= parallel_elements)
        for (std::int64_t i = range.begin; i < range.end; ++i) {
            T const gradient = f.gradient_scale * g.data[i];
            m.data[i] = f.beta1 * m.data[i] + f.one_minus_beta1 * gradient;
            v.data[i] = f.beta2 * v.data[i] + f.one_minus_beta2 * gradient * gradient;
            T const denominator = std::sqrt(v.data[i]) / f.root_correction2 + f.eps;
            w.data[i] -= f.step_size * m.data[i] / denominator + decay * w.data[i];
        }
    }
}

template <class T>
double squared_norm(Matrix<T> x) {
    std::int64_t const count = x.rows * x.cols;
    if (x.stride == x.cols) {
        x = {x.data, 1, count, count};
    }
    std::int64_t const blocks = (count + norm_block - 1) / norm_block;
    std::vector<double> sums(static_cast<std::size_t>(blocks));
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (std::int64_t b = 0; b < blocks; ++b) {
        sums[static_cast<std::size_t>(b)] =
            block_sum(x, b * norm_block, std::min(count, (b + 1) * norm_block));
    }
    double total = 0.0;
    for (double const sum : sums) {
        total += sum;
    }
    return total;
}

template void adamw(Matrix<float>, Matrix<float>, Matrix<float>, Matrix<float>,
                    std::span<ParameterRange const>, AdamWOptions const&);
template void adamw(Matrix<double>, Matrix<double>, Matrix<double>, Matrix<double>,
                    std::span<ParameterRange const>, AdamWOptions const&);
template double squared_norm(Matrix<float>);
template double squared_norm(Matrix<double>);

}  // namespace cpstep
