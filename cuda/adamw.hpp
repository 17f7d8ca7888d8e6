// AdamW and the global gradient norm over a flat parameter arena.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "cuda/tensor.hpp"

namespace cpstep {

/// Elements [begin, end) of the arena; decay: weight decay applies (tensors with more than one
/// dimension).
struct ParameterRange {
    std::int64_t begin = 0;
    std::int64_t end = 0;
    bool decay = true;
};

struct AdamWOptions {
    double lr = 1e-6;
    double beta1 = 0.9;
    double beta2 = 0.999;
    double eps = 1e-8;
    double weight_decay = 0.01;
    std::int64_t step = 1;      ///< 1 for the first update: bias correction 1 - beta^step
    double clip_grad = 0;       ///< largest norm of g, 0: none; read by Backend::adamw only
    double gradient_scale = 1;  ///< the global-norm clip factor, applied to g first
};

/// Factor that brings a gradient of this norm to at most clip_grad; 1 where clip_grad is 0.
inline double clip_factor(double clip_grad, double norm) {
    return clip_grad > 0 ? std::min(1.0, clip_grad / (norm + 1e-6)) : 1.0;
}

/// m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, w -= lr (mhat / (sqrt(vhat) + eps) + decay w).
/// w,m,v,g (N,1).   Loshchilov & Hutter 2019, decay taken from the old w. One rounding of
/// w: the factor 1 - lr decay, which float cannot hold for lr decay < 2^-24, is never formed.
template <class T>
void adamw(Matrix<T> w, Matrix<T> m, Matrix<T> v, Matrix<T> g,
           std::span<ParameterRange const> ranges, AdamWOptions const& options);

/// sum of squares in double, in a fixed order for a given size whatever the thread count.
template <class T>
double squared_norm(Matrix<T> x);

}  // namespace cpstep
