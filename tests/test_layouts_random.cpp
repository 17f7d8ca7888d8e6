#define BOOST_TEST_MODULE layouts_random
#include <map>

#include "tests/random_draw.hpp"

using namespace cpstep;
using namespace cpstep::test;

namespace {

/// How often draws reach what they are for: equal zeros would agree as well.
struct Reached {
    void count(Draw const& draw, VariantResult const& base) {
        PolicyLossOptions const& loss = draw.test_case.options.loss;
        StepMetrics const& m = base.metrics;
        ++times[fmt::format("method {}", name_of(draw.config.method))];
        ++times[fmt::format("layout {}", name_of(draw.config.layout))];
        ++times[fmt::format("loss path {}", name_of(draw.config.loss))];
        times["a gradient"] += m.grad_norm > 0;
        times["a clipped ratio"] += m.pg_clipfrac > 0 && m.pg_clipfrac < 1;
        times["a masked sequence"] += loss.use_opsm && m.opsm_clipfrac > 0;
        times["a clipped TIS factor"] += loss.use_tis && m.tis_clipfrac > 0;
        times["a KL term"] += loss.use_kl_loss && m.kl_loss != 0;
    }

    std::map<std::string, int> times;
};

/// Judges as a run does: bounds are the derived ones; where one fails, the baseline moved by one
/// ulp in every weight says whether rounding explains it (a K bias has next to no gradient, so that
/// the most of it may be rounding). Returns whether that was asked.
bool agrees_or_noise_explains(VariantResult const& base, Bench& bench, Variant& baseline,
                              CpConfig const& config) {
    auto checks = checks_of(base, bench, config);
    bool const all_pass = std::ranges::all_of(checks, &Check::pass);
    bool const ask = test_world().broadcast(all_pass ? "" : "ask") == "ask";
    if (ask) {
        auto const noise = bench.noise(baseline, base);
        BOOST_TEST(widen_bounds(checks, noise) <= max_growth);
    }
    expect_pass(checks);
    return ask;
}

void draws_agree_with_cp1(int draws) {
    Reached reached;
    int by_noise = 0;
    for (int number = 0; number < draws; ++number) {
        Draw const draw = make_draw(number);
        BOOST_TEST_CONTEXT(described(draw)) {
            Bench bench(draw.test_case);
            auto const baseline = bench.variant({});
            VariantResult const base = bench.run(*baseline);
            by_noise += agrees_or_noise_explains(base, bench, *baseline, draw.config);
            reached.count(draw, base);
        }
    }
    BOOST_TEST_MESSAGE("noise was asked for in " << by_noise << " of " << draws << " draws");
    BOOST_TEST(by_noise <= draws / 50);
    for (auto const& [what, times] : reached.times) {
        BOOST_TEST(times >= draws / 20, what << " in " << times << " of " << draws << " draws");
    }
    BOOST_TEST(reached.times.size() == (test_world().size() == 4 ? 14U : 13U));
    BOOST_TEST(reached.times["a gradient"] >= draws * 9 / 10);
}

}  // namespace

BOOST_AUTO_TEST_CASE(two_hundred_random_layouts_agree_with_cp1) {
    draws_agree_with_cp1(200);
}
