// The samples of the step: from a rollout file, or prompts with seeded synthetic responses.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "app/options.hpp"
#include "io/model_config.hpp"
#include "io/rollout.hpp"

namespace cpstep {

/// The step's samples and what was said about them on the way.
struct SampleSet {
    Rollout rollout;
    std::vector<float> advantages;   ///< n, after grouping, before whitening
    std::vector<std::string> notes;  ///< one line each, for the report
    bool synthetic_old =
        false;  ///< old log-probs = old pass + old_noise; rollout = old pass + rollout_noise
    std::vector<float> old_noise, rollout_noise;  ///< per response token when synthetic_old
};

/// Load or make the samples, the same on every rank. Global batch: the first global_batch_size
/// samples; prompts are taken in file order (shuffled with rollout_shuffle), each
/// n_samples_per_prompt times. When one rollout (rollout_batch_size prompts) is smaller than the
/// global batch, several are combined and a note says so. Errors: Error(input_data) or
/// Error(usage).
SampleSet load_samples(Options const& options, ModelConfig const& model);

/// Standard normal number from a counter: the same for (seed, stream, index) on every machine.
double counter_normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t index);
/// 64 random bits from a counter (SplitMix64 of the mixed key).
std::uint64_t counter_bits(std::uint64_t seed, std::uint64_t stream, std::uint64_t index);

}  // namespace cpstep
