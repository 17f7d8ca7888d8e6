#include "app/loss_path_bodies.hpp"
#include "cuda/fault.hpp"

namespace cpstep {

namespace {

/// Megatron trainers' path for gspo and OPSM: each response as a vector of R_j floats, zero where
/// another rank has the row, summed over CP: for new and for old log-probs, 2n calls. For gspo the
/// gradient returns the same way. Their zero padding is differentiable, so old gets a gradient as
/// well, which nobody reads: 2n calls more.
class PaddedLoss final : public LossPath {
  public:
    PaddedLoss(Backend& backend, Comm& cp, MicroBatch const& batch)
        : LossPath(backend, cp),
          begin_(batch.response_begin),
          own_in_all_(uploaded(backend, batch.own_in_all)),
          all_mask_(uploaded(backend, batch.all.mask)),
          all_sample_(uploaded(backend, batch.all.sample_of)),
          new_(backend, batch.all.size(), 1, DType::f32),
          old_(backend, batch.all.size(), 1, DType::f32),
          own_(backend, batch.own.size(), 1, DType::f32),
          d_seq_kl_(backend, batch.sample_count(), 1, DType::f32) {}

    void apply(BatchBuffers& b, PolicyTensors const& inputs, PolicyLossOptions const& options,
               Tensor metrics) override {
        PolicyTensors kl_rows = inputs;
        if (needs_sequence_kl(options)) {
            fill(new_, "loss.padded.new", inputs.log_probs);
            fill(old_, "loss.padded.old", inputs.old_log_probs);
            kl_rows.log_probs = new_;
            kl_rows.old_log_probs = old_;
            kl_rows.mask = all_mask_;
            kl_rows.sample = all_sample_;
        }
        backend_.zero(b.seq_kl);
        backend_.sequence_kl_partial(b.seq_kl, {}, b.mask_sum, kl_rows, options);
        backend_.zero(d_seq_kl_);
        backend_.policy_loss(b.d_log_probs, b.d_entropy, d_seq_kl_, metrics, inputs, options);
        if (options.estimator == Estimator::gspo) {
            add_path_through_k(b);
        }
    }

  private:
    /// Own rows at their places in `full`, zeros elsewhere; then the sum over CP.
    void fill(Tensor full, char const* label, Tensor own) {
        backend_.zero(full);
        backend_.scatter_add_rows(full, own, own_in_all_);
        reduce_each(label, full);
    }

    void reduce_each(char const* label, Tensor full) {
        for (std::size_t j = 0; j + 1 < begin_.size(); ++j) {
            cp_.all_reduce_sum(label, full.row_range(begin_[j], begin_[j + 1] - begin_[j]));
        }
    }

    /// The local loss depends on every row through k_j; its gradient with respect to new is
    /// -m_t dL/dk_j / max(M_j,1), and the opposite with respect to old.
    void add_path_through_k(BatchBuffers& b) {
        backend_.zero(new_);
        backend_.sequence_kl_backward(new_, d_seq_kl_, b.mask_sum, all_mask_, all_sample_);
        backend_.copy(old_, new_);  // as many bytes as its gradient, whose sign nobody reads
        if (!planted(Fault::seq_kl_gradient_not_summed)) {
            reduce_each("loss.padded.new.backward", new_);
            reduce_each("loss.padded.old.backward", old_);
        }
        backend_.gather_rows(own_, new_, own_in_all_);
        backend_.add(b.d_log_probs, own_);
    }

    std::vector<std::int64_t> begin_;  // n+1
    Buffer own_in_all_, all_mask_,
        all_sample_;    // i32: (R,1), then one row a response row of all ranks
    Buffer new_, old_;  // over all response rows
    Buffer own_;        // (R,1)
    Buffer d_seq_kl_;   // (n,1)
};

}  // namespace

std::unique_ptr<LossPath> make_padded_loss(Backend& backend, Comm& cp, MicroBatch const& batch) {
    return std::make_unique<PaddedLoss>(backend, cp, batch);
}

}  // namespace cpstep
