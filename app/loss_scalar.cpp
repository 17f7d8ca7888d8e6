#include <algorithm>

#include "app/loss_path_bodies.hpp"
#include "cuda/fault.hpp"

namespace cpstep {

namespace {

/// F_j / max(M_j,1) without TIS: 1. Of the rank's own tokens alone it would be their share.
std::vector<float> closed_form_factors(MicroBatch const& batch) {
    std::vector<float> factors(batch.samples.size(), 1.0F);
    if (planted(Fault::seq_kl_gradient_of_local_tokens)) {
        std::fill(factors.begin(), factors.end(), 0.0F);
        for (std::size_t r = 0; r < batch.own.mask.size(); ++r) {
            auto const slot = static_cast<std::size_t>(batch.own.sample_of[r]);
            factors[slot] += static_cast<float>(batch.own.mask[r]) / batch.mask_sum[slot];
        }
    }
    return factors;
}

/// One all-reduce of k_j, n floats; gspo with TIS: of k_j and F_j / max(M_j,1), 2n floats. Nothing
/// in backward: the gradient through k_j is known from them (policy_loss.hpp). What its closed form
/// wants constant over a sequence is constant here: one advantage a sample, whitened or not.
class ScalarLoss final : public LossPath {
  public:
    ScalarLoss(Backend& backend, Comm& cp, MicroBatch const& batch)
        : LossPath(backend, cp),
          samples_(batch.sample_count()),
          sums_(backend, 2 * samples_, 1, DType::f32),
          ones_(uploaded(backend, closed_form_factors(batch))),
          has_rows_(batch.response_count() > 0) {}

    void apply(BatchBuffers& b, PolicyTensors const& inputs, PolicyLossOptions const& options,
               Tensor metrics) override {
        bool const tis = options.estimator == Estimator::gspo && options.use_tis;
        Tensor const message = sums_.tensor().row_range(0, (tis ? 2 : 1) * samples_);
        Tensor const seq_kl = message.row_range(0, samples_);
        Tensor const factors = tis ? message.row_range(samples_, samples_) : Tensor{};
        backend_.zero(message);
        backend_.sequence_kl_partial(seq_kl, factors, b.mask_sum, inputs, options);
        if (planted(Fault::opsm_from_local_rows)) {
            backend_.copy(b.seq_kl, seq_kl);
        }
        if (needs_sequence_kl(options) && (has_rows_ || !planted(Fault::collective_skipped))) {
            cp_.all_reduce_sum("loss.seq_kl", message);
        }
        if (!planted(Fault::opsm_from_local_rows)) {
            backend_.copy(b.seq_kl, seq_kl);
        }
        PolicyTensors rows = inputs;
        rows.factor_mean = tis ? factors : ones_.tensor();
        backend_.policy_loss(b.d_log_probs, b.d_entropy, {}, metrics, rows, options);
        if (planted(Fault::extra_all_reduce)) {
            cp_.all_reduce_sum("loss.entropy", message);
        }
    }

  private:
    std::int64_t samples_;
    Buffer sums_;  // (2n,1)
    Buffer ones_;  // (n,1), F_j / max(M_j,1) without TIS; a sample without tokens has no row
    bool has_rows_;
};

}  // namespace

std::unique_ptr<LossPath> make_scalar_loss(Backend& backend, Comm& cp, MicroBatch const& batch) {
    return std::make_unique<ScalarLoss>(backend, cp, batch);
}

}  // namespace cpstep
