#define BOOST_TEST_MODULE parity
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <functional>
#include <limits>

#include "app/parity.hpp"

using namespace cpstep;

namespace {

ModelConfig tiny_config() {
    ModelConfig config;
    config.vocab_size = 16;
    config.hidden_size = 8;
    config.intermediate_size = 12;
    config.num_hidden_layers = 1;
    config.num_attention_heads = 2;
    config.num_key_value_heads = 1;
    config.head_dim = 4;
    config.tie_word_embeddings = true;
    return config;
}

Rollout two_samples() {
    Rollout rollout;
    rollout.tokens = {1, 2, 3, 4, 5, 6, 7};
    rollout.token_offsets = {0, 4, 7};
    rollout.response_offsets = {0, 2, 4};
    rollout.loss_mask = {1, 1, 1, 1};
    return rollout;
}

VariantResult some_result(ParameterLayout const& layout, char const* name) {
    VariantResult result;
    result.name = name;
    result.metrics.loss = 0.5;
    result.metrics.grad_norm = 2.0;
    result.log_probs = {-1.0, -2.0, -3.0, -0.5};
    result.ref_log_probs = {-1.1, -2.1, -3.1, -0.6};
    result.entropy = {1.0, 1.5, 2.0, 0.3};
    result.seq_kl = {0.01, -0.02};
    result.advantages = {0.7, -0.7};
    for (std::int64_t i = 0; i < layout.size; ++i) {
        result.gradients.push_back(0.01F * static_cast<float>(i % 7 - 3));
        result.updated.push_back(0.1F);
    }
    return result;
}

struct Fixture {
    ParameterLayout layout{tiny_config()};
    Rollout rollout = two_samples();
    VariantResult base = some_result(layout, "cp1");
    VariantResult other = some_result(layout, "cp2");
    AdamWOptions adamw{.lr = 1e-3};

    std::vector<Check> checks() const {
        return compare_results(base, other, layout, rollout, adamw, 1.0);
    }
    /// Names of the failed checks.
    std::vector<std::string> failed() const {
        std::vector<std::string> names;
        for (Check const& check : checks()) {
            if (!check.pass) {
                names.push_back(check.name);
            }
        }
        return names;
    }
};

}  // namespace

BOOST_FIXTURE_TEST_CASE(equal_results_pass_every_check, Fixture) {
    BOOST_TEST(failed().empty());
    BOOST_TEST(checks().size() == 5 + 9 + 2 * layout.parameters.size());
}

BOOST_FIXTURE_TEST_CASE(each_planted_difference_fails_its_own_check, Fixture) {
    struct Plant {
        std::string name;
        std::function<void(VariantResult&)> change;
    };
    std::vector<Plant> const plants{
        {"log_probs", [](auto& r) { r.log_probs[2] += 1e-3; }},
        {"entropy", [](auto& r) { r.entropy[0] += 1e-3; }},
        {"ref_log_probs", [](auto& r) { r.ref_log_probs[1] -= 1e-3; }},
        {"seq_kl", [](auto& r) { r.seq_kl[1] = -r.seq_kl[1]; }},
        {"advantages", [](auto& r) { r.advantages[0] *= 1.01; }},
        {"loss", [](auto& r) { r.metrics.loss += 1e-3; }},
        {"pg_clipfrac", [](auto& r) { r.metrics.pg_clipfrac = 0.125; }},
        {"grad_norm", [](auto& r) { r.metrics.grad_norm *= 1.001; }},
        {"gradient model.norm.weight",
         [this](auto& r) { r.gradients[layout.parameters.back().offset] += 0.5F; }},
        {"updated model.norm.weight",
         [this](auto& r) { r.updated[layout.parameters.back().offset] += 1e-5F; }},
    };
    for (Plant const& plant : plants) {
        other = some_result(layout, "cp2");
        plant.change(other);
        BOOST_TEST_CONTEXT(plant.name) {
            auto const names = failed();
            BOOST_TEST(!names.empty());
            BOOST_TEST((std::find(names.begin(), names.end(), plant.name) != names.end()));
        }
    }
}

