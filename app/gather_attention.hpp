// K/V of all ranks are gathered once a layer; dK/dV are summed back to their owners.
#pragma once

#include "app/cp_attention.hpp"

namespace cpstep {

/// Two segments a sequence (zigzag) over all keys in position order: one attention call each way,
/// no merge. The gathered K/V are kept for backward; dK/dV are reduce-scattered in fp32. (Megatron
/// `--cp-comm-type all_gather`; Llama 3, 2024, section 3.3.2.)
/// Ledger labels: cp.kv.gather, cp.dkv.reduce_scatter.
class GatherAttention final : public CpAttention {
  public:
    GatherAttention(Backend& backend, Comm& comm, Trace& trace, HeadShape shape, CpPlan const& plan,
                    Tensor workspace);

    void begin_forward(Tensor kv, Tensor kept) override;
    void forward(Tensor o, Tensor lse, Tensor q, Tensor kv, Tensor kept) override;
    void backward(Tensor dq, Tensor dkv, Tensor q, Tensor kv, Tensor o, Tensor d_o, Tensor lse,
                  Tensor kept) override;

    static std::int64_t kept_bytes(CpPlan const& plan, HeadShape shape, DType T);
    static std::int64_t workspace_bytes(CpPlan const& plan, HeadShape shape, DType T);

  private:
    Tensor all_keys(Tensor kept) const;

    Backend& backend_;
    Comm& comm_;
    Trace& trace_;
    HeadShape shape_;
    CpPlan const& plan_;
    Buffer ordered_, joined_;  // i32 row indices of JoinPlan
    // Workspace, (all rows, 2*G*D): keys as they arrive, and in the same memory later their
    // gradient in rank order, f32; the gradient in position order; own rows of it, where they are
    // rounded.
    Tensor arrived_, by_rank_, gradient_, own_gradient_;
};

}  // namespace cpstep
