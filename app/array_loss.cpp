#include "app/array_loss.hpp"

#include <cmath>
#include <limits>

namespace cpstep {

namespace {

constexpr double nan_value = std::numeric_limits<double>::quiet_NaN();

template <class T>
Matrix<T> column(std::vector<T>& values) {
    return {values.data(), static_cast<std::int64_t>(values.size()), 1, 1};
}

/// The whole rollout as the rows of one rank.
struct Rows {
    Rows(VariantResult const& result, Rollout const& rollout, Reduction const& reduction)
        : log_probs(result.log_probs),
          old(result.old_log_probs),
          ref(result.ref_log_probs),
          engine(result.rollout_log_probs),
          entropy(result.entropy),
          seq_kl(result.seq_kl),
          mask(rollout.loss_mask.begin(), rollout.loss_mask.end()) {
        for (std::int64_t j = 0; j < rollout.samples(); ++j) {
            double counted = 0;
            for (std::int64_t i = rollout.response_offsets[j]; i < rollout.response_offsets[j + 1];
                 ++i) {
                sample.push_back(static_cast<std::int32_t>(j));
                advantages.push_back(result.advantages[static_cast<std::size_t>(j)]);
                counted += rollout.loss_mask[static_cast<std::size_t>(i)];
            }
            mask_sum.push_back(std::max(counted, 1.0));
            weight.push_back(reduction.weight(mask_sum.back()));
        }
    }

    PolicyRows<double> view() {
        return {.log_probs = column(log_probs),
                .old_log_probs = column(old),
                .ref_log_probs = column(ref),
                .rollout_log_probs = column(engine),
                .entropy = column(entropy),
                .advantages = column(advantages),
                .mask = column(mask),
                .sample = column(sample),
                .seq_kl = column(seq_kl),
                .weight = column(weight)};
    }

    std::vector<double> log_probs, old, ref, engine, entropy, seq_kl;
    std::vector<std::int32_t> mask, sample;
    std::vector<double> advantages, mask_sum, weight;
};

bool fits(VariantResult const& result, Rollout const& rollout, PolicyLossOptions const& loss) {
    auto const tokens = static_cast<std::size_t>(rollout.response_tokens());
    auto const samples = static_cast<std::size_t>(rollout.samples());
    auto const or_empty = [&](std::vector<double> const& values, bool needed) {
        return values.size() == tokens || (values.empty() && !needed);
    };
    return tokens > 0 && rollout.loss_mask.size() == tokens && result.log_probs.size() == tokens &&
           result.old_log_probs.size() == tokens && result.entropy.size() == tokens &&
           or_empty(result.ref_log_probs, loss.use_kl_loss) &&
           or_empty(result.rollout_log_probs, loss.use_tis) && result.seq_kl.size() == samples &&
           result.advantages.size() == samples;
}

PolicyLossOptions shifted(PolicyLossOptions loss, double shift) {
    loss.eps_clip += shift;
    loss.eps_clip_high += shift;
    loss.opsm_delta += shift;
    loss.tis_clip += shift;
    loss.tis_clip_low -= shift;
    return loss;
}

}  // namespace

ArrayLoss loss_of_arrays(VariantResult const& result, Rollout const& rollout,
                         Options const& options, double border_shift) {
    PolicyLossOptions const loss = shifted(options.loss, border_shift);
    if (!fits(result, rollout, loss)) {
        return {.metrics = metrics_of(std::vector<double>(metric_count, nan_value), loss),
                .seq_kl = {},
                .d_log_probs = {}};
    }
    Rows rows(result, rollout, make_reduction(rollout, options.calculate_per_token_loss));
    ArrayLoss out;
    out.seq_kl.assign(rows.weight.size(), 0.0);
    sequence_kl_partial<double>(column(out.seq_kl), {}, column(rows.mask_sum), rows.view(), loss);
    std::vector<double> sums(metric_count);
    std::vector<double> d_entropy(rows.mask.size());
    std::vector<double> d_seq_kl(rows.weight.size());
    out.d_log_probs.resize(rows.mask.size());
    policy_loss<double>(column(out.d_log_probs), column(d_entropy), column(d_seq_kl), column(sums),
                        rows.view(), loss);
    sequence_kl_backward<double>(column(out.d_log_probs), column(d_seq_kl), column(rows.mask_sum),
                                 column(rows.mask), column(rows.sample));
    out.metrics = metrics_of(sums, loss);
    return out;
}

}  // namespace cpstep
