// K/V blocks travel around a group and dK/dV follows them home (Liu et al. 2023); a group of one
// needs no wire.
#pragma once

#include <array>
#include <vector>

#include "app/cp_attention.hpp"

namespace cpstep {

/// Forward: at each step the block at hand is folded in while the next hop is on the wire.
/// Backward: K/V travel again; each step's share of dK/dV is added to the sum of the ranks before
/// it, which was on the wire meanwhile, and moves on; a sum nobody adds to any more goes home. Only
/// chunks that the receiver needs are sent (cp_plan.hpp). All sums in fp32. Ledger labels: cp.kv,
/// cp.kv.backward, cp.dkv (hops), cp.dkv.home (straight home).
class RingAttention final : public CpAttention {
  public:
    RingAttention(Backend& backend, Comm& comm, Trace& trace, HeadShape shape, RingPlan const& plan,
                  Tensor workspace);

    void begin_forward(Tensor kv, Tensor kept) override;
    void forward(Tensor o, Tensor lse, Tensor q, Tensor kv, Tensor kept) override;
    void backward(Tensor dq, Tensor dkv, Tensor q, Tensor kv, Tensor o, Tensor d_o, Tensor lse,
                  Tensor kept) override;

    static std::int64_t workspace_bytes(RingPlan const& plan, HeadShape shape, DType T);

  private:
    /// Row indices of one step in the backend's memory.
    struct StepRows {
        Buffer pass, home;
    };
    int begin_block_hop(char const* label, std::size_t i, Tensor at_hand);
    void fold_in(std::size_t i, Tensor o, Tensor lse, Tensor q, Tensor at_hand);
    void add_share(std::size_t i, Tensor share, Tensor dq, Tensor q, Tensor at_hand, Tensor o,
                   Tensor d_o, Tensor lse);
    int begin_sum_hop(std::size_t i);
    int begin_way_home(std::size_t i);
    Tensor received_block(std::size_t i) const;
    std::size_t forward_steps() const;

    Backend& backend_;
    Comm& comm_;
    Trace& trace_;
    HeadShape shape_;
    RingPlan const& plan_;
    std::vector<StepRows> rows_;
    Buffer home_by_ring_rows_, home_straight_rows_;  // i32
    // Views of the workspace. Blocks at hand alternate between two, as do the sums of dK/dV.
    std::array<Tensor, 2> kv_, sum_;
    std::array<Tensor, 2> sent_sum_, sent_home_;  // rows of a sum that part ways
    Tensor sent_kv_, share_, by_ring_, straight_;
    // f32 sums of o, dq and own dK/dV, where these are rounded; absent where they are f32.
    Tensor wide_o_, wide_dq_, wide_dkv_;
    Tensor at_hand_;   // block of step 0 of the layer at hand
    Tensor last_kv_;   // of the layer before
    int ticket_ = -1;  // of the first hop
};

}  // namespace cpstep
