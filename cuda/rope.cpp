// Rotary position embedding, half-split form: pair (i, i + D/2) turns by position * theta^(-2i/D).
// x (S, heads*D)   Su et al. 2021; GPT-NeoX and Hugging Face order of the pairs
#include <cmath>
#include <cstdint>
#include <vector>

#include "cuda/layers.hpp"
#include "cuda/operands.hpp"
#include "cuda/shape.hpp"

namespace cpstep {
namespace {

/// theta^(-2i/D), i in [0, D/2).
std::vector<double> inverse_frequencies(std::int64_t head_dim, double theta) {
    std::vector<double> frequency(static_cast<std::size_t>(head_dim / 2));
    for (std::size_t i = 0; i < frequency.size(); ++i) {
        frequency[i] =
            std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    }
    return frequency;
}

/// (a, b) -> (a cos - b sin, b cos + a sin) for the pairs of every head of one row.
template <class T>
void rotate_row(T* row, std::int64_t heads, std::int64_t half, T const* cosine, T const* sine) {
    for (std::int64_t head = 0; head < heads; ++head) {
        T* const first = row + head * 2 * half;
        T* const second = first + half;
        for (std::int64_t i = 0; i < half; ++i) {
            T const a = first[i];
            T const b = second[i];
            first[i] = a * cosine[i] - b * sine[i];
            second[i] = b * cosine[i] + a * sine[i];
        }
    }
}

}  // namespace

template <class T>
void rope(Matrix<T> x, Matrix<std::int32_t> positions, std::int64_t head_dim, double theta,
          Rotation direction) {
    check_rope(x, positions, head_dim);
    std::int64_t const half = head_dim / 2;
    std::int64_t const heads = x.cols / head_dim;
    std::vector<double> const frequency = inverse_frequencies(head_dim, theta);
    double const sign = direction == Rotation::forward ? 1.0 : -1.0;
#pragma omp parallel if (x.rows * x.cols >= parallel_elements)
    {
        std::vector<T> cosine(frequency.size());
        std::vector<T> sine(frequency.size());
#pragma omp for schedule(static)
        for (std::int64_t s = 0; s < x.rows; ++s) {
            double const position = *positions.row(s);
            for (std::size_t i = 0; i < frequency.size(); ++i) {
                double const angle = position * frequency[i];
                cosine[i] = static_cast<T>(std::cos(angle));
                sine[i] = static_cast<T>(sign * std::sin(angle));
            }
            rotate_row(x.row(s), heads, half, cosine.data(), sine.data());
        }
    }
}

template void rope(Matrix<float>, Matrix<std::int32_t>, std::int64_t, double, Rotation);
template void rope(Matrix<double>, Matrix<std::int32_t>, std::int64_t, double, Rotation);

}  // namespace cpstep
