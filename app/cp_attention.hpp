// Attention of one layer over sequences that may be split across the ranks of a CP group.
#pragma once

#include <memory>

#include "app/cp_plan.hpp"
#include "cuda/backend.hpp"
#include "io/trace.hpp"
#include "mpi/grid.hpp"

namespace cpstep {

/// One method on one micro-batch. q, o (S, H*D) and kv (S, 2*G*D: K columns, then V columns) are
/// this rank's rows, contiguous, of the backend's compute type; lse f32. o comes out global: over
/// all keys of the sequence, wherever they live. Partial results of several calls are summed in f32
/// and rounded once; keys travel in the compute type, dK/dV in f32.
class CpAttention {
  public:
    CpAttention() = default;
    CpAttention(CpAttention const&) = delete;
    CpAttention& operator=(CpAttention const&) = delete;
    virtual ~CpAttention() = default;

    /// Starts bringing other ranks' keys here, before the queries are known; forward() of the same
    /// layer follows. kept: attention_kept_bytes() of memory of the layer that backward gets again.
    virtual void begin_forward(Tensor kv, Tensor kept) = 0;
    /// lse (S, H) is memory of the layer too.
    virtual void forward(Tensor o, Tensor lse, Tensor q, Tensor kv, Tensor kept) = 0;
    /// Overwrites dq and dkv, shaped like q and kv: the gradient of this rank's rows, from all
    /// ranks.
    virtual void backward(Tensor dq, Tensor dkv, Tensor q, Tensor kv, Tensor o, Tensor d_o,
                          Tensor lse, Tensor kept) = 0;
};

/// The method of `plan`. `workspace`, attention_workspace_bytes() large, is used from begin_forward
/// to the end of forward and within backward only, so micro-batches may share it; plan, grid, trace
/// and backend must outlive the result.
std::unique_ptr<CpAttention> make_cp_attention(Backend& backend, Grid& grid, Trace& trace,
                                               HeadShape shape, CpPlan const& plan,
                                               Tensor workspace);

/// Bytes that live from a layer's forward to its backward, and bytes of scratch; T: compute type.
std::int64_t attention_kept_bytes(CpPlan const& plan, HeadShape shape, DType T);
std::int64_t attention_workspace_bytes(CpPlan const& plan, HeadShape shape, DType T);

/// The K and the V columns of a (rows, 2*G*D) block.
inline Tensor keys_of(Tensor kv) {
    return kv.columns(0, kv.cols / 2);
}
inline Tensor values_of(Tensor kv) {
    return kv.columns(kv.cols / 2, kv.cols / 2);
}

/// `t` itself, or where partial results of its shape are summed in f32.
inline Tensor summed(Tensor t, Tensor wide) {
    return wide.absent() ? t : wide;
}

/// Query and key heads of one rank of a group of `size` that scatters heads: H/size query heads;
/// the key heads they use, repeated where `size` does not divide G (then one a rank, or one a query
/// head). `size` must divide H.
HeadShape scattered_heads(HeadShape shape, int size);
/// The key head that local key head `g` of rank `rank` is.
std::int64_t scattered_kv_head(HeadShape shape, int size, int rank, std::int64_t g);

}  // namespace cpstep
