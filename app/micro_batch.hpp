// One micro-batch as one rank sees it: its rows of the packed sequences and its response rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "app/cp_config.hpp"
#include "app/cp_plan.hpp"
#include "io/rollout.hpp"

namespace cpstep {

/// How a sum over tokens becomes the loss (slime: rollout mean, or --calculate-per-token-loss).
struct Reduction {
    std::int64_t batch = 0;        ///< B, samples of the global batch
    double token_denominator = 0;  ///< sum_j max(M_j, 1) over the global batch
    bool per_token = false;

    /// Weight of a token of a sample with mask sum M: 1/(B max(M,1)) or 1/token_denominator.
    double weight(double mask_sum) const;
};
Reduction make_reduction(Rollout const& rollout, bool per_token);

/// Response rows of a micro-batch: samples in its order, positions rising within each (on one rank:
/// within each of its ranges).
struct ResponseRows {
    std::vector<std::int32_t> sample_of;  ///< index into MicroBatch::samples
    std::vector<std::int32_t> mask;
    std::vector<std::int64_t> index;  ///< into the rollout's response arrays

    std::int64_t size() const { return static_cast<std::int64_t>(index.size()); }
};

/// S local rows (layout.hpp's ranges of each sample, in order) and R local response rows. Row t of
/// a sequence predicts token t+1; response rows are [P-1, T-1); targets come from the whole
/// sequence, so no halo.
struct MicroBatch {
    std::vector<std::int64_t> samples;  ///< global sample indices
    CpPlan plan;
    std::vector<std::int32_t> tokens;          ///< S
    std::vector<std::int32_t> positions;       ///< S, global in the sequence
    std::vector<std::int32_t> response_rows;   ///< R, local row of the stream
    std::vector<std::int32_t> targets;         ///< R
    ResponseRows own;                          ///< R rows whose log-probs this rank computes
    ResponseRows all;                          ///< those of all CP ranks
    std::vector<std::int32_t> own_in_all;      ///< R, place of each own row in `all`
    std::vector<std::int64_t> stream_rows;     ///< gather: S of each CP rank
    std::vector<std::int32_t> all_in_streams;  ///< gather: row of each of `all`, streams joined
    std::vector<std::int64_t> response_begin;  ///< n+1, where each sample's rows begin in `all`
    std::vector<float> mask_sum;               ///< n, max(M_j, 1) over the whole response
    std::vector<float> weight;                 ///< n, Reduction::weight

    std::int64_t rows() const { return static_cast<std::int64_t>(tokens.size()); }
    std::int64_t response_count() const { return own.size(); }
    std::int64_t sample_count() const { return static_cast<std::int64_t>(samples.size()); }

    LossComm loss() const { return plan.config.loss; }
    /// Where this rank evaluates the policy loss: everywhere when log-probs are gathered.
    ResponseRows const& loss_rows() const { return loss() == LossComm::gather ? all : own; }
    /// Place of own row r in loss_rows().
    std::size_t loss_place(std::size_t r) const;
};

MicroBatch make_micro_batch(Rollout const& rollout, std::span<std::int64_t const> samples,
                            Reduction const& reduction, CpConfig const& cp, int cp_rank);

}  // namespace cpstep
