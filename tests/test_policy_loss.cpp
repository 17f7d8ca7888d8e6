#define BOOST_TEST_MODULE policy_loss
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <numeric>
#include <vector>

#include "cuda/policy_loss.hpp"
#include "tests/close.hpp"

using namespace cpstep;
using cpstep::test::all_close;
using cpstep::test::central_difference;
using cpstep::test::random_values;
using cpstep::test::rounding_bound;
using cpstep::test::within;

namespace {

template <class T>
Matrix<T> column(std::vector<T>& values) {
    return {values.data(), static_cast<std::int64_t>(values.size()), 1, 1};
}

double sum_of(std::vector<double> const& values) {
    return std::accumulate(values.begin(), values.end(), 0.0);
}

/// Rows of a micro-batch with what the loss makes of them; all on one rank.
struct Batch {
    std::vector<double> now, old, ref, rollout, entropy, advantages, weight;
    std::vector<std::int32_t> mask, sample;
    PolicyLossOptions options;
    std::vector<double> seq_kl, mask_sum, d_now, d_entropy, d_seq_kl, metrics;

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

    /// k_j by the partial sums, then the loss, its gradient and the path through k_j.
    void evaluate() {
        seq_kl.assign(weight.size(), 0.0);
        mask_sum.assign(weight.size(), 0.0);
        for (std::size_t r = 0; r < mask.size(); ++r) {
            if (auto const j = static_cast<std::size_t>(sample[r]); j < mask_sum.size()) {
                mask_sum[j] += mask[r];  // a bad index is for the loss to refuse
            }
        }
        for (std::size_t j = 0; j < weight.size(); ++j) {
            mask_sum[j] = std::max(mask_sum[j], 1.0);
        }
        sequence_kl_partial<double>(column(seq_kl), column(now), column(old), column(mask_sum),
                                    column(mask), column(sample));
        metrics.assign(metric_count, 0.0);
        d_seq_kl.assign(weight.size(), 0.0);
        d_now.assign(now.size(), std::nan(""));
        d_entropy.assign(now.size(), std::nan(""));
        policy_loss<double>(
            column(d_now), column(d_entropy), column(d_seq_kl), column(metrics),
            {column(now), column(old), column(ref), column(rollout), column(entropy),
             column(advantages), column(mask), column(sample), column(seq_kl), column(weight)},
            options);
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
Batch varied_batch() {
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

std::vector<PolicyLossOptions> every_combination() {
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
double difference(Batch& batch, std::size_t r, double step) {
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

}  // namespace

BOOST_AUTO_TEST_CASE(worked_values_of_the_clipped_objective) {
    std::vector<double> const ratios = {2.0, 2.0, 0.5};
    std::vector<double> const advantages = {2.0, -2.0, 2.0};
    std::vector<double> const want = {-2.4, 3.0, -1.0};
    std::vector<double> const want_slope = {0.0, 0.0, -1.0};  // -rho A where no clip holds
    for (Estimator estimator : {Estimator::grpo, Estimator::gspo}) {
        for (std::size_t i = 0; i < 3; ++i) {
            Batch batch;
            batch.options.eps_clip_c = 1.5;
            batch.options.estimator = estimator;
            batch.add(std::log(ratios[i]), advantages[i]);
            double const bound = rounding_bound<double>(8, 4);
            BOOST_TEST(within(batch.pg_loss(), want[i], bound, 0.0));
            BOOST_TEST(within(batch.d_now[0], want_slope[i], bound, 0.0));
            BOOST_TEST(batch.metrics[metric_pg_clipfrac] == (i == 0 ? 1.0 : 0.0));
            BOOST_TEST(within(batch.metrics[metric_ppo_kl], -std::log(ratios[i]), bound, 0.0));
        }
    }
}

BOOST_AUTO_TEST_CASE(cispo_weighs_the_log_prob_by_the_clipped_ratio) {
    Batch batch;
    batch.options.estimator = Estimator::cispo;
    batch.options.eps_clip_c = 1.1;  // no part of this estimator
    batch.add(std::log(2.0), -3.0);
    double const bound = rounding_bound<double>(8, 4);
    BOOST_TEST(within(batch.pg_loss(), 1.2 * 3.0 * batch.now[0], bound, 0.0));
    BOOST_TEST(within(batch.d_now[0], 1.2 * 3.0, bound, 0.0));
    BOOST_TEST(batch.metrics[metric_pg_clipfrac] == 1.0);  // out of the band, though l2 < l1
}

BOOST_AUTO_TEST_CASE(kl_values) {
    auto const kl = [](KlType type, bool unbiased, double d) {
        Batch batch;
        batch.options.kl_type = type;
        batch.options.use_unbiased_kl = unbiased;
        batch.add(std::log(2.0), 1.0);
        batch.ref[0] = batch.now[0] - d;
        batch.evaluate();
        return batch.metrics[metric_kl_loss];
    };
    double const bound = rounding_bound<double>(8, 4);
    double const k3 = std::exp(-0.5) - 1 + 0.5;
    BOOST_TEST(within(kl(KlType::k1, false, 0.5), 0.5, bound, 0.0));
    BOOST_TEST(within(kl(KlType::k2, false, 0.5), 0.125, bound, 0.0));
    BOOST_TEST(within(kl(KlType::k3, false, 0.5), k3, bound, 0.0));
    BOOST_TEST(within(kl(KlType::low_var_kl, false, 0.5), k3, bound, 0.0));
    BOOST_TEST(within(kl(KlType::k1, true, 0.5), 1.0, bound, 0.0));
    BOOST_TEST(within(kl(KlType::k3, false, -4.0), std::exp(4.0) - 5, bound, 0.0));
    BOOST_TEST(within(kl(KlType::low_var_kl, false, -4.0), 10.0, bound, 0.0));
    // 7.39 - 3 = 4.39 alone is below the clamp, doubled it is 8.8; 2 (12.18 - 3.5) is above
    BOOST_TEST(within(kl(KlType::low_var_kl, true, -2.0), 2 * (std::exp(2.0) - 3), bound, 0.0));
    BOOST_TEST(within(kl(KlType::low_var_kl, true, -2.5), 10.0, bound, 0.0));
}

BOOST_AUTO_TEST_CASE(gradient_equals_finite_differences_for_every_combination_of_options) {
    Batch batch = varied_batch();
    for (PolicyLossOptions const& options : every_combination()) {
        batch.options = options;
        batch.evaluate();
        std::vector<double> const d_now = batch.d_now;
        std::vector<double> const d_entropy = batch.d_entropy;
        for (std::size_t r = 0; r < d_now.size(); ++r) {
            if (batch.mask[r] == 0) {
                BOOST_REQUIRE(d_now[r] == 0.0);
                BOOST_REQUIRE(d_entropy[r] == 0.0);
                continue;
            }
            BOOST_REQUIRE(within(d_now[r], difference(batch, r, 1e-5), 1e-7, 1e-9));
            auto const entropy_loss = [&] { return batch.loss(); };
            double const slope = central_difference(batch.entropy[r], 1e-3, entropy_loss);
            BOOST_REQUIRE(within(d_entropy[r], slope, 1e-9, 1e-11));
        }
        BOOST_REQUIRE(std::isfinite(sum_of(batch.metrics)));
    }
}

BOOST_AUTO_TEST_CASE(the_varied_batch_reaches_every_branch) {
    Batch batch = varied_batch();
    batch.options.use_opsm = batch.options.use_tis = true;
    batch.evaluate();
    double const total = 4 * (0.05 + 0.1 + 0.075 + 0.2);
    for (Metric m : {metric_pg_clipfrac, metric_opsm_clipfrac, metric_tis_clipfrac}) {
        BOOST_TEST(batch.metrics[m] > 0.0);
        BOOST_TEST(batch.metrics[m] < total);
    }
    double const plain = varied_batch().pg_loss();
    Batch dual = varied_batch();
    dual.options.eps_clip_c = 1.5;
    BOOST_TEST(dual.pg_loss() < plain - 0.01);
    Batch clamped = varied_batch();
    clamped.options.kl_type = KlType::low_var_kl;
    Batch free = varied_batch();
    free.options.kl_type = KlType::k3;
    clamped.evaluate();
    free.evaluate();
    BOOST_TEST(clamped.metrics[metric_kl_loss] < free.metrics[metric_kl_loss] - 0.1);
}

BOOST_AUTO_TEST_CASE(opsm_drops_negative_tokens_of_a_drifted_sample_and_counts_masked_ones) {
    Batch batch;
    batch.options.use_opsm = true;
    batch.options.opsm_delta = 0.1;
    batch.add(-0.3, -1.0, 1, 0);  // k_0 = 0.3 > delta
    batch.add(-0.3, -1.0, 0, 0);
    batch.add(-0.3, 2.0, 1, 0);
    batch.add(-0.05, -1.0, 1, 1);  // k_1 = 0.05
    batch.weight = {0.25, 0.5};
    double const kept = -0.25 * 2.0 * std::exp(-0.3) + 0.5 * std::exp(-0.05);
    double const bound = rounding_bound<double>(8, 4);
    BOOST_TEST(within(batch.pg_loss(), kept, bound, bound));
    BOOST_TEST(within(batch.metrics[metric_opsm_clipfrac], 0.5, bound, 0.0));
    BOOST_TEST(batch.d_now[0] == 0.0);
    BOOST_TEST(batch.d_now[1] == 0.0);
}

BOOST_AUTO_TEST_CASE(tis_scales_the_policy_term_and_counts_where_it_was_clipped) {
    Batch batch;
    batch.options.use_tis = true;
    batch.add(0.0, 1.0);
    batch.add(0.0, 1.0);
    batch.add(0.0, 1.0, 0);
    batch.rollout[0] = batch.old[0] - std::log(1.5);
    batch.rollout[1] = batch.old[1] - std::log(5.0);
    batch.rollout[2] = batch.old[2] - std::log(5.0);
    double const bound = rounding_bound<double>(8, 4);
    BOOST_TEST(within(batch.pg_loss(), -1.5 - 2.0, bound, 0.0));
    BOOST_TEST(batch.metrics[metric_tis_clipfrac] == 1.0);
    BOOST_TEST(within(batch.d_now[0], -1.5, bound, 0.0));
    BOOST_TEST(within(batch.d_now[1], -2.0, bound, 0.0));
}

BOOST_AUTO_TEST_CASE(kl_is_reported_without_its_coefficient_and_its_gradient_follows_the_switch) {
    Batch batch;
    batch.options.kl_loss_coef = 7.0;
    batch.add(0.0, 0.0);
    batch.evaluate();
    BOOST_TEST(within(batch.metrics[metric_kl_loss], 0.3, rounding_bound<double>(8, 4), 0.0));
    BOOST_TEST(batch.d_now[0] == 0.0);
    batch.options.use_kl_loss = true;
    batch.evaluate();
    BOOST_TEST(batch.d_now[0] == 7.0);
    batch.options.use_kl_loss = false;
    batch.ref.clear();
    batch.ref.shrink_to_fit();
    batch.evaluate();
    BOOST_TEST(batch.metrics[metric_kl_loss] == 0.0);
}

BOOST_AUTO_TEST_CASE(metrics_and_sequence_sums_of_parts_add_up) {
    Batch batch = varied_batch();
    batch.options.estimator = Estimator::gspo;
    batch.evaluate();
    std::vector<double> metrics(metric_count);
    std::vector<double> d_seq_kl(5);
    std::vector<double> partial(5);
    std::vector<double> d_now(batch.now.size());
    std::vector<double> d_entropy(batch.now.size());
    for (std::int64_t part = 0; part < 3; ++part) {  // rows 0..6, 7..13, 14..20
        auto const rows = [part](auto& values) {
            return Matrix{values.data() + 7 * part, std::int64_t{7}, std::int64_t{1},
                          std::int64_t{1}};
        };
        sequence_kl_partial<double>(column(partial), rows(batch.now), rows(batch.old),
                                    column(batch.mask_sum), rows(batch.mask), rows(batch.sample));
        policy_loss<double>(rows(d_now), rows(d_entropy), column(d_seq_kl), column(metrics),
                            {rows(batch.now), rows(batch.old), rows(batch.ref), rows(batch.rollout),
                             rows(batch.entropy), rows(batch.advantages), rows(batch.mask),
                             rows(batch.sample), column(batch.seq_kl), column(batch.weight)},
                            batch.options);
    }
    sequence_kl_backward<double>(column(d_now), column(d_seq_kl), column(batch.mask_sum),
                                 column(batch.mask), column(batch.sample));
    double const bound = rounding_bound<double>(8, 21);
    BOOST_TEST(all_close(metrics, batch.metrics, bound, bound));
    BOOST_TEST(all_close(d_seq_kl, batch.d_seq_kl, bound, bound));
    BOOST_TEST(all_close(partial, batch.seq_kl, bound, bound));
    BOOST_TEST(all_close(d_now, batch.d_now, bound, bound));
}

BOOST_AUTO_TEST_CASE(no_rows_leave_sums_alone_and_bad_inputs_are_refused) {
    auto const internal = [](Error const& e) { return e.code() == ExitCode::internal; };
    Batch none;
    none.weight = {1.0};
    none.options.use_kl_loss = none.options.use_tis = true;
    BOOST_TEST(none.loss() == 0.0);

    Batch batch;
    batch.add(0.0, 1.0);
    batch.sample[0] = 1;
    BOOST_CHECK_EXCEPTION(batch.evaluate(), Error, internal);
    batch.sample[0] = 0;
    batch.options.use_tis = true;
    batch.rollout.clear();
    BOOST_CHECK_EXCEPTION(batch.evaluate(), Error, internal);
}
