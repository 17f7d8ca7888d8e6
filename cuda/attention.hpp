// Causal attention over a list of segments: the one attention operation of every CP layout.
#pragma once

#include <cstdint>
#include <span>

#include "cuda/tensor.hpp"

namespace cpstep {

/// Query rows [q_row, q_row+q_rows) attend to key rows [kv_row, kv_row+kv_rows);
/// query i of the segment sees keys 0 .. min(kv_rows, diagonal + i + 1) - 1 of the segment.
struct Segment {
    std::int64_t q_row = 0;
    std::int64_t q_rows = 0;
    std::int64_t kv_row = 0;
    std::int64_t kv_rows = 0;
    std::int64_t diagonal = 0;

    friend bool operator==(Segment const&, Segment const&) = default;
};

/// Number of keys query i of the segment sees.
constexpr std::int64_t visible_keys(Segment const& s, std::int64_t i) {
    std::int64_t const n = s.diagonal + i + 1;
    return n < 0 ? 0 : (n < s.kv_rows ? n : s.kv_rows);
}

/// H query heads, G key/value heads (G divides H, head h uses kv head h / (H/G)), D head size.
struct HeadShape {
    std::int64_t heads = 0;
    std::int64_t kv_heads = 0;
    std::int64_t head_dim = 0;
};

/// What becomes of o and lse, and in Backend::attention_backward of dq: overwrite means all of it
/// (zero where no segment reaches), merge addition to f32. dk and dv are overwritten in both.
enum class Accumulate : std::uint8_t {
    overwrite,  ///< o and lse of covered query rows are replaced
    merge,      ///< the segments' keys are added to the running softmax held in o (f32) and lse
};

/// s_ij = q_i . k_j / sqrt(D), lse_i = log sum_j exp(s_ij), o_i = sum_j exp(s_ij - lse_i) v_j.
/// merge: lse' = log(exp(lse) + exp(lse_seg)), o' = exp(lse-lse') o + exp(lse_seg-lse') o_seg.
/// q,o (S, H*D)   k,v (K, G*D)   lse (S, H), natural log, scale inside; -inf and o = 0: no key yet.
/// In one call a query row appears in at most one segment. No S x K matrix is held: keys are
/// visited in tiles with a running maximum (Milakov & Gimelshein 2018; Dao et al. 2022).
template <class T>
void attention_forward(Matrix<T> o, Matrix<T> lse, Matrix<T> q, Matrix<T> k, Matrix<T> v,
                       HeadShape shape, std::span<Segment const> segments, Accumulate mode);

/// Adds this list's share to dq, dk, dv, exact for any subset of keys when o and lse are the final
/// ones: p_ij = exp(s_ij - lse_i), delta_i = do_i . o_i, ds_ij = p_ij (do_i . v_j - delta_i) /
/// sqrt(D), dq_i += sum_j ds_ij k_j, dk_j += sum_i ds_ij q_i, dv_j += sum_i p_ij do_i. Shapes as
/// forward; dq like q, dk and dv like k.
template <class T>
void attention_backward(Matrix<T> dq, Matrix<T> dk, Matrix<T> dv, Matrix<T> q, Matrix<T> k,
                        Matrix<T> v, Matrix<T> o, Matrix<T> d_o, Matrix<T> lse, HeadShape shape,
                        std::span<Segment const> segments);

}  // namespace cpstep
