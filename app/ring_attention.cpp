#include "app/ring_attention.hpp"

#include <algorithm>
#include <bit>

#include "app/carver.hpp"
#include "cuda/fault.hpp"

namespace cpstep {

namespace {

std::int64_t rows_of(std::vector<std::int32_t> const& index) {
    return static_cast<std::int64_t>(index.size());
}

/// Rows of the largest of each kind of block.
struct RingSizes {
    explicit RingSizes(RingPlan const& plan)
        : own(plan.steps.front().rows),
          by_ring(rows_of(plan.home_by_ring)),
          straight(rows_of(plan.home_straight)) {
        for (std::size_t i = 0; i < plan.steps.size(); ++i) {
            RingStep const& step = plan.steps[i];
            visiting = std::max(visiting, i == 0 ? 0 : step.rows);
            pass = std::max(pass, rows_of(step.pass_rows));
            home = std::max(home, rows_of(step.home_rows));
        }
    }
    std::int64_t own, visiting = 0, pass = 0, home = 0, by_ring, straight;
};

}  // namespace

std::int64_t RingAttention::workspace_bytes(RingPlan const& plan, HeadShape shape, DType T) {
    if (plan.size == 1) {
        return 0;
    }
    RingSizes const sizes(plan);
    std::int64_t const width = 2 * shape.kv_heads * shape.head_dim;
    std::int64_t const q_width = shape.heads * shape.head_dim;
    auto const sums = [&](std::int64_t rows, std::int64_t cols) {
        return Carver::bytes(rows, cols, DType::f32);
    };
    std::int64_t const wide =
        T == DType::f32 ? 0 : 2 * sums(sizes.own, q_width) + sums(sizes.own, width);
    return 2 * Carver::bytes(sizes.visiting, width, T) + Carver::bytes(sizes.pass, width, T) +
           3 * sums(sizes.visiting, width) + 2 * sums(sizes.pass, width) +
           2 * sums(sizes.home, width) + sums(sizes.by_ring, width) + sums(sizes.straight, width) +
           wide;
}

RingAttention::RingAttention(Backend& backend, Comm& comm, Trace& trace, HeadShape shape,
                             RingPlan const& plan, Tensor workspace)
    : backend_(backend), comm_(comm), trace_(trace), shape_(shape), plan_(plan) {
    if (plan.size == 1) {
        return;
    }
    for (RingStep const& step : plan.steps) {
        rows_.push_back({uploaded(backend, step.pass_rows), uploaded(backend, step.home_rows)});
    }
    home_by_ring_rows_ = uploaded(backend, plan.home_by_ring);
    home_straight_rows_ = uploaded(backend, plan.home_straight);
    RingSizes const sizes(plan);
    std::int64_t const width = 2 * shape.kv_heads * shape.head_dim;
    DType const T = backend.compute_dtype();
    Carver carver(workspace);
    auto const sums = [&](std::int64_t rows, std::int64_t cols) {
        return carver.take(rows, cols, DType::f32);
    };
    for (int i = 0; i < 2; ++i) {
        kv_[i] = carver.take(sizes.visiting, width, T);
        sum_[i] = sums(sizes.visiting, width);
        sent_sum_[i] = sums(sizes.pass, width);
        sent_home_[i] = sums(sizes.home, width);
    }
    share_ = sums(sizes.visiting, width);
    sent_kv_ = carver.take(sizes.pass, width, T);
    by_ring_ = sums(sizes.by_ring, width);
    straight_ = sums(sizes.straight, width);
    if (T != DType::f32) {
        wide_o_ = sums(sizes.own, shape.heads * shape.head_dim);
        wide_dq_ = sums(sizes.own, shape.heads * shape.head_dim);
        wide_dkv_ = sums(sizes.own, width);
    }
}

/// Where the block of step i > 0 arrives.
Tensor RingAttention::received_block(std::size_t i) const {
    return kv_[i % 2].row_range(0, plan_.steps[i].rows);
}

/// Sends what the next rank needs of the block at hand at step i and receives the block of step
/// i+1.
int RingAttention::begin_block_hop(char const* label, std::size_t i, Tensor at_hand) {
    RingStep const& step = plan_.steps[i];
    RingStep const& after = plan_.steps[i + 1];
    Tensor outgoing = at_hand;
    if (step.pass_on > 0 && step.pass_on < step.chunks) {
        outgoing = sent_kv_.row_range(0, rows_of(step.pass_rows));
        backend_.gather_rows(outgoing, at_hand, rows_[i].pass);
    }
    bool const flipped = planted(Fault::ring_direction_flipped);
    return comm_.begin_exchange(
        label, outgoing,
        step.pass_on == 0 ? Comm::no_peer : (flipped ? plan_.previous : plan_.next),
        received_block(i + 1),
        after.chunks == 0 ? Comm::no_peer : (flipped ? plan_.next : plan_.previous));
}

void RingAttention::fold_in(std::size_t i, Tensor o, Tensor lse, Tensor q, Tensor at_hand) {
    Span const span = trace_.span(SpanKind::compute, "attention.forward");
    backend_.attention_forward(o, lse, q, keys_of(at_hand), values_of(at_hand), shape_,
                               plan_.steps[i].segments,
                               i == 0 ? Accumulate::overwrite : Accumulate::merge);
    if (planted(Fault::bf16_between_merges) && i + 1 < plan_.steps.size()) {
        std::vector<float> values(static_cast<std::size_t>(o.elements()));
        backend_.download(values.data(), o);
        for (float& value : values) {  // to nearest, ties away from zero
            value =
                std::bit_cast<float>((std::bit_cast<std::uint32_t>(value) + 0x8000U) & 0xFFFF0000U);
        }
        backend_.upload(o, values.data());
    }
}

std::size_t RingAttention::forward_steps() const {
    return plan_.steps.size() - (planted(Fault::ring_step_missing) && plan_.size > 1 ? 1 : 0);
}

void RingAttention::begin_forward(Tensor kv, Tensor /*kept*/) {
    at_hand_ = kv;
    if (planted(Fault::kv_of_previous_layer) && last_kv_.rows == kv.rows) {
        at_hand_ = last_kv_;
    }
    last_kv_ = kv;
    ticket_ = forward_steps() > 1 ? begin_block_hop("cp.kv", 0, at_hand_) : -1;
}

void RingAttention::forward(Tensor o, Tensor lse, Tensor q, Tensor kv, Tensor /*kept*/) {
    Tensor const sum = summed(o, wide_o_);
    Tensor at_hand = at_hand_;
    std::size_t const steps = forward_steps();
    for (std::size_t i = 0; i < steps; ++i) {
        bool const hops = i + 1 < steps;
        if (hops && i > 0) {
            ticket_ = begin_block_hop("cp.kv", i, at_hand);
        }
        if (plan_.steps[i].chunks > 0) {
            fold_in(i, sum, lse, q, i == 0 ? kv : at_hand);
        }
        if (hops) {
            comm_.end_call(ticket_);
            at_hand = received_block(i + 1);
        }
    }
    if (!wide_o_.absent()) {
        Span const span = trace_.span(SpanKind::compute, "attention.round");
        backend_.copy(o, sum);
    }
}

/// This rank's share of dK/dV of the block at hand at step i.
void RingAttention::add_share(std::size_t i, Tensor share, Tensor dq, Tensor q, Tensor at_hand,
                              Tensor o, Tensor d_o, Tensor lse) {
    Span const span = trace_.span(SpanKind::compute, "attention.backward");
    backend_.attention_backward(dq, keys_of(share), values_of(share), q, keys_of(at_hand),
                                values_of(at_hand), o, d_o, lse, shape_, plan_.steps[i].segments,
                                i == 0 ? Accumulate::overwrite : Accumulate::merge);
}

/// Hands the sum of step i on, or to its owner if that is the next rank, and receives that of step
/// i+1; the last hop receives this rank's own.
int RingAttention::begin_sum_hop(std::size_t i) {
    RingStep const& step = plan_.steps[i];
    bool const last = i + 1 == plan_.steps.size();
    bool const sends = step.chunks > 0 && (step.next_is_home || step.pass_on > 0);
    Tensor outgoing = sum_[i % 2].row_range(0, step.rows);
    if (!step.next_is_home && step.pass_on > 0 && step.pass_on < step.chunks) {
        Tensor const packed = sent_sum_[i % 2].row_range(0, rows_of(step.pass_rows));
        backend_.gather_rows(packed, outgoing, rows_[i].pass);
        outgoing = packed;
    }
    bool const receives = last ? plan_.receives_by_ring : plan_.steps[i + 1].chunks > 0;
    Tensor const incoming =
        last ? by_ring_ : sum_[(i + 1) % 2].row_range(0, plan_.steps[i + 1].rows);
    return comm_.begin_exchange("cp.dkv", outgoing, sends ? plan_.next : Comm::no_peer, incoming,
                                receives ? plan_.previous : Comm::no_peer);
}

/// Sends finished rows of the sum of step i to their owner.
int RingAttention::begin_way_home(std::size_t i) {
    RingStep const& step = plan_.steps[i];
    Tensor outgoing;
    if (step.sends_home) {
        outgoing = sent_home_[i % 2].row_range(0, rows_of(step.home_rows));
        backend_.gather_rows(outgoing, sum_[i % 2].row_range(0, step.rows), rows_[i].home);
    }
    return comm_.begin_exchange("cp.dkv.home", outgoing,
                                step.sends_home ? step.owner : Comm::no_peer, straight_,
                                step.home_from >= 0 ? step.home_from : Comm::no_peer);
}

void RingAttention::backward(Tensor dq, Tensor dkv, Tensor q, Tensor kv, Tensor o, Tensor d_o,
                             Tensor lse, Tensor /*kept*/) {
    Buffer local;
    if (planted(Fault::backward_with_local_lse)) {
        local = Buffer(backend_, lse.rows, lse.cols, DType::f32);
        Buffer const unused(backend_, o.rows, o.cols, DType::f32);
        fold_in(0, unused, local, q, kv);
        lse = local;
    }
    Tensor const dq_sum = summed(dq, wide_dq_);
    Tensor const dkv_sum = summed(dkv, wide_dkv_);
    Tensor at_hand = kv;
    int sum_ticket = -1;
    int home_ticket = -1;
    std::size_t const steps = plan_.steps.size();
    auto const end_way_home = [&](std::size_t i) {
        comm_.end_call(home_ticket);
        if (plan_.steps[i].home_from >= 0 && !planted(Fault::dkv_not_returned_home)) {
            backend_.scatter_add_rows(dkv_sum, straight_, home_straight_rows_);
        }
    };
    for (std::size_t i = 0; i < steps; ++i) {
        bool const hops = i + 1 < steps;
        bool const busy = plan_.steps[i].chunks > 0;
        int const block_ticket = hops ? begin_block_hop("cp.kv.backward", i, at_hand) : -1;
        Tensor const sum = i == 0 ? dkv_sum : sum_[i % 2].row_range(0, plan_.steps[i].rows);
        Tensor const share = i < 2 ? sum : share_.row_range(0, plan_.steps[i].rows);
        if (busy) {
            add_share(i, share, dq_sum, q, at_hand, o, d_o, lse);
        }
        if (i > 1) {
            comm_.end_call(sum_ticket);
            if (busy) {
                backend_.add(sum, share);
            }
            end_way_home(i - 1);
        }
        if (i > 0) {
            sum_ticket = begin_sum_hop(i);
            home_ticket = begin_way_home(i);
        }
        if (hops) {
            comm_.end_call(block_ticket);
            at_hand = received_block(i + 1);
        }
    }
    if (steps == 1) {
        return;
    }
    comm_.end_call(sum_ticket);
    end_way_home(steps - 1);
    if (plan_.receives_by_ring && !planted(Fault::dkv_not_returned_home)) {
        backend_.scatter_add_rows(dkv_sum, by_ring_, home_by_ring_rows_);
        if (planted(Fault::dkv_doubled)) {
            backend_.scatter_add_rows(dkv_sum, by_ring_, home_by_ring_rows_);
        }
    }
    if (!wide_dq_.absent()) {
        Span const span = trace_.span(SpanKind::compute, "attention.round");
        backend_.copy(dq, dq_sum);
        backend_.copy(dkv, dkv_sum);
    }
}

}  // namespace cpstep
