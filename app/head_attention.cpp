#include "app/head_attention.hpp"

#include <utility>

#include "app/carver.hpp"
#include "cuda/fault.hpp"

namespace cpstep {

namespace {

struct Widths {
    Widths(HeadShape shape, int ranks) : local(scattered_heads(shape, ranks)) {
        q = local.heads * local.head_dim;
        kv = 2 * local.kv_heads * local.head_dim;
    }
    HeadShape local;
    std::int64_t q, kv;
};

std::vector<std::int64_t> scaled(std::vector<std::int64_t> rows, std::int64_t width) {
    for (std::int64_t& count : rows) {
        count *= width;
    }
    return rows;
}

}  // namespace

HeadShape scattered_heads(HeadShape shape, int size) {
    require(size >= 1 && shape.heads % size == 0, ExitCode::internal,
            "{} query heads over {} ranks", shape.heads, size);
    std::int64_t const heads = shape.heads / size;
    bool const whole_groups = shape.kv_heads % size == 0;
    bool const one_group = size % shape.kv_heads == 0;
    return {.heads = heads,
            .kv_heads = whole_groups ? shape.kv_heads / size : (one_group ? 1 : heads),
            .head_dim = shape.head_dim};
}

std::int64_t scattered_kv_head(HeadShape shape, int size, int rank, std::int64_t g) {
    HeadShape const local = scattered_heads(shape, size);
    std::int64_t const query = rank * local.heads + g * (local.heads / local.kv_heads);
    return query / (shape.heads / shape.kv_heads);
}

std::int64_t HeadAttention::kept_bytes(CpPlan const& plan, HeadShape shape, DType T) {
    Widths const w(shape, plan.config.a2a);
    std::int64_t const rows = plan.join.all_rows();
    return 2 * Carver::bytes(rows, w.q, T) + Carver::bytes(rows, w.kv, T) +
           Carver::bytes(rows, w.local.heads, DType::f32);
}

std::int64_t HeadAttention::workspace_bytes(CpPlan const& plan, HeadShape shape, DType T) {
    Widths const w(shape, plan.config.a2a);
    std::int64_t const rows = plan.join.all_rows();
    std::int64_t const sums =
        T == DType::f32
            ? 0
            : Carver::bytes(plan.own_rows, 2 * shape.kv_heads * shape.head_dim, DType::f32);
    return Carver::bytes(plan.own_rows * plan.config.a2a, w.q + w.kv, T) +
           Carver::bytes(rows, w.q + w.kv, T) + 2 * Carver::bytes(rows, w.q, T) +
           Carver::bytes(rows, w.kv, T) + sums;
}

HeadAttention::HeadAttention(Backend& backend, Comm& comm, Trace& trace, HeadShape shape,
                             CpPlan const& plan, Tensor workspace,
                             std::unique_ptr<CpAttention> rows)
    : backend_(backend),
      comm_(comm),
      trace_(trace),
      shape_(shape),
      local_(scattered_heads(shape, plan.config.a2a)),
      plan_(plan),
      dtype_(backend.compute_dtype()),
      over_rows_(std::move(rows)),
      ordered_(uploaded(backend, plan.join.ordered)),
      joined_(uploaded(backend, plan.join.joined)) {
    std::int64_t const group_rows = plan.join.all_rows();
    Carver carver(workspace);
    own_ = carver.take(plan.own_rows * plan.config.a2a, q_width() + kv_width(), dtype_);
    group_ = carver.take(group_rows, q_width() + kv_width(), dtype_);
    dq_ = carver.take(group_rows, q_width(), dtype_);
    d_o_ = carver.take(group_rows, q_width(), dtype_);
    dkv_ = carver.take(group_rows, kv_width(), dtype_);
    if (dtype_ != DType::f32) {
        dkv_sum_ = carver.take(plan.own_rows, 2 * shape.kv_heads * shape.head_dim, DType::f32);
    }
}

HeadAttention::Kept HeadAttention::kept_of(Tensor kept) const {
    Carver carver(kept);
    std::int64_t const rows = plan_.join.all_rows();
    return {carver.take(rows, q_width(), dtype_), carver.take(rows, kv_width(), dtype_),
            carver.take(rows, q_width(), dtype_), carver.take(rows, local_.heads, DType::f32)};
}

Tensor HeadAttention::piece(int rank, std::int64_t width) const {
    auto const piece_bytes =
        plan_.own_rows * width * static_cast<std::int64_t>(element_bytes(dtype_));
    return matrix_at(own_, rank * piece_bytes, plan_.own_rows, width, dtype_);
}

Tensor HeadAttention::own(std::int64_t width) const {
    return matrix_at(own_, 0, plan_.own_rows * comm_.size(), width, dtype_);
}

Tensor HeadAttention::group(std::int64_t width) const {
    return matrix_at(group_, 0, plan_.join.all_rows(), width, dtype_);
}

template <class F>
void HeadAttention::for_each_kv_head(int rank, Tensor piece, Tensor kv, F const& f) const {
    std::int64_t const D = local_.head_dim;
    for (std::int64_t g = 0; g < local_.kv_heads; ++g) {
        std::int64_t const head = scattered_kv_head(shape_, comm_.size(), rank, g);
        f(piece.columns(g * D, D), kv.columns(head * D, D));
        f(piece.columns((local_.kv_heads + g) * D, D), kv.columns((shape_.kv_heads + head) * D, D));
    }
}

void HeadAttention::to_ranks(char const* label, std::int64_t width) {
    std::vector<std::int64_t> const sent(plan_.join.rows.size(), plan_.own_rows * width);
    comm_.all_to_all(label, group(width), own(width), sent, scaled(plan_.join.rows, width));
}

void HeadAttention::from_ranks(char const* label, std::int64_t width) {
    std::vector<std::int64_t> const received(plan_.join.rows.size(), plan_.own_rows * width);
    comm_.all_to_all(label, own(width), group(width), scaled(plan_.join.rows, width), received);
}

void HeadAttention::forward(Tensor o, Tensor /*lse*/, Tensor q, Tensor kv, Tensor kept) {
    Kept const all = kept_of(kept);
    std::int64_t const width = q_width() + kv_width();
    int const ranks = comm_.size();
    {
        Span const span = trace_.span(SpanKind::compute, "attention.reorder");
        for (int rank = 0; rank < ranks; ++rank) {
            int const taken = planted(Fault::heads_of_another_rank) ? (rank + 1) % ranks : rank;
            Tensor const to = piece(rank, width);
            backend_.copy(to.columns(0, q_width()), q.columns(taken * q_width(), q_width()));
            for_each_kv_head(rank, to.columns(q_width(), kv_width()), kv,
                             [&](Tensor local, Tensor home) { backend_.copy(local, home); });
        }
    }
    to_ranks("cp.qkv.a2a", width);
    {
        Span const span = trace_.span(SpanKind::compute, "attention.reorder");
        backend_.gather_rows(all.q, group(width).columns(0, q_width()), ordered_);
        backend_.gather_rows(all.kv, group(width).columns(q_width(), kv_width()), ordered_);
    }
    over_rows_->begin_forward(all.kv, {});
    over_rows_->forward(all.o, all.lse, all.q, all.kv, {});
    {
        Span const span = trace_.span(SpanKind::compute, "attention.reorder");
        backend_.gather_rows(group(q_width()), all.o, joined_);
    }
    from_ranks("cp.o.a2a", q_width());
    Span const span = trace_.span(SpanKind::compute, "attention.reorder");
    for (int rank = 0; rank < ranks; ++rank) {
        backend_.copy(o.columns(rank * q_width(), q_width()), piece(rank, q_width()));
    }
}

void HeadAttention::backward(Tensor dq, Tensor dkv, Tensor /*q*/, Tensor /*kv*/, Tensor /*o*/,
                             Tensor d_o, Tensor /*lse*/, Tensor kept) {
    Kept const all = kept_of(kept);
    std::int64_t const width = q_width() + kv_width();
    int const ranks = comm_.size();
    {
        Span const span = trace_.span(SpanKind::compute, "attention.reorder");
        for (int rank = 0; rank < ranks; ++rank) {
            backend_.copy(piece(rank, q_width()), d_o.columns(rank * q_width(), q_width()));
        }
    }
    to_ranks("cp.do.a2a", q_width());
    {
        Span const span = trace_.span(SpanKind::compute, "attention.reorder");
        backend_.gather_rows(d_o_, group(q_width()), ordered_);
    }
    over_rows_->backward(dq_, dkv_, all.q, all.kv, all.o, d_o_, all.lse, {});
    {
        Span const span = trace_.span(SpanKind::compute, "attention.reorder");
        backend_.gather_rows(group(width).columns(0, q_width()), dq_, joined_);
        backend_.gather_rows(group(width).columns(q_width(), kv_width()), dkv_, joined_);
    }
    from_ranks("cp.dqkv.a2a", width);
    Span const span = trace_.span(SpanKind::compute, "attention.reorder");
    Tensor const sum = dkv_sum_.absent() ? dkv : dkv_sum_;
    backend_.zero(sum);
    for (int rank = 0; rank < ranks; ++rank) {
        Tensor const from = piece(rank, width);
        backend_.copy(dq.columns(rank * q_width(), q_width()), from.columns(0, q_width()));
        for_each_kv_head(rank, from.columns(q_width(), kv_width()), sum,
                         [&](Tensor local, Tensor home) { backend_.add(home, local); });
    }
    if (!dkv_sum_.absent()) {
        backend_.copy(dkv, sum);
    }
}

}  // namespace cpstep
