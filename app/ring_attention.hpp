// K/V blocks travel around the CP group (Liu et al. 2023, zigzag layout); a group of one needs no
// wire.
#pragma once

#include <array>
#include <cstdint>

#include "app/cp_attention.hpp"
#include "app/cp_plan.hpp"
#include "cuda/backend.hpp"
#include "io/trace.hpp"
#include "mpi/comm.hpp"

namespace cpstep {

/// Forward: at step i the block of rank (r-i) mod N is at hand; the next hop is posted before
/// computing. Backward: K/V travel again and each block's dK/dV follows one hop behind, N hops, the
/// last one home; a step's own share is computed while the sum of the ranks before it is on the
/// wire. All sums in fp32. Ledger labels: cp.kv, cp.kv.backward, cp.dkv.
class RingAttention final : public CpAttention {
  public:
    /// `max_block_rows`: rows of the largest block of any plan that will be set.
    RingAttention(Backend& backend, Comm& comm, Trace& trace, HeadShape shape,
                  std::int64_t max_block_rows);

    /// The ring of the micro-batch that follows; kept by reference.
    void set_plan(RingPlan const& plan) { plan_ = &plan; }

    void forward(Tensor o, Tensor lse, Tensor q, Tensor kv) override;
    void backward(Tensor dq, Tensor dkv, Tensor q, Tensor kv, Tensor o, Tensor d_o,
                  Tensor lse) override;

    /// Floats of wire buffers a rank needs for blocks of `rows` rows; 0 for a group of one.
    static std::int64_t buffer_floats(int cp_size, HeadShape shape, std::int64_t rows);

  private:
    int right() const { return (comm_.rank() + 1) % comm_.size(); }
    int left() const { return (comm_.rank() + comm_.size() - 1) % comm_.size(); }
    Tensor keys(Tensor block) const;
    Tensor values(Tensor block) const;
    Tensor block(Buffer const& buffer, int owner) const;

    Backend& backend_;
    Comm& comm_;
    Trace& trace_;
    HeadShape shape_;
    RingPlan const* plan_ = nullptr;
    std::array<Buffer, 2> kv_;   // blocks on their way
    std::array<Buffer, 2> dkv_;  // sums of the ranks before this one
    Buffer share_;               // this rank's share of the block at hand
};

}  // namespace cpstep
