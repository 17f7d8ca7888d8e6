// What the operands of an operation must be, once for views of the host (Matrix) and of a device
// (Tensor): both have rows, cols and absent(). Formulas stand at the operations of these names.
#pragma once

#include <cstdint>
#include <span>

#include "cuda/attention.hpp"
#include "cuda/policy_loss.hpp"
#include "cuda/shape.hpp"

namespace cpstep {

template <class X, class Rstd>
void check_rmsnorm_forward(X y, Rstd rstd, X x, X delta, X w) {
    require(same_shape(y, x) && has_shape(rstd, x.rows, 1) && has_shape(w, 1, x.cols) &&
                (delta.absent() || same_shape(delta, x)),
            ExitCode::internal,
            "rmsnorm_forward: y is {} x {}, rstd {} x {}, x {} x {}, delta {} x {}, w {} x {}",
            y.rows, y.cols, rstd.rows, rstd.cols, x.rows, x.cols, delta.rows, delta.cols, w.rows,
            w.cols);
}

template <class X, class Rstd>
void check_rmsnorm_backward(X dx, X dw, X dy, X x, X w, Rstd rstd) {
    require(same_shape(dx, x) && same_shape(dy, x) && has_shape(w, 1, x.cols) &&
                same_shape(dw, w) && has_shape(rstd, x.rows, 1),
            ExitCode::internal,
            "rmsnorm_backward: dx is {} x {}, dw {} x {}, dy {} x {}, x {} x {}, w {} x {}, "
            "rstd {} x {}",
            dx.rows, dx.cols, dw.rows, dw.cols, dy.rows, dy.cols, x.rows, x.cols, w.rows, w.cols,
            rstd.rows, rstd.cols);
}

template <class X>
void check_swiglu_forward(X y, X gate_up) {
    require(has_shape(gate_up, y.rows, 2 * y.cols), ExitCode::internal,
            "swiglu_forward: y is {} x {}, gate_up {} x {}", y.rows, y.cols, gate_up.rows,
            gate_up.cols);
}

template <class X>
void check_swiglu_backward(X dgate_up, X dy, X gate_up) {
    require(same_shape(dgate_up, gate_up) && has_shape(gate_up, dy.rows, 2 * dy.cols),
            ExitCode::internal, "swiglu_backward: dgate_up is {} x {}, dy {} x {}, gate_up {} x {}",
            dgate_up.rows, dgate_up.cols, dy.rows, dy.cols, gate_up.rows, gate_up.cols);
}

template <class X, class Index>
void check_embedding_forward(X x, X table, Index ids) {
    require(x.cols == table.cols && has_shape(ids, x.rows, 1), ExitCode::internal,
            "embedding_forward: x is {} x {}, the table {} x {}, ids {} x {}", x.rows, x.cols,
            table.rows, table.cols, ids.rows, ids.cols);
}

template <class X, class Index>
void check_embedding_backward(X dtable, X dx, Index ids) {
    require(dx.cols == dtable.cols && has_shape(ids, dx.rows, 1), ExitCode::internal,
            "embedding_backward: dx is {} x {}, the table {} x {}, ids {} x {}", dx.rows, dx.cols,
            dtable.rows, dtable.cols, ids.rows, ids.cols);
}

template <class X, class Index>
void check_gather_rows(X dst, X src, Index index) {
    require(dst.cols == src.cols && has_shape(index, dst.rows, 1), ExitCode::internal,
            "gather_rows: dst is {} x {}, src {} x {}, index {} x {}", dst.rows, dst.cols, src.rows,
            src.cols, index.rows, index.cols);
}

template <class X, class Index>
void check_scatter_add_rows(X dst, X src, Index index) {
    require(dst.cols == src.cols && has_shape(index, src.rows, 1), ExitCode::internal,
            "scatter_add_rows: dst is {} x {}, src {} x {}, index {} x {}", dst.rows, dst.cols,
            src.rows, src.cols, index.rows, index.cols);
}

template <class X, class Index>
void check_rope(X x, Index positions, std::int64_t head_dim) {
    require(head_dim > 0 && head_dim % 2 == 0 && x.cols % head_dim == 0 &&
                has_shape(positions, x.rows, 1),
            ExitCode::internal, "rope: x is {} x {}, positions {} x {}, head size {}", x.rows,
            x.cols, positions.rows, positions.cols, head_dim);
}

template <class X>
void check_linear_forward(X y, X x, X w, X b) {
    require(
        has_shape(y, x.rows, w.rows) && x.cols == w.cols && (b.absent() || has_shape(b, 1, w.rows)),
        ExitCode::internal, "linear_forward: y is {} x {}, x {} x {}, w {} x {}, b {} x {}", y.rows,
        y.cols, x.rows, x.cols, w.rows, w.cols, b.rows, b.cols);
}

template <class X>
void check_linear_backward(X dx, X dw, X db, X dy, X x, X w) {
    require(has_shape(dy, x.rows, w.rows) && x.cols == w.cols && same_shape(dw, w) &&
                (dx.absent() || same_shape(dx, x)) && (db.absent() || has_shape(db, 1, w.rows)),
            ExitCode::internal,
            "linear_backward: dy is {} x {}, x and dx {} x {} and {} x {}, w and dw {} x {} and "
            "{} x {}, db {} x {}",
            dy.rows, dy.cols, x.rows, x.cols, dx.rows, dx.cols, w.rows, w.cols, dw.rows, dw.cols,
            db.rows, db.cols);
}

/// Of both passes; logits are kept, or absent.
template <class X, class Index>
void check_lm_head(X logits, X x, X w, Index targets) {
    require(w.rows > 0 && w.cols == x.cols && targets.rows == x.rows, ExitCode::internal,
            "lm_head: x ({},{}) w ({},{}) targets ({},1)", x.rows, x.cols, w.rows, w.cols,
            targets.rows);
    require(logits.absent() || has_shape(logits, x.rows, w.rows), ExitCode::internal,
            "lm_head: logits ({},{}) for {} rows and a vocabulary of {}", logits.rows, logits.cols,
            x.rows, w.rows);
}

template <class X>
void check_lm_head_gradients(X dx, X dw, X x, X w) {
    require(same_shape(dx, x) && same_shape(dw, w), ExitCode::internal,
            "lm_head: dx ({},{}) dw ({},{}) for x ({},{}) w ({},{})", dx.rows, dx.cols, dw.rows,
            dw.cols, x.rows, x.cols, w.rows, w.cols);
}

/// Inputs, or gradients shaped like them, and the rows that segments name.
template <class X>
void check_attention_shapes(X lse, X q, X k, X v, HeadShape shape,
                            std::span<Segment const> segments) {
    require(shape.kv_heads > 0 && shape.head_dim > 0 && shape.heads > 0 &&
                shape.heads % shape.kv_heads == 0,
            ExitCode::internal, "attention: {} query heads over {} key heads of size {}",
            shape.heads, shape.kv_heads, shape.head_dim);
    std::int64_t const kv_cols = shape.kv_heads * shape.head_dim;
    require(q.cols == shape.heads * shape.head_dim && k.cols == kv_cols && v.cols == kv_cols &&
                lse.cols == shape.heads && lse.rows == q.rows && v.rows == k.rows,
            ExitCode::internal, "attention: q ({},{}) k ({},{}) v ({},{}) lse ({},{})", q.rows,
            q.cols, k.rows, k.cols, v.rows, v.cols, lse.rows, lse.cols);
    for (Segment const& s : segments) {
        require(s.q_row >= 0 && s.q_rows >= 0 && s.q_row + s.q_rows <= q.rows && s.kv_row >= 0 &&
                    s.kv_rows >= 0 && s.kv_row + s.kv_rows <= k.rows,
                ExitCode::internal,
                "attention: segment q [{},+{}) kv [{},+{}) outside {} query and {} key rows",
                s.q_row, s.q_rows, s.kv_row, s.kv_rows, q.rows, k.rows);
    }
}

/// `rows`: PolicyRows or PolicyTensors.
template <class X, class Rows>
void check_policy_loss(X d_seq_kl, X metrics, Rows const& rows, PolicyLossOptions const& options) {
    std::int64_t const n = rows.log_probs.rows;
    bool const closed_form = !rows.factor_mean.absent();
    std::int64_t const sequence_rows = closed_form ? rows.factor_mean.rows : d_seq_kl.rows;
    require(metrics.rows == metric_count && sequence_rows == rows.weight.rows, ExitCode::internal,
            "policy loss: {} metrics and {} sequence {} for {} samples", metrics.rows,
            sequence_rows, closed_form ? "factors" : "gradients", rows.weight.rows);
    require(rows.old_log_probs.rows == n && rows.entropy.rows == n && rows.advantages.rows == n &&
                rows.mask.rows == n && rows.sample.rows == n &&
                rows.seq_kl.rows == rows.weight.rows,
            ExitCode::internal, "policy loss: the columns of its {} rows differ in length", n);
    bool const no_ref = rows.ref_log_probs.absent() && !options.use_kl_loss;
    require(n == 0 || no_ref || rows.ref_log_probs.rows == n, ExitCode::internal,
            "policy loss: {} reference log-probs for {} rows", rows.ref_log_probs.rows, n);
    require(n == 0 || !options.use_tis || rows.rollout_log_probs.rows == n, ExitCode::internal,
            "policy loss: TIS needs rollout log-probs of all {} rows", n);
}

}  // namespace cpstep
