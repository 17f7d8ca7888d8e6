#include "app/micro_batch.hpp"

#include <algorithm>

#include "app/layout.hpp"

namespace cpstep {

namespace {

double clamped_mask_sum(Rollout const& rollout, std::int64_t sample) {
    std::int64_t sum = 0;
    for (std::int64_t i = rollout.response_offsets[sample];
         i < rollout.response_offsets[sample + 1]; ++i) {
        sum += rollout.loss_mask[i];
    }
    return static_cast<double>(std::max<std::int64_t>(sum, 1));
}

/// Append the rows [range) of sample `sample` (the batch's `slot`-th).
void append_range(MicroBatch& batch, Rollout const& rollout, std::int64_t sample, std::int32_t slot,
                  PositionRange range) {
    std::int64_t const first_token = rollout.token_offsets[sample];
    std::int64_t const length = rollout.total_length(sample);
    std::int64_t const first_response_row = length - rollout.response_length(sample) - 1;
    for (std::int64_t t = range.begin; t < range.end; ++t) {
        if (t >= first_response_row && t < length - 1) {
            std::int64_t const index = rollout.response_offsets[sample] + t - first_response_row;
            batch.response_rows.push_back(static_cast<std::int32_t>(batch.rows()));
            batch.targets.push_back(rollout.tokens[first_token + t + 1]);
            batch.sample_of.push_back(slot);
            batch.mask.push_back(rollout.loss_mask[index]);
            batch.response_index.push_back(index);
        }
        batch.tokens.push_back(rollout.tokens[first_token + t]);
        batch.positions.push_back(static_cast<std::int32_t>(t));
    }
}

}  // namespace

double Reduction::weight(double mask_sum) const {
    return 1.0 / (per_token ? token_denominator : static_cast<double>(batch) * mask_sum);
}

Reduction make_reduction(Rollout const& rollout, bool per_token) {
    Reduction reduction{.batch = rollout.samples(), .per_token = per_token};
    for (std::int64_t j = 0; j < rollout.samples(); ++j) {
        reduction.token_denominator += clamped_mask_sum(rollout, j);
    }
    return reduction;
}

MicroBatch make_micro_batch(Rollout const& rollout, std::span<std::int64_t const> samples,
                            Reduction const& reduction, CpConfig const& cp, int cp_rank) {
    Split const split{.layout = cp.layout, .ranks = cp.size};
    MicroBatch batch;
    std::vector<std::int64_t> lengths;
    for (std::int64_t const sample : samples) {
        auto const slot = static_cast<std::int32_t>(batch.samples.size());
        lengths.push_back(rollout.total_length(sample));
        double const mask_sum = clamped_mask_sum(rollout, sample);
        batch.samples.push_back(sample);
        batch.mask_sum.push_back(static_cast<float>(mask_sum));
        batch.weight.push_back(static_cast<float>(reduction.weight(mask_sum)));
        for (PositionRange const range : owned_ranges(lengths.back(), split, cp_rank)) {
            append_range(batch, rollout, sample, slot, range);
        }
    }
    batch.plan = make_cp_plan(lengths, cp, cp_rank);
    return batch;
}

}  // namespace cpstep
