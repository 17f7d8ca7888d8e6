#include "cuda/lm_head.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "cuda/exp.hpp"
#include "cuda/gemm.hpp"
#include "cuda/operands.hpp"

namespace cpstep {
namespace {

constexpr std::int64_t chunk_bytes = std::int64_t{32} << 20;  // of logits held when none are kept
constexpr std::int64_t block = 512;  // terms summed in T before they join a sum in double

template <class T>
std::int64_t rows_of_chunk(std::int64_t vocabulary) {
    return std::max<std::int64_t>(1, chunk_bytes / (vocabulary * std::int64_t{sizeof(T)}));
}

/// max_v z_v, sum_v e_v and sum_v e_v (z_v - max) with e_v = exp(z_v - max): the terms of the
/// second sum are never positive, so lse - sum p z loses nothing to a large offset of z.
struct Softmax {
    double maximum = 0;
    double sum = 0;
    double weighted = 0;
};

template <class T>
Softmax softmax_of_row(T const* z, std::int64_t vocabulary) {
    T maximum = z[0];
#pragma omp simd reduction(max : maximum)
    for (std::int64_t v = 0; v < vocabulary; ++v) {
        maximum = z[v] > maximum ? z[v] : maximum;
    }
    Softmax result{.maximum = static_cast<double>(maximum)};
    for (std::int64_t begin = 0; begin < vocabulary; begin += block) {
        std::int64_t const end = std::min(begin + block, vocabulary);
        T sum = 0;
        T weighted = 0;
#pragma omp simd reduction(+ : sum, weighted)
        for (std::int64_t v = begin; v < end; ++v) {
            T const below = z[v] - maximum;
            T const e = exp_inline(below);
            sum += e;
            weighted += e * below;
        }
        result.sum += static_cast<double>(sum);
        result.weighted += static_cast<double>(weighted);
    }
    return result;
}

/// z becomes dz of lm_head_backward.
template <class T>
void logit_gradient(T* z, std::int64_t vocabulary, std::int32_t target, T d_log_prob, T d_entropy,
                    T lse, T entropy) {
    if (d_log_prob == T(0) && d_entropy == T(0)) {
        std::fill(z, z + vocabulary, T(0));
        return;
    }
    T const level = lse - entropy;
#pragma omp simd
    for (std::int64_t v = 0; v < vocabulary; ++v) {
        z[v] = exp_inline(z[v] - lse) * (d_entropy * (level - z[v]) - d_log_prob);
    }
    z[target] += d_log_prob;
}

template <class T>
void check_shapes(Matrix<T> logits, Matrix<T> x, Matrix<T> w, Matrix<std::int32_t> targets) {
    check_lm_head(logits, x, w, targets);
    for (std::int64_t r = 0; r < x.rows; ++r) {
        std::int32_t const target = *targets.row(r);
        require(target >= 0 && target < w.rows, ExitCode::internal,
                "lm_head: target {} of row {} outside a vocabulary of {}", target, r, w.rows);
    }
}

/// Where the logits of a chunk live: in `kept`, or in `scratch` when none are kept.
template <class T>
class ChunkStorage {
  public:
    ChunkStorage(Matrix<T> kept, std::int64_t rows, std::int64_t vocabulary)
        : kept_(kept), vocabulary_(vocabulary) {
        if (kept.absent()) {
            scratch_.resize(static_cast<std::size_t>(rows * vocabulary));
        }
    }

    Matrix<T> rows(std::int64_t first, std::int64_t count) {
        if (kept_.absent()) {
            return {scratch_.data(), count, vocabulary_, vocabulary_};
        }
        return {kept_.row(first), count, vocabulary_, kept_.stride};
    }

