// Rows of a micro-batch that reach every branch of the policy loss, and what the loss makes of
// them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cuda/policy_loss.hpp"
#include "tests/close.hpp"

namespace cpstep::test {

template <class T>
Matrix<T> column(std::vector<T>& values) {
    return {values.data(), static_cast<std::int64_t>(values.size()), 1, 1};
}

/// Rows of a micro-batch with what the loss makes of them; all on one rank.
struct Batch {
    std::vector<double> now, old, ref, rollout, entropy, advantages, weight;
    std::vector<std::int32_t> mask, sample;
    PolicyLossOptions options;
    std::vector<double> seq_kl, factor_mean, mask_sum, d_now, d_entropy, d_seq_kl, metrics;

    void add(double log_ratio, double advantage, std::int32_t counts = 1, std::int32_t j = 0) {
        old.push_back(-1.0 - 0.1 * static_cast<double>(old.size()));
        now.push_back(old.back() + log_ratio);
        ref.push_back(now.back() - 0.3);
        rollout.push_back(old.back() - 0.1);
        entropy.push_back(1.5);
        advantages.push_back(advantage);
        mask.push_back(counts);
        sample.push_back(j);
        weight.resize(std::max(weight.size(), static_cast<std::size_t>(j) + 1), 1.0);
    }

    PolicyRows<double> rows() {
        return {.log_probs = column(now),
                .old_log_probs = column(old),
                .ref_log_probs = column(ref),
                .rollout_log_probs = column(rollout),
                .entropy = column(entropy),
                .advantages = column(advantages),
                .mask = column(mask),
                .sample = column(sample),
                .seq_kl = column(seq_kl),
                .weight = column(weight)};
    }

    /// k_j and the mean TIS factor by the partial sums.
    void sum_sequences() {
        seq_kl.assign(weight.size(), 0.0);
        factor_mean.assign(weight.size(), 0.0);
        mask_sum.assign(weight.size(), 0.0);
        for (std::size_t r = 0; r < mask.size(); ++r) {
            if (auto const j = static_cast<std::size_t>(sample[r]); j < mask_sum.size()) {
                mask_sum[j] += mask[r];  // a bad index is for the loss to refuse
            }
        }
        for (std::size_t j = 0; j < weight.size(); ++j) {
            mask_sum[j] = std::max(mask_sum[j], 1.0);
        }
        sequence_kl_partial<double>(column(seq_kl), column(factor_mean), column(mask_sum), rows(),
                                    options);
        metrics.assign(metric_count, 0.0);
        d_seq_kl.assign(weight.size(), 0.0);
        d_now.assign(now.size(), std::nan(""));
        d_entropy.assign(now.size(), std::nan(""));
    }

    /// The loss with its gradient in closed form.
    void evaluate_closed() {
        sum_sequences();
        PolicyRows<double> closed = rows();
        closed.factor_mean = column(factor_mean);
        policy_loss<double>(column(d_now), column(d_entropy), {}, column(metrics), closed, options);
    }

    /// The loss, its gradient, then the path through k_j.
    void evaluate() {
        sum_sequences();
        policy_loss<double>(column(d_now), column(d_entropy), column(d_seq_kl), column(metrics),
                            rows(), options);
        sequence_kl_backward<double>(column(d_now), column(d_seq_kl), column(mask_sum),
                                     column(mask), column(sample));
    }

