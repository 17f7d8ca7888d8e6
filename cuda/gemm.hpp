// Row-major matrix product through CBLAS, one template for float and double.
#pragma once

#include <cblas.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "cuda/error.hpp"

namespace cpstep {

/// c = alpha op(a) op(b) + beta c, row-major.   op(a) (m,k)  op(b) (k,n)  c (m,n)
/// lda, ldb, ldc are row strides of a, b, c as stored. k = 0 leaves beta c; m = 0 or n = 0 does
/// nothing. beta = 0 overwrites c.
template <class T>
void gemm(bool trans_a, bool trans_b, std::int64_t m, std::int64_t n, std::int64_t k, T alpha,
          T const* a, std::int64_t lda, T const* b, std::int64_t ldb, T beta, T* c,
          std::int64_t ldc) {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>);
    if (m <= 0 || n <= 0) {
        return;
    }
    if (k <= 0) {
        for (std::int64_t i = 0; i < m; ++i) {
            T* row = c + i * ldc;
            std::transform(row, row + n, row,
                           [beta](T value) { return beta == T(0) ? T(0) : beta * value; });
        }
        return;
    }
    std::int64_t const largest = std::max({m, n, k, lda, ldb, ldc});
    require(largest <= std::numeric_limits<int>::max(), ExitCode::internal,
            "matrix product of {} x {} x {}: a size exceeds the BLAS integer", m, n, k);
    auto const ta = trans_a ? CblasTrans : CblasNoTrans;
    auto const tb = trans_b ? CblasTrans : CblasNoTrans;
    auto const call = [&](auto routine) {
        routine(CblasRowMajor, ta, tb, static_cast<int>(m), static_cast<int>(n),
                static_cast<int>(k), alpha, a, static_cast<int>(lda), b, static_cast<int>(ldb),
                beta, c, static_cast<int>(ldc));
    };
    if constexpr (std::is_same_v<T, float>) {
        call(cblas_sgemm);
    } else {
        call(cblas_dgemm);
    }
}

}  // namespace cpstep
