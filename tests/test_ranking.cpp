#define BOOST_TEST_MODULE ranking
#include <boost/test/unit_test.hpp>
#include <cmath>

#include "app/ranking.hpp"
#include "tests/close.hpp"

using namespace cpstep;
using cpstep::test::within;

namespace {

VariantPlan plan(std::string name, CpConfig const& cp) {
    return {std::move(name), cp, {.world = 2, .cp = cp.size}, {}};
}

VariantResult result(std::string name, Ledger ledger) {
    VariantResult made;
    made.name = std::move(name);
    made.ledger = std::move(ledger);
    return made;
}

/// Two ranks; ledgers are summed over them.
Report three_variants() {
    Report report;
    report.plans = {plan("cp1", {}), plan("old", {.size = 2, .loss = LossComm::gather}),
                    plan("new", {.size = 2})};
    LedgerEntry const grad{"all_reduce", 2, 2, 800};
    LedgerEntry const ring{"exchange", 2, 8, 4000};
    report.results = {
        result("cp1", {{"grad", grad}}),
        result("old",
               {{"grad", grad}, {"cp.kv", ring}, {"loss.gather.train", {"all_gather", 2, 4, 600}}}),
        result("new",
               {{"grad", grad}, {"cp.kv", ring}, {"loss.seq_kl", {"all_reduce", 2, 2, 16}}})};
    return report;
}

/// Blocks in which `new` takes `ratio` of the time of `old`.
void add_times(Report& report, double ratio) {
    for (int block = 0; block < 5; ++block) {
        double const noise = 1 + 0.001 * block;
        report.timing.steps.push_back({"cp1", block, 0.9, 0, 0, 0});
        report.timing.steps.push_back({"old", block, 2.0 * noise, 0, 0.2, 0});
        report.timing.steps.push_back({"new", block, 2.0 * ratio * noise, 0, 0.05, 0});
    }
    report.timing.variants = summarize_timing(report.timing.steps, {"cp1", "old", "new"}, 1);
}

}  // namespace

BOOST_AUTO_TEST_CASE(costs_are_means_over_ranks_and_all_reduces_cross_the_wire_twice) {
    auto const costs = rank_variants(three_variants());
    BOOST_REQUIRE(costs.size() == 3U);
    // Two ranks: an all-reduce moves 2 (N-1)/N = 1 times its bytes.
    BOOST_TEST(costs[0].name == "cp1");
    BOOST_TEST(costs[0].wire_bytes == 400);
    BOOST_TEST(costs[0].calls == 1);
    BOOST_TEST(costs[1].name == "new");
    BOOST_TEST(costs[1].wire_bytes == 400 + 2000 + 8);
    BOOST_TEST(costs[1].loss_bytes == 8);
    BOOST_TEST(costs[1].loss_calls == 1);
    BOOST_TEST(costs[2].name == "old");
    BOOST_TEST(costs[2].wire_bytes == 400 + 2000 + 300);
    BOOST_TEST(costs[2].loss_bytes == 300);
    BOOST_TEST(costs[2].loss_calls == 2);
    BOOST_TEST(costs[2].calls == 1 + 4 + 2);
    for (int i = 0; i < 3; ++i) {
        BOOST_TEST(costs[i].by_bytes == i + 1);
        BOOST_TEST(costs[i].by_time == 0);  // nothing was timed
    }
}

BOOST_AUTO_TEST_CASE(timed_variants_come_fastest_first) {
    Report report = three_variants();
    add_times(report, 0.3);
    auto const costs = rank_variants(report);
    BOOST_TEST(costs[0].name == "new");
    BOOST_TEST(costs[0].by_time == 1);
    BOOST_TEST(costs[0].by_bytes == 2);
    BOOST_TEST(costs[1].name == "cp1");
    BOOST_TEST(costs[2].name == "old");
}

BOOST_AUTO_TEST_CASE(the_old_path_is_held_against_the_scalar_one_and_nothing_else) {
    Report report = three_variants();
    add_times(report, 0.95);
    auto const savings = loss_savings(report);
    BOOST_REQUIRE(savings.size() == 1U);
    LossSaving const& saving = savings.front();
    BOOST_TEST(saving.old_name == "old");
    BOOST_TEST(saving.new_name == "new");
    BOOST_TEST(saving.trainer.find("FSDP") != std::string::npos);
    BOOST_TEST(saving.old_calls == 2);
    BOOST_TEST(saving.new_calls == 1);
    BOOST_TEST(within(saving.old_share, 0.2 / (2.0 * 1.002), 1e-12, 0));
    BOOST_TEST(within(saving.ratio.ratio, 0.95, 1e-12, 0));
    BOOST_TEST(saving.ratio.blocks == 5);
    report.plans[2].cp.layout = CpLayout::contiguous;  // no longer the same variant
    BOOST_TEST(loss_savings(report).empty());
}

BOOST_AUTO_TEST_CASE(the_text_claims_a_saving_only_when_the_interval_shows_one) {
    Report report = three_variants();
    add_times(report, 0.95);
    BOOST_TEST(ranking_text(report).find("it saves 5.0 % of the step") != std::string::npos);
    report = three_variants();
    add_times(report, 1.05);
    BOOST_TEST(ranking_text(report).find("it costs 5.0 % of the step") != std::string::npos);
    report.timing.steps[2].seconds *= 0.5;  // one block where the new one is much faster
    report.timing.steps[5].seconds *= 0.5;
    report.timing.steps[8].seconds *= 0.9;
    BOOST_TEST(ranking_text(report).find("no difference") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(two_blocks_have_no_interval_to_claim_a_saving_from) {
    Report report = three_variants();
    add_times(report, 0.5);
    std::erase_if(report.timing.steps, [](StepTime const& step) { return step.block > 1; });
    BOOST_TEST(ranking_text(report).find("too few blocks to tell") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(an_old_path_alone_says_what_to_add) {
    Report report = three_variants();
    report.plans.pop_back();
    report.results.pop_back();
    BOOST_TEST(ranking_text(report).find("--cp-loss-comm scalar") != std::string::npos);
    report.plans.resize(1);
    report.results.resize(1);
    BOOST_TEST(ranking_text(report).empty());
}
