// Recorded samples: tokens, masks, log-probabilities, rewards. The schema of a cpstep rollout file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace cpstep {

/// n samples; sample j has T_j = token_offsets[j+1]-token_offsets[j] tokens, the last
/// R_j = response_offsets[j+1]-response_offsets[j] of which are the response.
struct Rollout {
    std::vector<std::int32_t> tokens;
    std::vector<std::int64_t> token_offsets{0};
    std::vector<std::int64_t> response_offsets{0};
    std::vector<std::uint8_t> loss_mask;                                 ///< per response token
    std::vector<float> old_log_probs, ref_log_probs, rollout_log_probs;  ///< same, or empty
    std::vector<float> rewards;                                          ///< n
    std::vector<std::int32_t> groups;  ///< n, prompt of the sample
    std::vector<float> advantages;     ///< n, or empty

    std::int64_t samples() const { return static_cast<std::int64_t>(token_offsets.size()) - 1; }
    std::int64_t total_length(std::int64_t j) const {
        return token_offsets[j + 1] - token_offsets[j];
    }
    std::int64_t response_length(std::int64_t j) const {
        return response_offsets[j + 1] - response_offsets[j];
    }
    std::int64_t response_tokens() const { return response_offsets.back(); }
};

/// The first `count` samples.
Rollout first_samples(Rollout const& rollout, std::int64_t count);

/// Offsets consistent, 0 < R_j < T_j (a response needs a row before it), tokens in [0, vocab_size),
/// masks 0 or 1, numbers finite, at least one unmasked token in all: else Error(input_data) that
/// opens with `where` (the file) and names the sample.
void validate_rollout(Rollout const& rollout, std::int64_t vocab_size,
                      std::string const& where = "rollout");

/// HDF5, root attributes format="cpstep-rollout", format_version=1. Newer versions, missing or
/// misshapen datasets: Error(input_data), one line naming file and dataset.
Rollout read_rollout(std::filesystem::path const& file);
void write_rollout(std::filesystem::path const& file, Rollout const& rollout);

}  // namespace cpstep
