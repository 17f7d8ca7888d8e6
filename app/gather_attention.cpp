#include "app/gather_attention.hpp"

#include <numeric>

#include "app/carver.hpp"
#include "cuda/fault.hpp"

namespace cpstep {

namespace {

std::int64_t width_of(HeadShape shape) {
    return 2 * shape.kv_heads * shape.head_dim;
}

/// These rows of the joined streams as if the blocks stood in falling rank order.
std::vector<std::int32_t> as_in_reverse_order(CpPlan const& plan) {
    std::vector<std::int32_t> shifted(static_cast<std::size_t>(plan.join.all_rows()));
    std::int64_t first = 0;
    std::int64_t from_end = plan.join.all_rows();
    for (std::int64_t const rows : plan.join.rows) {
        from_end -= rows;
        std::iota(shifted.begin() + first, shifted.begin() + first + rows,
                  static_cast<std::int32_t>(from_end));
        first += rows;
    }
    std::vector<std::int32_t> stale;
    stale.reserve(plan.gather.seen.size());
    for (std::int32_t const row : plan.gather.seen) {
        stale.push_back(shifted[static_cast<std::size_t>(row)]);
    }
    return stale;
}

}  // namespace

std::int64_t GatherAttention::kept_bytes(CpPlan const& plan, HeadShape shape, DType T) {
    return Carver::bytes(plan.gather.seen_rows(), width_of(shape), T);
}

std::int64_t GatherAttention::workspace_bytes(CpPlan const& plan, HeadShape shape, DType T) {
    auto const sums = [&](std::int64_t rows, std::int64_t cols) {
        return Carver::bytes(rows, cols, DType::f32);
    };
    std::int64_t const width = width_of(shape);
    std::int64_t const wide =
        T == DType::f32
            ? 0
            : 2 * sums(plan.own_rows, shape.heads * shape.head_dim) + sums(plan.own_rows, width);
    return sums(plan.join.all_rows(), width) + sums(plan.gather.seen_rows(), width) +
           sums(plan.own_rows, width) + wide;
}

GatherAttention::GatherAttention(Backend& backend, Comm& comm, Trace& trace, HeadShape shape,
                                 CpPlan const& plan, Tensor workspace)
    : backend_(backend),
      comm_(comm),
      trace_(trace),
      shape_(shape),
      plan_(plan),
      seen_(uploaded(backend, planted(Fault::stale_gather_order) ? as_in_reverse_order(plan)
                                                                 : plan.gather.seen)) {
    Carver carver(workspace);
    DType const T = backend.compute_dtype();
    std::int64_t const rows = plan.join.all_rows();
    std::int64_t const width = width_of(shape);
    by_rank_ = carver.take(rows, width, DType::f32);
    arrived_ = matrix_at(by_rank_, 0, rows, width, T);
    gradient_ = carver.take(plan.gather.seen_rows(), width, DType::f32);
    from_others_ = carver.take(plan.own_rows, width, DType::f32);
    if (T != DType::f32) {
        wide_o_ = carver.take(plan.own_rows, shape.heads * shape.head_dim, DType::f32);
        wide_dq_ = carver.take(plan.own_rows, shape.heads * shape.head_dim, DType::f32);
        wide_dkv_ = carver.take(plan.own_rows, width, DType::f32);
    }
}

/// K and V of the gaps, one gap after another.
Tensor GatherAttention::seen_keys(Tensor kept) const {
    return Carver(kept).take(plan_.gather.seen_rows(), width_of(shape_), backend_.compute_dtype());
}

void GatherAttention::begin_forward(Tensor kv, Tensor /*kept*/) {
    ticket_ = comm_.begin_all_gather("cp.kv.gather", arrived_, kv, plan_.join.rows);
}

void GatherAttention::fold_in(Tensor o, Tensor lse, Tensor q, Tensor kv,
                              std::span<Segment const> segments, Accumulate mode) {
    Span const span = trace_.span(SpanKind::compute, "attention.forward");
    backend_.attention_forward(o, lse, q, keys_of(kv), values_of(kv), shape_, segments, mode);
}

void GatherAttention::forward(Tensor o, Tensor lse, Tensor q, Tensor kv, Tensor kept) {
    Tensor const sum = summed(o, wide_o_);
    fold_in(sum, lse, q, kv, plan_.gather.own, Accumulate::overwrite);
    comm_.end_call(ticket_);
    Tensor const seen = seen_keys(kept);
    {
        Span const span = trace_.span(SpanKind::compute, "attention.reorder");
        backend_.gather_rows(seen, arrived_, seen_);
    }
    std::int64_t row = 0;
    for (GatherGap const& gap : plan_.gather.gaps) {
        fold_in(sum, lse, q, seen.row_range(row, gap.rows), gap.segments, Accumulate::merge);
        row += gap.rows;
    }
    if (!wide_o_.absent()) {
        Span const span = trace_.span(SpanKind::compute, "attention.round");
        backend_.copy(o, sum);
    }
}

void GatherAttention::add_share(Tensor dkv, Queries const& t, Tensor kv,
                                std::span<Segment const> segments, Accumulate mode) {
    Span const span = trace_.span(SpanKind::compute, "attention.backward");
    backend_.attention_backward(t.dq, keys_of(dkv), values_of(dkv), t.q, keys_of(kv), values_of(kv),
                                t.o, t.d_o, t.lse, shape_, segments, mode);
}

void GatherAttention::backward(Tensor dq, Tensor dkv, Tensor q, Tensor kv, Tensor o, Tensor d_o,
                               Tensor lse, Tensor kept) {
    Queries const queries{summed(dq, wide_dq_), q, o, d_o, lse};
    Tensor const seen = seen_keys(kept);
    auto mode = Accumulate::overwrite;
    std::int64_t row = 0;
    for (GatherGap const& gap : plan_.gather.gaps) {
        add_share(gradient_.row_range(row, gap.rows), queries, seen.row_range(row, gap.rows),
                  gap.segments, mode);
        mode = Accumulate::merge;
        row += gap.rows;
    }
    {
        Span const span = trace_.span(SpanKind::compute, "attention.reorder");
        backend_.zero(by_rank_);
        backend_.scatter_add_rows(by_rank_, gradient_, seen_);
    }
    int const ticket = comm_.begin_reduce_scatter_sum("cp.dkv.reduce_scatter", from_others_,
                                                      by_rank_, plan_.join.rows);
    Tensor const sum = summed(dkv, wide_dkv_);
    add_share(sum, queries, kv, plan_.gather.own, mode);
    comm_.end_call(ticket);
    backend_.add(sum, from_others_);
    if (!wide_dq_.absent()) {
        Span const span = trace_.span(SpanKind::compute, "attention.round");
        backend_.copy(dq, queries.dq);
        backend_.copy(dkv, sum);
    }
}

}  // namespace cpstep
