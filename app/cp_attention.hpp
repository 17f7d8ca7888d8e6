// Attention of one layer over sequences that may be split across the ranks of a CP group.
#pragma once

#include "cuda/tensor.hpp"

namespace cpstep {

/// q, o (S, H*D) and kv (S, 2*G*D: K columns, then V columns) are this rank's rows, contiguous; o
/// and lse (S, H) come out global: over all keys of the sequence, wherever they live.
class CpAttention {
  public:
    CpAttention() = default;
    CpAttention(CpAttention const&) = delete;
    CpAttention& operator=(CpAttention const&) = delete;
    virtual ~CpAttention() = default;

    virtual void forward(Tensor o, Tensor lse, Tensor q, Tensor kv) = 0;
    /// Overwrites dq and dkv, shaped like q and kv: the gradient of this rank's rows, from all
    /// ranks.
    virtual void backward(Tensor dq, Tensor dkv, Tensor q, Tensor kv, Tensor o, Tensor d_o,
                          Tensor lse) = 0;
};

}  // namespace cpstep
