#include "app/gather_attention.hpp"

#include <numeric>

#include "app/carver.hpp"
#include "cuda/fault.hpp"

namespace cpstep {

namespace {

std::int64_t width_of(HeadShape shape) {
    return 2 * shape.kv_heads * shape.head_dim;
}

/// JoinPlan::ordered as if the blocks stood in falling rank order.
std::vector<std::int32_t> as_in_reverse_order(JoinPlan const& join) {
    std::vector<std::int32_t> shifted(join.ordered.size());  // by row in rising rank order
    std::int64_t first = 0;
    std::int64_t from_end = join.all_rows();
    for (std::int64_t const rows : join.rows) {
        from_end -= rows;
        std::iota(shifted.begin() + first, shifted.begin() + first + rows,
                  static_cast<std::int32_t>(from_end));
        first += rows;
    }
    std::vector<std::int32_t> stale;
    stale.reserve(shifted.size());
    for (std::int32_t const row : join.ordered) {
        stale.push_back(shifted[static_cast<std::size_t>(row)]);
    }
    return stale;
}

}  // namespace

std::int64_t GatherAttention::kept_bytes(CpPlan const& plan, HeadShape shape, DType T) {
    return Carver::bytes(plan.join.all_rows(), width_of(shape), T);
}

std::int64_t GatherAttention::workspace_bytes(CpPlan const& plan, HeadShape shape, DType T) {
    return 2 * Carver::bytes(plan.join.all_rows(), width_of(shape), DType::f32) +
           (T == DType::f32 ? 0 : Carver::bytes(plan.own_rows, width_of(shape), DType::f32));
}

GatherAttention::GatherAttention(Backend& backend, Comm& comm, Trace& trace, HeadShape shape,
                                 CpPlan const& plan, Tensor workspace)
    : backend_(backend),
      comm_(comm),
      trace_(trace),
      shape_(shape),
      plan_(plan),
      ordered_(backend, plan.join.all_rows(), 1, DType::i32),
      joined_(backend, plan.join.all_rows(), 1, DType::i32) {
    backend.upload(ordered_, planted(Fault::stale_gather_order)
                                 ? as_in_reverse_order(plan.join).data()
                                 : plan.join.ordered.data());
    backend.upload(joined_, plan.join.joined.data());
    Carver carver(workspace);
    DType const T = backend.compute_dtype();
    std::int64_t const rows = plan.join.all_rows();
    by_rank_ = carver.take(rows, width_of(shape), DType::f32);
    arrived_ = matrix_at(by_rank_, 0, rows, width_of(shape), T);
    gradient_ = carver.take(rows, width_of(shape), DType::f32);
    if (T != DType::f32) {
        own_gradient_ = carver.take(plan.own_rows, width_of(shape), DType::f32);
    }
}

/// K and V of all ranks in position order.
Tensor GatherAttention::all_keys(Tensor kept) const {
    return Carver(kept).take(plan_.join.all_rows(), width_of(shape_), backend_.compute_dtype());
}

void GatherAttention::begin_forward(Tensor kv, Tensor /*kept*/) {
    comm_.all_gather("cp.kv.gather", arrived_, kv, plan_.join.rows);
}

void GatherAttention::forward(Tensor o, Tensor lse, Tensor q, Tensor /*kv*/, Tensor kept) {
    Tensor const all = all_keys(kept);
    {
        Span const span = trace_.span(SpanKind::compute, "attention.reorder");
        backend_.gather_rows(all, arrived_, ordered_);
    }
    Span const span = trace_.span(SpanKind::compute, "attention.forward");
    backend_.attention_forward(o, lse, q, keys_of(all), values_of(all), shape_, plan_.gathered,
                               Accumulate::overwrite);
}

void GatherAttention::backward(Tensor dq, Tensor dkv, Tensor q, Tensor /*kv*/, Tensor o, Tensor d_o,
                               Tensor lse, Tensor kept) {
    Tensor const all = all_keys(kept);
    {
        Span const span = trace_.span(SpanKind::compute, "attention.backward");
        backend_.attention_backward(dq, keys_of(gradient_), values_of(gradient_), q, keys_of(all),
                                    values_of(all), o, d_o, lse, shape_, plan_.gathered,
                                    Accumulate::overwrite);
    }
    {
        Span const span = trace_.span(SpanKind::compute, "attention.reorder");
        backend_.gather_rows(by_rank_, gradient_, joined_);
    }
    Tensor const own = own_gradient_.absent() ? dkv : own_gradient_;
    comm_.reduce_scatter_sum("cp.dkv.reduce_scatter", own, by_rank_, plan_.join.rows);
    if (!own_gradient_.absent()) {
        backend_.copy(dkv, own);
    }
}

}  // namespace cpstep