BOOST_FIXTURE_TEST_CASE(nan_empty_and_unequal_sizes_never_pass, Fixture) {
    double const nan = std::numeric_limits<double>::quiet_NaN();
    other.log_probs[0] = nan;
    base.log_probs[0] = nan;
    BOOST_TEST(failed() == std::vector<std::string>{"log_probs"}, boost::test_tools::per_element());
    BOOST_TEST(first_nonfinite(other, layout, rollout) == "log_probs of sample 0 token 0");

    other = some_result(layout, "cp2");
    base = some_result(layout, "cp1");
    other.entropy.pop_back();
    BOOST_TEST(failed() == std::vector<std::string>{"entropy"}, boost::test_tools::per_element());
    base.entropy.clear();
    other.entropy.clear();
    BOOST_TEST(failed() == std::vector<std::string>{"entropy"}, boost::test_tools::per_element());
}

BOOST_FIXTURE_TEST_CASE(the_place_of_the_worst_token_is_named, Fixture) {
    other.log_probs[3] += 0.1;
    for (Check const& check : checks()) {
        if (check.name == "log_probs") {
            BOOST_TEST(check.where == "sample 1 token 1");
        }
    }
}

BOOST_FIXTURE_TEST_CASE(ledger_faults_unequal_replicas_and_wrong_coverage_fail, Fixture) {
    for (Check const& check : check_result(base)) {
        BOOST_TEST(check.pass);
    }
    base.ledger_faults = {"[rank 1] cp.kv: 3 calls, budget 2 calls"};
    base.replica_spread = 1e-9;
    base.coverage_error = 1;
    base.coverage_place = "sample 0 token 1";
    for (Check const& check : check_result(base)) {
        BOOST_TEST(!check.pass);
        BOOST_TEST(!noise_may_explain(check), check.name);
    }
}

BOOST_FIXTURE_TEST_CASE(bounds_grow_to_eight_times_the_noise_of_the_baseline, Fixture) {
    auto const noise_of = [&](double value, float gradient) {
        VariantResult noisy = some_result(layout, "cp1");
        noisy.log_probs[1] += value;
        noisy.gradients[layout.parameters.back().offset] += gradient;
        return compare_results(base, noisy, layout, rollout, adamw, 1.0);
    };
    auto const failed_after = [&](std::vector<Check> const& noise, double& growth) {
        std::vector<Check> widened = checks();
        growth = widen_bounds(widened, noise);
        return std::count_if(widened.begin(), widened.end(),
                             [](Check const& check) { return !check.pass; });
    };
    double growth = 0;
    other.log_probs[2] += 1e-3;
    other.gradients[layout.parameters.back().offset] += 1e-4F;
    BOOST_TEST(failed_after(noise_of(0, 0), growth) == 2);
    BOOST_TEST(growth == 1.0);
    BOOST_TEST(failed_after(noise_of(0.9 * 1e-3 / 8, 0.9F * 1e-4F / 8), growth) == 2);
    BOOST_TEST(failed_after(noise_of(1.1 * 1e-3 / 8, 1.1F * 1e-4F / 8), growth) == 0);
    BOOST_TEST(growth > 1.0);
    double const nan = std::numeric_limits<double>::quiet_NaN();
    BOOST_TEST(failed_after(noise_of(nan, 0), growth) == 2);
    BOOST_TEST(growth == 1.0);

    // What is exact stays exact, whatever the noise.
    other = some_result(layout, "cp2");
    other.advantages[0] *= 1.01;
    BOOST_TEST(failed_after(noise_of(1, 1), growth) == 1);
}

BOOST_AUTO_TEST_CASE(relative_l2_is_exact_on_simple_numbers_and_fails_on_nan) {
    std::vector<float> const a{3.0F, 4.0F};
    std::vector<float> const b{3.0F, 5.0F};
    BOOST_TEST(relative_l2(b, a) == 0.2);
    BOOST_TEST(relative_l2(a, a) == 0.0);
    std::vector<float> const bad{std::numeric_limits<float>::quiet_NaN(), 4.0F};
    BOOST_TEST(std::isnan(relative_l2(bad, a)));
    BOOST_TEST(std::isnan(relative_l2(a, {})));
}