  private:
    Matrix<T> kept_;
    std::int64_t vocabulary_;
    std::vector<T> scratch_;
};

template <class T>
void project(Matrix<T> z, Matrix<T> x, std::int64_t first, Matrix<T> w) {
    gemm<T>(false, true, z.rows, w.rows, x.cols, T(1), x.row(first), x.stride, w.data, w.stride,
            T(0), z.data, z.stride);
}

}  // namespace

template <class T>
void lm_head_forward(Matrix<T> log_prob, Matrix<T> entropy, Matrix<T> lse, Matrix<T> logits,
                     Matrix<T> x, Matrix<T> w, Matrix<std::int32_t> targets) {
    check_shapes(logits, x, w, targets);
    std::int64_t const chunk = std::min(rows_of_chunk<T>(w.rows), x.rows);
    ChunkStorage<T> storage(logits, chunk, w.rows);
    for (std::int64_t first = 0; first < x.rows; first += chunk) {
        Matrix<T> const z = storage.rows(first, std::min(chunk, x.rows - first));
        project(z, x, first, w);
#pragma omp parallel for schedule(static)
        for (std::int64_t i = 0; i < z.rows; ++i) {
            std::int64_t const r = first + i;
            Softmax const s = softmax_of_row(z.row(i), w.rows);
            double const log_sum = std::log(s.sum);
            double const z_target = static_cast<double>(z.row(i)[*targets.row(r)]);
            *log_prob.row(r) = static_cast<T>((z_target - s.maximum) - log_sum);
            *lse.row(r) = static_cast<T>(s.maximum + log_sum);
            *entropy.row(r) = static_cast<T>(log_sum - s.weighted / s.sum);
        }
    }
}

template <class T>
void lm_head_backward(Matrix<T> dx, Matrix<T> dw, Matrix<T> d_log_prob, Matrix<T> d_entropy,
                      Matrix<T> logits, Matrix<T> x, Matrix<T> w, Matrix<std::int32_t> targets,
                      Matrix<T> lse, Matrix<T> entropy) {
    check_shapes(logits, x, w, targets);
    check_lm_head_gradients(dx, dw, x, w);
    std::int64_t const chunk = std::min(rows_of_chunk<T>(w.rows), x.rows);
    ChunkStorage<T> storage(logits, chunk, w.rows);
    for (std::int64_t first = 0; first < x.rows; first += chunk) {
        Matrix<T> const z = storage.rows(first, std::min(chunk, x.rows - first));
        if (logits.absent()) {
            project(z, x, first, w);
        }
#pragma omp parallel for schedule(static)
        for (std::int64_t i = 0; i < z.rows; ++i) {
            std::int64_t const r = first + i;
            logit_gradient(z.row(i), w.rows, *targets.row(r), *d_log_prob.row(r), *d_entropy.row(r),
                           *lse.row(r), *entropy.row(r));
        }
        gemm<T>(false, false, z.rows, w.cols, w.rows, T(1), z.data, z.stride, w.data, w.stride,
                T(0), dx.row(first), dx.stride);
        gemm<T>(true, false, w.rows, w.cols, z.rows, T(1), z.data, z.stride, x.row(first), x.stride,
                T(1), dw.data, dw.stride);
    }
}

template void lm_head_forward(Matrix<float>, Matrix<float>, Matrix<float>, Matrix<float>,
                              Matrix<float>, Matrix<float>, Matrix<std::int32_t>);
template void lm_head_forward(Matrix<double>, Matrix<double>, Matrix<double>, Matrix<double>,
                              Matrix<double>, Matrix<double>, Matrix<std::int32_t>);
template void lm_head_backward(Matrix<float>, Matrix<float>, Matrix<float>, Matrix<float>,
                               Matrix<float>, Matrix<float>, Matrix<float>, Matrix<std::int32_t>,
                               Matrix<float>, Matrix<float>);
template void lm_head_backward(Matrix<double>, Matrix<double>, Matrix<double>, Matrix<double>,
                               Matrix<double>, Matrix<double>, Matrix<double>, Matrix<std::int32_t>,
                               Matrix<double>, Matrix<double>);

}  // namespace cpstep
