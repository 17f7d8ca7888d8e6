// One micro-batch in the backend's memory: its constant inputs and its results.
#pragma once

#include <cstdint>
#include <vector>

#include "app/micro_batch.hpp"
#include "app/model.hpp"
#include "cuda/backend.hpp"

namespace cpstep {

/// R own response rows, n samples; Q loss rows (MicroBatch::loss_rows), those of the policy loss.
struct BatchBuffers {
    BatchBuffers(Backend& backend, MicroBatch const& batch);

    Buffer tokens, positions, response_rows, targets;                    // i32: S, S, R, R
    Buffer sample_of, mask;                                              // (Q,1) i32
    Buffer mask_sum, weight, seq_kl;                                     // (n,1)
    Buffer advantages, old_log_probs, ref_log_probs, rollout_log_probs;  // (Q,1)
    Buffer old_noise, rollout_noise;                    // (Q,1) of synthetic samples
    Buffer log_probs, entropy, d_log_probs, d_entropy;  // (R,1)
    Buffer pass_log_probs;                              // (R,1), ref and old pass

    ModelInput input() const { return {tokens, positions, response_rows, targets}; }
};

}  // namespace cpstep
