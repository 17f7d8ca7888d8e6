#include "app/batch_buffers.hpp"

namespace cpstep {

namespace {

Buffer column(Backend& backend, std::int64_t rows) {
    return {backend, rows, 1, DType::f32};
}

}  // namespace

BatchBuffers::BatchBuffers(Backend& backend, MicroBatch const& batch)
    : tokens(uploaded(backend, batch.tokens)),
      positions(uploaded(backend, batch.positions)),
      response_rows(uploaded(backend, batch.response_rows)),
      targets(uploaded(backend, batch.targets)),
      sample_of(uploaded(backend, batch.loss_rows().sample_of)),
      mask(uploaded(backend, batch.loss_rows().mask)),
      mask_sum(uploaded(backend, batch.mask_sum)),
      weight(uploaded(backend, batch.weight)),
      seq_kl(column(backend, batch.sample_count())),
      advantages(column(backend, batch.loss_rows().size())),
      old_log_probs(column(backend, batch.loss_rows().size())),
      ref_log_probs(column(backend, batch.loss_rows().size())),
      rollout_log_probs(column(backend, batch.loss_rows().size())),
      old_noise(column(backend, batch.loss_rows().size())),
      rollout_noise(column(backend, batch.loss_rows().size())),
      log_probs(column(backend, batch.response_count())),
      entropy(column(backend, batch.response_count())),
      d_log_probs(column(backend, batch.response_count())),
      d_entropy(column(backend, batch.response_count())),
      pass_log_probs(column(backend, batch.response_count())) {}

}  // namespace cpstep
