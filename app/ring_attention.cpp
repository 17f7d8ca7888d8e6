#include "app/ring_attention.hpp"

namespace cpstep {

RingAttention::RingAttention(Backend& backend, Comm& comm, Trace& trace, HeadShape shape,
                             std::int64_t max_block_rows)
    : backend_(backend), comm_(comm), trace_(trace), shape_(shape) {
    if (comm.size() == 1) {
        return;
    }
    std::int64_t const width = 2 * shape.kv_heads * shape.head_dim;
    for (int i = 0; i < 2; ++i) {
        kv_[i] = Buffer(backend, max_block_rows, width, DType::f32);
        dkv_[i] = Buffer(backend, max_block_rows, width, DType::f32);
    }
    share_ = Buffer(backend, max_block_rows, width, DType::f32);
}

std::int64_t RingAttention::buffer_floats(int cp_size, HeadShape shape, std::int64_t rows) {
    return cp_size == 1 ? 0 : 5 * rows * 2 * shape.kv_heads * shape.head_dim;
}

Tensor RingAttention::keys(Tensor block) const {
    return block.columns(0, shape_.kv_heads * shape_.head_dim);
}

Tensor RingAttention::values(Tensor block) const {
    std::int64_t const width = shape_.kv_heads * shape_.head_dim;
    return block.columns(width, width);
}

Tensor RingAttention::block(Buffer const& buffer, int owner) const {
    return buffer.tensor().row_range(0, plan_->block_rows[owner]);
}

void RingAttention::forward(Tensor o, Tensor lse, Tensor q, Tensor kv) {
    Tensor current = kv;
    std::size_t const last = plan_->steps.size() - 1;
    for (std::size_t i = 0; i <= last; ++i) {
        Tensor next;
        int ticket = -1;
        if (i < last) {
            next = block(kv_[i % 2], plan_->steps[i + 1].owner);
            ticket = comm_.begin_exchange("cp.kv", current, right(), next, left());
        }
        {
            Span const span = trace_.span(SpanKind::compute, "attention.forward");
            backend_.attention_forward(o, lse, q, keys(current), values(current), shape_,
                                       plan_->steps[i].segments,
                                       i == 0 ? Accumulate::overwrite : Accumulate::merge);
        }
        if (i < last) {
            comm_.end_exchange(ticket);
            current = next;
        }
    }
}

void RingAttention::backward(Tensor dq, Tensor dkv, Tensor q, Tensor kv, Tensor o, Tensor d_o,
                             Tensor lse) {
    backend_.zero(dq);
    Tensor current = kv;
    int incoming_ticket = -1;
    std::size_t const last = plan_->steps.size() - 1;
    for (std::size_t i = 0; i <= last; ++i) {
        RingStep const& step = plan_->steps[i];
        Tensor next;
        int kv_ticket = -1;
        if (i < last) {
            next = block(kv_[i % 2], plan_->steps[i + 1].owner);
            kv_ticket = comm_.begin_exchange("cp.kv.backward", current, right(), next, left());
        }
        Tensor const share = last == 0 ? dkv : block(i == 0 ? dkv_[0] : share_, step.owner);
        {
            Span const span = trace_.span(SpanKind::compute, "attention.backward");
            backend_.zero(share);
            backend_.attention_backward(dq, keys(share), values(share), q, keys(current),
                                        values(current), o, d_o, lse, shape_, step.segments);
        }
        if (last == 0) {
            return;
        }
        Tensor const sum = block(dkv_[i % 2], step.owner);
        if (i > 0) {
            comm_.end_exchange(incoming_ticket);
            backend_.add(sum, share);
        }
        bool const home = i == last;
        Tensor const incoming = home ? dkv : block(dkv_[(i + 1) % 2], plan_->steps[i + 1].owner);
        incoming_ticket = comm_.begin_exchange("cp.dkv", sum, right(), incoming, left());
        if (!home) {
            comm_.end_exchange(kv_ticket);
            current = next;
        }
    }
    comm_.end_exchange(incoming_ticket);
}

}  // namespace cpstep
