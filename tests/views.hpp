// Matrix views of vectors, and runs at different thread counts.
#pragma once

#include <omp.h>

#include <cstdint>
#include <vector>

#include "cuda/tensor.hpp"

namespace cpstep::test {

/// rows x cols elements of v, from element `offset` on; stride 0 stands for cols.
template <class T>
Matrix<T> view(std::vector<T>& v, std::int64_t rows, std::int64_t cols, std::int64_t stride = 0,
               std::int64_t offset = 0) {
    return {v.data() + offset, rows, cols, stride == 0 ? cols : stride};
}

/// The elements a view covers, row after row.
template <class T>
std::vector<T> elements(Matrix<T> m) {
    std::vector<T> out;
    for (std::int64_t i = 0; i < m.rows; ++i) {
        out.insert(out.end(), m.row(i), m.row(i) + m.cols);
    }
    return out;
}

/// The sum of a_i b_i in double: the scalar whose gradient finite-difference tests look at.
template <class T>
double dot(std::vector<T> const& a, std::vector<T> const& b) {
    double sum = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    }
    return sum;
}

/// f(), which returns a vector, gives the same bits with 1, 2 and 5 threads.
template <class F>
bool same_bits_with_any_threads(F const& f) {
    int const before = omp_get_max_threads();
    omp_set_num_threads(1);
    auto const one = f();
    bool same = !one.empty();
    for (int threads : {2, 5}) {
        omp_set_num_threads(threads);
        same = same && f() == one;
    }
    omp_set_num_threads(before);
    return same;
}

}  // namespace cpstep::test