    double pg_loss() {
        evaluate();
        return metrics[metric_pg_loss];
    }
    /// The terms beside the policy gradient.
    double regularisers() {
        evaluate();
        return -options.entropy_coef * metrics[metric_entropy_loss] +
               (options.use_kl_loss ? options.kl_loss_coef * metrics[metric_kl_loss] : 0.0);
    }
    double loss() { return pg_loss() + regularisers(); }
};

/// Five samples: inside the band, above, below, mixed, all masked; both signs of the advantage, one
/// ratio beyond a dual clip, one reference far enough for the clamp, masked rows that hold NaN.
inline Batch varied_batch() {
    Batch batch;
    std::vector<double> const log_ratios = {0.05, 0.8, -0.6, 0.45};
    std::vector<double> const noise = random_values<double>(64, 5, 0.3);
    for (std::int32_t j = 0; j < 4; ++j) {
        for (std::size_t t = 0; t < 5; ++t) {
            std::size_t const r = batch.now.size();
            double const advantage = (t % 2 == 0 ? 1.0 : -1.0) * (0.5 + std::abs(noise[r]));
            batch.add(log_ratios[static_cast<std::size_t>(j)] + noise[r + 20], advantage, t != 3,
                      j);
            batch.ref[r] = batch.now[r] + 2 * noise[r + 30];
            batch.rollout[r] = batch.old[r] - 4 * noise[r + 40];
            batch.entropy[r] = 1.0 + noise[r];
        }
        batch.ref[static_cast<std::size_t>(j) * 5 + 1] += 4.0;
    }
    batch.add(0.1, 1.0, 0, 4);
    for (std::size_t r = 0; r < batch.now.size(); ++r) {
        if (batch.mask[r] == 0) {
            batch.now[r] = batch.old[r] = batch.ref[r] = std::nan("");
            batch.rollout[r] = batch.entropy[r] = std::nan("");
        }
    }
    batch.weight = {0.05, 0.1, 0.075, 0.2, 0.3};
    batch.options.kl_loss_coef = 0.3;
    batch.options.entropy_coef = 0.02;
    return batch;
}

/// The size of each sample's first advantage for all its rows, signs by turns.
inline Batch with_constant_advantages(Batch batch) {
    for (std::size_t r = 0; r < batch.now.size(); ++r) {
        auto const j = static_cast<std::size_t>(batch.sample[r]);
        batch.advantages[r] = (j % 2 == 0 ? 1.0 : -1.0) * std::abs(batch.advantages[5 * j]);
    }
    return batch;
}

inline std::vector<PolicyLossOptions> every_combination() {
    std::vector<PolicyLossOptions> all;
    for (Estimator estimator : {Estimator::grpo, Estimator::gspo, Estimator::cispo}) {
        for (KlType kl_type : {KlType::k1, KlType::k2, KlType::k3, KlType::low_var_kl}) {
            for (unsigned bits = 0; bits < 32; ++bits) {
                PolicyLossOptions o = varied_batch().options;
                o.estimator = estimator;
                o.kl_type = kl_type;
                o.use_unbiased_kl = (bits & 1U) != 0;
                o.use_opsm = (bits & 2U) != 0;
                o.use_tis = (bits & 4U) != 0;
                o.use_kl_loss = (bits & 8U) != 0;
                if ((bits & 16U) != 0) {
                    o.eps_clip_c = 1.5;
                }
                o.eps_clip_high = 0.28;
                all.push_back(o);
            }
        }
    }
    return all;
}

/// dL/dnow of row r by differences. CISPO's ratio is a constant of the gradient: moving the three
/// log-probs together leaves every ratio of the policy term alone.
inline double difference(Batch& batch, std::size_t r, double step) {
    double const rest =
        central_difference(batch.now[r], step, [&] { return batch.regularisers(); });
    if (batch.options.estimator != Estimator::cispo) {
        return rest + central_difference(batch.now[r], step, [&] { return batch.pg_loss(); });
    }
    double const now = batch.now[r];
    double const old = batch.old[r];
    double const rollout = batch.rollout[r];
    double const slope = central_difference(batch.now[r], step, [&] {
        batch.old[r] = old + (batch.now[r] - now);
        batch.rollout[r] = rollout + (batch.now[r] - now);
        return batch.pg_loss();
    });
    batch.old[r] = old;
    batch.rollout[r] = rollout;
    return rest + slope;
}

}  // namespace cpstep::test
