// Vocabulary projection fused with log-probability and entropy; logits are held a chunk at a time.
#pragma once

#include <cstdint>

#include "cuda/tensor.hpp"

namespace cpstep {

/// z = x w^T; lse = log sum_v exp(z_v); log_prob = z_y - lse; entropy = lse - sum_v p_v z_v.
/// x (R,h)  w (V,h)  targets y (R,1)  log_prob, entropy, lse (R,1).
/// `logits` is (R,V) to keep z for the backward pass, or empty: then rows are visited in chunks.
template <class T>
void lm_head_forward(Matrix<T> log_prob, Matrix<T> entropy, Matrix<T> lse, Matrix<T> logits,
                     Matrix<T> x, Matrix<T> w, Matrix<std::int32_t> targets);

/// dz_v = d_log_prob (1[v=y] - p_v) + d_entropy p_v (lse - entropy - z_v), since
/// dH/dz_v = p_v (sum_u p_u z_u - z_v); dx = dz w (overwritten), dw += dz^T x.
/// `logits` as kept by the forward pass (destroyed), or empty: then z is computed again by chunks.
template <class T>
void lm_head_backward(Matrix<T> dx, Matrix<T> dw, Matrix<T> d_log_prob, Matrix<T> d_entropy,
                      Matrix<T> logits, Matrix<T> x, Matrix<T> w, Matrix<std::int32_t> targets,
                      Matrix<T> lse, Matrix<T> entropy);

}  // namespace cpstep
