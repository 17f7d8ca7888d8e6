// The layers of a Qwen2 decoder block on the host. S rows, h hidden, F intermediate size.
// All are templates on float/double; Backend forwards to the float ones. Zero rows are allowed.
#pragma once

#include <cstdint>

#include "cuda/tensor.hpp"

namespace cpstep {

/// x_s = table[ids_s].   x (S,h)  table (V,h)  ids (S,1); an id outside [0,V) is an error.
template <class T>
void embedding_forward(Matrix<T> x, Matrix<T> table, Matrix<std::int32_t> ids);
/// dtable[ids_s] += dx_s.
template <class T>
void embedding_backward(Matrix<T> dtable, Matrix<T> dx, Matrix<std::int32_t> ids);

/// x += delta (skipped when delta is empty), then r = 1/sqrt(mean_c x_c^2 + eps), y_c = x_c r w_c.
/// y,x,delta (S,h)  rstd (S,1)  w (1,h).   Zhang & Sennrich 2019
template <class T>
void rmsnorm_forward(Matrix<T> y, Matrix<T> rstd, Matrix<T> x, Matrix<T> delta, Matrix<T> w, T eps);
/// With n_c = x_c r and g_c = dy_c w_c: dx_c += r (g_c - n_c mean_c(g n)), dw_c += sum_s dy_c n_c.
template <class T>
void rmsnorm_backward(Matrix<T> dx, Matrix<T> dw, Matrix<T> dy, Matrix<T> x, Matrix<T> w,
                      Matrix<T> rstd);

/// y = x w^T + b.   y (S,out)  x (S,in)  w (out,in)  b (1,out) or empty.  CBLAS.
template <class T>
void linear_forward(Matrix<T> y, Matrix<T> x, Matrix<T> w, Matrix<T> b);
/// dx = dy w (added to dx when `add_dx`; skipped when dx is empty), dw += dy^T x, db += sum_s dy
/// (skipped when db is empty).
template <class T>
void linear_backward(Matrix<T> dx, Matrix<T> dw, Matrix<T> db, Matrix<T> dy, Matrix<T> x,
                     Matrix<T> w, bool add_dx);

/// Rotate pairs (i, i + D/2) of every head by +-position * theta^(-2i/D), angles in double.
/// x (S, heads*D) in place, positions (S,1).   Su et al. 2021, half-split form of GPT-NeoX/HF
enum class Rotation : std::int8_t { forward = 1, backward = -1 };
template <class T>
void rope(Matrix<T> x, Matrix<std::int32_t> positions, std::int64_t head_dim, double theta,
          Rotation direction);

/// y = silu(gate) * up, silu(a) = a / (1 + exp(-a)).   y (S,F)  gate_up (S,2F): gate first.
template <class T>
void swiglu_forward(Matrix<T> y, Matrix<T> gate_up);
/// dgate = dy up s (1 + gate (1 - s)), dup = dy silu(gate), s = sigmoid(gate). Overwrites dgate_up.
template <class T>
void swiglu_backward(Matrix<T> dgate_up, Matrix<T> dy, Matrix<T> gate_up);

/// dst_i = src[index_i].   dst (n,h)  src (S,h)  index (n,1), all indices distinct.
template <class T>
void gather_rows(Matrix<T> dst, Matrix<T> src, Matrix<std::int32_t> index);
/// dst[index_i] += src_i.
template <class T>
void scatter_add_rows(Matrix<T> dst, Matrix<T> src, Matrix<std::int32_t> index);

}  // namespace cpstep
