#define BOOST_TEST_MODULE policy_loss
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <numeric>
#include <vector>

#include "tests/policy_batch.hpp"

using namespace cpstep;
using namespace cpstep::test;

namespace {

double sum_of(std::vector<double> const& values) {
    return std::accumulate(values.begin(), values.end(), 0.0);
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

BOOST_AUTO_TEST_CASE(the_closed_form_is_the_two_step_gradient_when_advantages_are_per_sequence) {
    Batch batch = with_constant_advantages(varied_batch());
    for (PolicyLossOptions const& options : every_combination()) {
        batch.options = options;
        batch.evaluate();
        std::vector<double> const two_step = batch.d_now;
        std::vector<double> const d_entropy = batch.d_entropy;
        std::vector<double> const metrics = batch.metrics;
        batch.evaluate_closed();
        double const bound = rounding_bound<double>(8, 5);
        BOOST_REQUIRE(all_close(batch.d_now, two_step, bound, bound));
        BOOST_REQUIRE(batch.d_entropy == d_entropy);
        BOOST_REQUIRE(batch.metrics == metrics);
        BOOST_REQUIRE(sum_of(batch.d_seq_kl) == 0.0);
    }
}

BOOST_AUTO_TEST_CASE(the_closed_form_equals_finite_differences) {
    Batch batch = with_constant_advantages(varied_batch());
    for (bool const tis : {false, true}) {
        for (bool const opsm : {false, true}) {
            batch.options.estimator = Estimator::gspo;
            batch.options.eps_clip = batch.options.eps_clip_high = 0.5;
            batch.options.use_tis = tis;
            batch.options.use_opsm = opsm;
            batch.evaluate_closed();
            std::vector<double> const d_now = batch.d_now;
            int with_gradient = 0;
            for (std::size_t r = 0; r < d_now.size(); ++r) {
                if (batch.mask[r] == 0) {
                    BOOST_TEST(d_now[r] == 0.0);
                    continue;
                }
                with_gradient += d_now[r] != 0.0 ? 1 : 0;
                BOOST_TEST(within(d_now[r], difference(batch, r, 1e-5), 1e-7, 1e-9));
            }
            BOOST_TEST(with_gradient > 0);
        }
    }
}

BOOST_AUTO_TEST_CASE(the_mean_factor_is_that_of_unmasked_tokens_and_an_all_masked_sample_has_none) {
    Batch batch;
    batch.options.use_tis = true;
    batch.add(0.0, 1.0);     // exp(old - rollout) = exp(0.1)
    batch.add(0.0, 1.0, 0);  // masked
    batch.add(0.0, 1.0);     // clipped to 2
    batch.add(0.0, 1.0, 0, 1);
    batch.rollout[2] = batch.old[2] - 5.0;
    batch.rollout[1] = batch.rollout[3] = std::nan("");
    batch.sum_sequences();
    double const bound = rounding_bound<double>(8, 4);
    BOOST_TEST(within(batch.factor_mean[0], (std::exp(0.1) + 2.0) / 2, bound, 0.0));
    BOOST_TEST(batch.factor_mean[1] == 0.0);
    batch.options.use_tis = false;
    batch.sum_sequences();
    BOOST_TEST(batch.factor_mean == (std::vector<double>{1.0, 0.0}),
               boost::test_tools::per_element());
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
    batch.options.use_tis = true;
    batch.evaluate();
    std::vector<double> metrics(metric_count);
    std::vector<double> d_seq_kl(5);
    std::vector<double> partial(5);
    std::vector<double> factors(5);
    std::vector<double> d_now(batch.now.size());
    std::vector<double> d_entropy(batch.now.size());
    for (std::int64_t part = 0; part < 3; ++part) {  // rows 0..6, 7..13, 14..20
        auto const part_of = [part](auto& values) {
            return Matrix{values.data() + 7 * part, std::int64_t{7}, std::int64_t{1},
                          std::int64_t{1}};
        };
        PolicyRows<double> const rows{.log_probs = part_of(batch.now),
                                      .old_log_probs = part_of(batch.old),
                                      .ref_log_probs = part_of(batch.ref),
                                      .rollout_log_probs = part_of(batch.rollout),
                                      .entropy = part_of(batch.entropy),
                                      .advantages = part_of(batch.advantages),
                                      .mask = part_of(batch.mask),
                                      .sample = part_of(batch.sample),
                                      .seq_kl = column(batch.seq_kl),
                                      .weight = column(batch.weight)};
        sequence_kl_partial<double>(column(partial), column(factors), column(batch.mask_sum), rows,
                                    batch.options);
        policy_loss<double>(part_of(d_now), part_of(d_entropy), column(d_seq_kl), column(metrics),
                            rows, batch.options);
    }
    sequence_kl_backward<double>(column(d_now), column(d_seq_kl), column(batch.mask_sum),
                                 column(batch.mask), column(batch.sample));
    double const bound = rounding_bound<double>(8, 21);
    BOOST_TEST(all_close(metrics, batch.metrics, bound, bound));
    BOOST_TEST(all_close(d_seq_kl, batch.d_seq_kl, bound, bound));
    BOOST_TEST(all_close(partial, batch.seq_kl, bound, bound));
    BOOST_TEST(all_close(factors, batch.factor_mean, bound, bound));
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

    Batch unsummed;
    unsummed.add(0.0, 1.0);
    unsummed.sum_sequences();
    BOOST_CHECK_EXCEPTION(
        policy_loss<double>(column(unsummed.d_now), column(unsummed.d_entropy), {},
                            column(unsummed.metrics), unsummed.rows(), unsummed.options),
        Error, internal);
}
