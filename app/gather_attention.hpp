// K/V of all ranks are gathered once a layer; dK/dV are summed back to their owners.
#pragma once

#include <span>

#include "app/cp_attention.hpp"

namespace cpstep {

/// Own keys are folded in while the others' are on the wire, then the gaps of GatherPlan: full
/// blocks but for the own square, no key in two of them. The keys of the gaps are kept for
/// backward, where the gaps come first, so that dK/dV, reduce-scattered in fp32, travel behind the
/// own square. All sums in fp32. (Bytes and calls as Megatron's `--cp-comm-type all_gather`; Llama
/// 3, 2024, section 3.3.2.) Ledger labels: cp.kv.gather, cp.dkv.reduce_scatter.
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
    /// Operands of a backward call that all parts share.
    struct Queries {
        Tensor dq, q, o, d_o, lse;
    };
    Tensor seen_keys(Tensor kept) const;
    void fold_in(Tensor o, Tensor lse, Tensor q, Tensor kv, std::span<Segment const> segments,
                 Accumulate mode);
    void add_share(Tensor dkv, Queries const& t, Tensor kv, std::span<Segment const> segments,
                   Accumulate mode);

    Backend& backend_;
    Comm& comm_;
    Trace& trace_;
    HeadShape shape_;
    CpPlan const& plan_;
    Buffer seen_;  // i32, GatherPlan::seen
    // Workspace, 2*G*D columns. All rows: keys as they arrive and, in the same memory later, their
    // gradient in rank order, f32. Seen rows: their gradient. Own rows: what others say of theirs.
    Tensor arrived_, by_rank_, gradient_, from_others_;
    // f32 sums of o, dq and own dK/dV, where these are rounded; absent where they are f32.
    Tensor wide_o_, wide_dq_, wide_dkv_;
    int ticket_ = -1;
};

}  // namespace cpstep
