#include "app/loss_path_bodies.hpp"

namespace cpstep {

namespace {

/// One all-reduce of k_j, n floats; gspo with TIS: of k_j and F_j / max(M_j,1), 2n floats. Nothing
/// in backward: the gradient through k_j is known from them (policy_loss.hpp). What its closed form
/// wants constant over a sequence is constant here: one advantage a sample, whitened or not.
class ScalarLoss final : public LossPath {
  public:
    ScalarLoss(Backend& backend, Comm& cp, MicroBatch const& batch)
        : LossPath(backend, cp),
          samples_(batch.sample_count()),
          sums_(backend, 2 * samples_, 1, DType::f32),
          ones_(uploaded(backend, std::vector<float>(batch.samples.size(), 1.0F))) {}

    void apply(BatchBuffers& b, PolicyTensors const& inputs, PolicyLossOptions const& options,
               Tensor metrics) override {
        bool const tis = options.estimator == Estimator::gspo && options.use_tis;
        Tensor const message = sums_.tensor().row_range(0, (tis ? 2 : 1) * samples_);
        Tensor const seq_kl = message.row_range(0, samples_);
        Tensor const factors = tis ? message.row_range(samples_, samples_) : Tensor{};
        backend_.zero(message);
        backend_.sequence_kl_partial(seq_kl, factors, b.mask_sum, inputs, options);
        if (needs_sequence_kl(options)) {
            cp_.all_reduce_sum("loss.seq_kl", message);
        }
        backend_.copy(b.seq_kl, seq_kl);
        PolicyTensors rows = inputs;
        rows.factor_mean = tis ? factors : ones_.tensor();
        backend_.policy_loss(b.d_log_probs, b.d_entropy, {}, metrics, rows, options);
    }

  private:
    std::int64_t samples_;
    Buffer sums_;  // (2n,1)
    Buffer ones_;  // (n,1), F_j / max(M_j,1) without TIS; a sample without tokens has no row
};

}  // namespace

std::unique_ptr<LossPath> make_scalar_loss(Backend& backend, Comm& cp, MicroBatch const& batch) {
    return std::make_unique<ScalarLoss>(backend, cp, batch);
}

}  // namespace cpstep
