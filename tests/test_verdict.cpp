#define BOOST_TEST_MODULE verdict
#include <boost/test/unit_test.hpp>

#include "app/verdict.hpp"

using namespace cpstep;

namespace {

Report passing() {
    Report report;
    report.signal = {true, "gradient norm 1"};
    report.results.resize(2);
    report.checks.push_back({"cp2", "log_probs", 1e-7, 1e-5, "max abs", "", true});
    return report;
}

VariantTiming timed(double ratio, double low, double high) {
    VariantTiming timing;
    timing.ratio = {ratio, low, high, 5};
    return timing;
}

ExitCode code_of(Report report, double gate) {
    judge(report, gate);
    return report.code;
}

}  // namespace

BOOST_AUTO_TEST_CASE(severity_orders_the_exit_code) {
    Report report = passing();
    BOOST_TEST((code_of(report, 0) == ExitCode::pass));
    report.timing.variants = {timed(1, 1, 1), timed(2.0, 1.9, 2.1)};
    BOOST_TEST((code_of(report, 0) == ExitCode::pass));
    BOOST_TEST((code_of(report, 1.05) == ExitCode::performance));
    BOOST_TEST((code_of(report, 2.0) == ExitCode::inconclusive));
    BOOST_TEST((code_of(report, 2.5) == ExitCode::pass));
    report.unresolved = "rounding is amplified";
    BOOST_TEST((code_of(report, 2.5) == ExitCode::inconclusive));
    report.unresolved.clear();
    report.signal.present = false;
    BOOST_TEST((code_of(report, 1.05) == ExitCode::inconclusive));
    report.checks[0].pass = false;
    BOOST_TEST((code_of(report, 1.05) == ExitCode::parity));
    report.nonfinite = "cp2: loss";
    BOOST_TEST((code_of(report, 1.05) == ExitCode::nonfinite));
}

BOOST_AUTO_TEST_CASE(noise_beyond_resolution_excuses_only_what_it_may_explain) {
    Report report = passing();
    report.unresolved = "rounding is amplified";
    report.checks[0].pass = false;
    BOOST_TEST((code_of(report, 0) == ExitCode::inconclusive));
    report.checks[0].measured = std::numeric_limits<double>::quiet_NaN();
    BOOST_TEST((code_of(report, 0) == ExitCode::parity));
    report.checks[0].measured = 1;
    report.checks.push_back({"cp2", "ledger", 1, 0, "labels off budget", "", false});
    BOOST_TEST((code_of(report, 0) == ExitCode::parity));
}

BOOST_AUTO_TEST_CASE(a_gate_on_times_that_say_nothing_is_inconclusive) {
    Report report = passing();
    report.timing_valid = false;
    report.timing.variants = {timed(1, 1, 1), timed(2.0, 1.9, 2.1)};
    BOOST_TEST((code_of(report, 0) == ExitCode::pass));
    for (double const gate : {1.05, 2.5}) {
        judge(report, gate);
        BOOST_TEST((report.code == ExitCode::inconclusive));
        BOOST_TEST(report.reason.find("share a GPU") != std::string::npos, report.reason);
    }
    report.checks[0].pass = false;
    BOOST_TEST((code_of(report, 1.05) == ExitCode::parity));
}

BOOST_AUTO_TEST_CASE(a_gate_that_hangs_on_blocks_with_a_slowed_gpu_is_inconclusive) {
    Report report = passing();
    for (int block = 0; block < 6; ++block) {  // in blocks 0 to 3 cp2 takes twice as long
        report.timing.steps.push_back({"cp1", block, 1.0});
        report.timing.steps.push_back({"cp2", block, block < 4 ? 2.0 : 1.0});
    }
    report.timing.variants = summarize_timing(report.timing.steps, {"cp1", "cp2"}, 1);
    BOOST_TEST((code_of(report, 2.5) == ExitCode::pass));
    BlockClock const held{.rank = 1, .block = 4, .reasons = clock_reason::software_power_cap};
    BlockClock const hot{.rank = 1, .block = 5, .reasons = clock_reason::hardware_thermal};
    report.gpu_clocks = {held};
    BOOST_TEST((code_of(report, 2.5) == ExitCode::pass));
    report.gpu_clocks = {hot};
    BOOST_TEST((code_of(report, 0) == ExitCode::pass));    // nothing is gated
    BOOST_TEST((code_of(report, 2.5) == ExitCode::pass));  // nor does 2.5 hang on block 5
    report.gpu_clocks.clear();
    for (int block = 0; block < 4; ++block) {
        report.gpu_clocks.push_back({.block = block, .reasons = clock_reason::power_brake});
    }
    report.timing.variants[1].ratio = {2.0, 1.9, 2.1, 6};
    judge(report, 1.5);  // without blocks 0 to 3 it passes
    BOOST_TEST((report.code == ExitCode::inconclusive));
    BOOST_TEST(report.reason.find("slowed down (4 of 6)") != std::string::npos, report.reason);
    for (int const block : {4, 5}) {
        report.gpu_clocks.push_back({.block = block, .reasons = clock_reason::power_brake});
    }
    BOOST_TEST((code_of(report, 2.5) == ExitCode::inconclusive));  // no block is left
}

BOOST_AUTO_TEST_CASE(bounds_of_bf16_are_not_widened_by_noise) {
    Report report = passing();
    report.checks[0].pass = false;
    BOOST_TEST(fails_within_reach_of_noise(report));
    report.precision = Precision::bf16;
    BOOST_TEST(!fails_within_reach_of_noise(report));
}

BOOST_AUTO_TEST_CASE(exact_arithmetic_fails_whatever_the_resolution) {
    Report report = passing();
    report.unresolved = "bf16 cannot tell";
    report.checks[0].pass = false;
    BOOST_TEST((code_of(report, 0) == ExitCode::inconclusive));
    report.checks[0].exact = true;
    BOOST_TEST((code_of(report, 0) == ExitCode::parity));
}

BOOST_AUTO_TEST_CASE(the_reason_names_the_failed_check) {
    Report report = passing();
    report.checks[0].pass = false;
    report.checks[0].where = "sample 3 token 17";
    judge(report, 0);
    BOOST_TEST(report.reason.find("cp2 log_probs") != std::string::npos);
    BOOST_TEST(report.reason.find("sample 3 token 17") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(a_zero_gradient_is_no_signal_and_says_why) {
    Options options;
    SampleSet samples;
    samples.advantages = {0.0F, 0.0F};
    VariantResult base;
    Signal const none = check_signal(base, options, samples);
    BOOST_TEST(!none.present);
    BOOST_TEST(none.reason.find("one sample per prompt") != std::string::npos);
    BOOST_TEST(none.reason.find("--n-samples-per-prompt") != std::string::npos);

    base.metrics.grad_norm = std::numeric_limits<double>::quiet_NaN();
    BOOST_TEST(!check_signal(base, options, samples).present);
    base.metrics.grad_norm = 0.25;
    samples.advantages = {0.5F, 0.0F};
    Signal const some = check_signal(base, options, samples);
    BOOST_TEST(some.present);
    BOOST_TEST(some.reason.find("1 of 2 samples") != std::string::npos);
}
