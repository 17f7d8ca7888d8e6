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

std::int64_t attention_kept_floats(CpPlan const& plan, HeadShape shape) {
    if (gathers(plan)) {
        return GatherAttention::kept_floats(plan, shape);
    }
    return plan.config.a2a > 1 ? HeadAttention::kept_floats(plan, shape) : 0;
}

std::int64_t attention_workspace_floats(CpPlan const& plan, HeadShape shape) {
    if (gathers(plan)) {
        return GatherAttention::workspace_floats(plan, shape);
    }
    std::int64_t const ring =
        RingAttention::workspace_floats(plan.ring, scattered_heads(shape, plan.config.a2a));
    return ring + (plan.config.a2a > 1 ? HeadAttention::workspace_floats(plan, shape) : 0);
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
    HeadShape const local = scattered_heads(shape, plan.config.a2a);
    std::int64_t const own = HeadAttention::workspace_floats(plan, shape);
    auto ring = std::make_unique<RingAttention>(
        backend, grid.ring(), trace, local, plan.ring,
        matrix_at(workspace, own, RingAttention::workspace_floats(plan.ring, local), 1));
    return std::make_unique<HeadAttention>(backend, grid.a2a(), trace, shape, plan,
                                           matrix_at(workspace, 0, own, 1), std::move(ring));
}

}  // namespace cpstep
