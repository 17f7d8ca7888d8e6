#include "app/micro_batch.hpp"

#include <algorithm>

#include "app/layout.hpp"
#include "cuda/fault.hpp"

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

/// Rows of a sequence that predict its response.
PositionRange response_range(Rollout const& rollout, std::int64_t sample) {
    std::int64_t const length = rollout.total_length(sample);
    return {length - rollout.response_length(sample) - 1, length - 1};
}

void append_response(ResponseRows& rows, Rollout const& rollout, std::int32_t slot,
                     std::int64_t index) {
    rows.sample_of.push_back(slot);
    rows.mask.push_back(rollout.loss_mask[index]);
    rows.index.push_back(index);
}

/// The row whose hidden state gives the log-prob of the token after position t: that of t itself,
/// `row`. The fault takes the row after it, around the range's end so that rows stay distinct.
std::int64_t row_of_response(std::int64_t row, std::int64_t t, PositionRange range) {
    if (planted(Fault::response_row_off_by_one)) {
        return t + 1 == range.end ? row - (range.size() - 1) : row + 1;
    }
    return row;
}

/// Append this rank's rows [range) of sample `sample` (the batch's `slot`-th).
void append_range(MicroBatch& batch, Rollout const& rollout, std::int64_t sample, std::int32_t slot,
                  PositionRange range) {
    std::int64_t const first_token = rollout.token_offsets[sample];
    PositionRange const response = response_range(rollout, sample);
    for (std::int64_t t = range.begin; t < range.end; ++t) {
        if (t >= response.begin && t < response.end) {
            std::int64_t const place = t - response.begin;
            bool const shift = !planted(Fault::target_shift_dropped) || t + 1 < range.end;
            batch.response_rows.push_back(
                static_cast<std::int32_t>(row_of_response(batch.rows(), t, range)));
            batch.targets.push_back(rollout.tokens[first_token + t + (shift ? 1 : 0)]);
            batch.own_in_all.push_back(
                static_cast<std::int32_t>(batch.response_begin[slot] + place));
            append_response(batch.own, rollout, slot, rollout.response_offsets[sample] + place);
        }
        batch.tokens.push_back(rollout.tokens[first_token + t]);
        batch.positions.push_back(
            static_cast<std::int32_t>(planted(Fault::rope_local_positions) ? batch.rows() - 1 : t));
    }
}

/// The mask sum of this rank's own rows, which a mean over the response must not divide by.
double own_mask_sum(Rollout const& rollout, std::int64_t sample, Split split, int cp_rank) {
    PositionRange const response = response_range(rollout, sample);
    std::int64_t sum = 0;
    for (PositionRange const& range : owned_ranges(rollout.total_length(sample), split, cp_rank)) {
        for (std::int64_t t = std::max(range.begin, response.begin);
             t < std::min(range.end, response.end); ++t) {
            sum += rollout.loss_mask[rollout.response_offsets[sample] + t - response.begin];
        }
    }
    return static_cast<double>(std::max<std::int64_t>(sum, 1));
}

/// Where the response rows of all CP ranks lie in their streams.
void locate_in_streams(MicroBatch& batch, std::span<std::int64_t const> lengths,
                       Rollout const& rollout, Split split) {
    std::vector<Block> streams;
    for (int rank = 0; rank < split.ranks; ++rank) {
        streams.push_back(make_block(lengths, split, rank));
        batch.stream_rows.push_back(streams.back().rows());
    }
    Block responses;
    for (std::int64_t const sample : batch.samples) {
        responses.sequences.push_back({response_range(rollout, sample)});
    }
    batch.all_in_streams = rows_in(responses, streams);
}

}  // namespace

std::size_t MicroBatch::loss_place(std::size_t r) const {
    return loss() == LossComm::gather ? static_cast<std::size_t>(own_in_all[r]) : r;
}

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
    batch.response_begin.push_back(0);
    std::vector<std::int64_t> lengths;
    for (std::int64_t const sample : samples) {
        auto const slot = static_cast<std::int32_t>(batch.samples.size());
        lengths.push_back(rollout.total_length(sample));
        double const mask_sum = planted(Fault::local_mask_denominator)
                                    ? own_mask_sum(rollout, sample, split, cp_rank)
                                    : clamped_mask_sum(rollout, sample);
        double const factor = planted(Fault::cp_factor_doubled) ? cp.size : 1;
        batch.samples.push_back(sample);
        batch.mask_sum.push_back(static_cast<float>(mask_sum));
        batch.weight.push_back(static_cast<float>(factor * reduction.weight(mask_sum)));
        for (PositionRange const range : owned_ranges(lengths.back(), split, cp_rank)) {
            append_range(batch, rollout, sample, slot, range);
        }
        for (std::int64_t i = rollout.response_offsets[sample];
             i < rollout.response_offsets[sample + 1]; ++i) {
            append_response(batch.all, rollout, slot, i);
        }
        batch.response_begin.push_back(batch.all.size());
    }
    batch.plan = make_cp_plan(lengths, cp, cp_rank);
    if (batch.loss() == LossComm::gather) {
        locate_in_streams(batch, lengths, rollout, split);
    }
    return batch;
}

}  // namespace cpstep
