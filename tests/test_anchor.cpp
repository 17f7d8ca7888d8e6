#define BOOST_TEST_MODULE anchor
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <limits>
#include <utility>

#include "app/anchor.hpp"

using namespace cpstep;

namespace {

VariantResult result_of(std::vector<double> log_probs, std::vector<double> old) {
    VariantResult result;
    result.log_probs = std::move(log_probs);
    result.old_log_probs = std::move(old);
    return result;
}

Setup tiny_setup(std::vector<std::string> const& more) {
    std::vector<std::string> arguments{"--hf-checkpoint",
                                       "inputs/tiny",
                                       "--ref-load",
                                       "inputs/tiny-ref",
                                       "--rollout-prompt-len",
                                       "4",
                                       "--rollout-batch-size",
                                       "2",
                                       "--rollout-max-response-len",
                                       "6",
                                       "--context-parallel-size",
                                       "1,2"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return {parse_run_options(arguments, {}), 2};
}

}  // namespace

BOOST_AUTO_TEST_CASE(old_log_probs_of_the_steps_own_pass_keep_the_ratios) {
    VariantResult const fp32 = result_of({-1, -2}, {-1.5, -2.5});
    BOOST_TEST(has_ratios_of(fp32, fp32));
    BOOST_TEST(has_ratios_of(fp32, result_of({-1.01, -1.98}, {-1.51, -2.48})));
    BOOST_TEST(has_ratios_of(fp32, result_of({-1.01, -2}, {-1.51 + 1e-6, -2.5})));
    BOOST_TEST(!has_ratios_of(fp32, result_of({-1.01, -2}, {-1.5, -2.5})));
    double const nan = std::numeric_limits<double>::quiet_NaN();
    BOOST_TEST(!has_ratios_of(fp32, result_of({nan, -2}, {nan, -2.5})));
}

BOOST_AUTO_TEST_CASE(an_anchored_step_has_the_ratios_of_the_result) {
    Setup const setup = tiny_setup({"--use-kl-loss", "--kl-loss-coef", "0.1"});
    BOOST_REQUIRE(setup.shape.old_pass);
    auto const tokens = static_cast<std::size_t>(setup.samples.rollout.response_tokens());
    VariantResult fp32 =
        result_of(std::vector<double>(tokens, -2), std::vector<double>(tokens, -2));
    fp32.ref_log_probs.assign(tokens, -3);
    VariantResult bf16 = result_of(std::vector<double>(tokens, -2.25), {});
    for (std::size_t i = 0; i < tokens; ++i) {
        bf16.old_log_probs.push_back(-2.125 - 0.125 * static_cast<double>(i));
    }
    Setup const anchored = anchored_setup(setup, fp32, bf16);
    Rollout const& rollout = anchored.samples.rollout;
    BOOST_REQUIRE(rollout.old_log_probs.size() == tokens);
    for (std::size_t i = 0; i < tokens; ++i) {
        BOOST_TEST(fp32.log_probs[i] - rollout.old_log_probs[i] ==
                   bf16.log_probs[i] - bf16.old_log_probs[i]);
        BOOST_TEST(rollout.ref_log_probs[i] == -3.0F);
    }
    BOOST_TEST(rollout.rollout_log_probs.empty());
    BOOST_TEST((!anchored.shape.old_pass && !anchored.shape.ref_pass && anchored.shape.has_ref));
    BOOST_TEST(!anchored.has_ref_weights());
    BOOST_TEST(anchored.plans.size() == 1U);
    BOOST_TEST(rollout.tokens == setup.samples.rollout.tokens);
}

BOOST_AUTO_TEST_CASE(the_importance_weight_of_the_rollout_engine_stays) {
    Setup const setup = tiny_setup({"--use-tis"});
    auto const tokens = static_cast<std::size_t>(setup.samples.rollout.response_tokens());
    VariantResult fp32 =
        result_of(std::vector<double>(tokens, -2), std::vector<double>(tokens, -2));
    VariantResult bf16 =
        result_of(std::vector<double>(tokens, -2.25), std::vector<double>(tokens, -2.5));
    bf16.rollout_log_probs.assign(tokens, -2.625);
    Rollout const rollout = anchored_setup(setup, fp32, bf16).samples.rollout;
    for (std::size_t i = 0; i < tokens; ++i) {
        BOOST_TEST(rollout.old_log_probs[i] - rollout.rollout_log_probs[i] == 0.125F);
    }
}
