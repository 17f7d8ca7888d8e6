// y = silu(gate) * up, silu(a) = a s(a), s(a) = 1/(1 + exp(-a)).   gate_up (S,2F): gate first
// Shazeer 2020. exp(-a) may overflow to infinity for very negative a; s = 0 is then the right
// limit.
#include <cmath>
#include <cstdint>

#include "cuda/layers.hpp"
#include "cuda/operands.hpp"
#include "cuda/shape.hpp"

namespace cpstep {

template <class T>
void swiglu_forward(Matrix<T> y, Matrix<T> gate_up) {
    check_swiglu_forward(y, gate_up);
    std::int64_t const width = y.cols;
#pragma omp parallel for schedule(static) if (y.rows * width >= parallel_elements)
    for (std::int64_t s = 0; s < y.rows; ++s) {
        T* const y_row = y.row(s);
        T const* const gate = gate_up.row(s);
        T const* const up = gate + width;
        for (std::int64_t c = 0; c < width; ++c) {
            y_row[c] = gate[c] / (T{1} + std::exp(-gate[c])) * up[c];
        }
    }
}

template <class T>
void swiglu_backward(Matrix<T> dgate_up, Matrix<T> dy, Matrix<T> gate_up) {
    check_swiglu_backward(dgate_up, dy, gate_up);
    std::int64_t const width = dy.cols;
#pragma omp parallel for schedule(static) if (dy.rows * width >= parallel_elements)
    for (std::int64_t s = 0; s < dy.rows; ++s) {
        T const* const dy_row = dy.row(s);
        T const* const gate = gate_up.row(s);
        T const* const up = gate + width;
        T* const dgate = dgate_up.row(s);
        T* const dup = dgate + width;
        for (std::int64_t c = 0; c < width; ++c) {
            // Read before written: dgate_up may be gate_up itself.
            T const a = gate[c];
            T const u = up[c];
            T const sigmoid = T{1} / (T{1} + std::exp(-a));
            dgate[c] = dy_row[c] * u * sigmoid * (T{1} + a * (T{1} - sigmoid));
            dup[c] = dy_row[c] * a * sigmoid;
        }
    }
}

template void swiglu_forward(Matrix<float>, Matrix<float>);
template void swiglu_forward(Matrix<double>, Matrix<double>);
template void swiglu_backward(Matrix<float>, Matrix<float>, Matrix<float>);
template void swiglu_backward(Matrix<double>, Matrix<double>, Matrix<double>);

}  // namespace cpstep
