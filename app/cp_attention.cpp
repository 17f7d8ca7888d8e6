#include "app/cp_attention.hpp"

#include "app/carver.hpp"
#include "app/gather_attention.hpp"
#include "app/head_attention.hpp"
#include "app/ring_attention.hpp"

namespace cpstep {

namespace {

bool gathers(CpPlan const& plan) {
    return plan.config.method == CpMethod::all_gather && plan.config.size > 1;
}

}  // namespace

std::int64_t attention_kept_bytes(CpPlan const& plan, HeadShape shape, DType T) {
    if (gathers(plan)) {
        return GatherAttention::kept_bytes(plan, shape, T);
    }
    return plan.config.a2a > 1 ? HeadAttention::kept_bytes(plan, shape, T) : 0;
}

std::int64_t attention_workspace_bytes(CpPlan const& plan, HeadShape shape, DType T) {
    if (gathers(plan)) {
        return GatherAttention::workspace_bytes(plan, shape, T);
    }
    std::int64_t const ring =
        RingAttention::workspace_bytes(plan.ring, scattered_heads(shape, plan.config.a2a), T);
    return ring + (plan.config.a2a > 1 ? HeadAttention::workspace_bytes(plan, shape, T) : 0);
}

std::unique_ptr<CpAttention> make_cp_attention(Backend& backend, Grid& grid, Trace& trace,
                                               HeadShape shape, CpPlan const& plan,
                                               Tensor workspace) {
    if (gathers(plan)) {
        return std::make_unique<GatherAttention>(backend, grid.cp(), trace, shape, plan, workspace);
    }
    if (plan.config.a2a == 1) {
        return std::make_unique<RingAttention>(backend, grid.ring(), trace, shape, plan.ring,
                                               workspace);
    }
    DType const T = backend.compute_dtype();
    HeadShape const local = scattered_heads(shape, plan.config.a2a);
    std::int64_t const own = HeadAttention::workspace_bytes(plan, shape, T);
    auto ring = std::make_unique<RingAttention>(
        backend, grid.ring(), trace, local, plan.ring,
        matrix_at(workspace, own, RingAttention::workspace_bytes(plan.ring, local, T) / 4, 1,
                  DType::f32));
    return std::make_unique<HeadAttention>(backend, grid.a2a(), trace, shape, plan,
                                           matrix_at(workspace, 0, own / 4, 1, DType::f32),
                                           std::move(ring));
}

}  // namespace cpstep
