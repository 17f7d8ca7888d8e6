#define BOOST_TEST_MODULE timing
#include <boost/test/unit_test.hpp>

#include "app/timing.hpp"
#include "tests/close.hpp"

using namespace cpstep;
using cpstep::test::within;

namespace {

/// Two blocks A B B A; warm-up steps a hundred times slower.
std::vector<StepTime> recorded() {
    return {{"cp1", -1, 100, 0, 0}, {"cp2", -1, 300, 0, 0},  {"cp1", 0, 1, 0, 0},
            {"cp2", 0, 2, 0.5, 0},  {"cp2", 0, 2, 0.5, 0},   {"cp1", 0, 1, 0, 0},
            {"cp1", 1, 1.2, 0, 0},  {"cp2", 1, 2.4, 0.7, 0}, {"cp2", 1, 2.4, 0.7, 0},
            {"cp1", 1, 1.2, 0, 0}};
}

}  // namespace

BOOST_AUTO_TEST_CASE(warm_up_is_left_out_and_ratios_are_paired_by_block) {
    auto const timings = summarize_timing(recorded(), {"cp1", "cp2"}, 1);
    BOOST_TEST(timings.size() == 2);
    BOOST_TEST(timings[0].steps == 4);
    BOOST_TEST(within(timings[0].median, 1.1, 0, 1e-12));
    BOOST_TEST(within(timings[1].median, 2.2, 0, 1e-12));
    BOOST_TEST(within(timings[1].exposed_comm, 0.6, 0, 1e-12));
    BOOST_TEST(timings[0].ratio.ratio == 1.0);
    BOOST_TEST(within(timings[1].ratio.ratio, 2.0, 0, 1e-12));
    BOOST_TEST(within(timings[1].ratio.low, 2.0, 0, 1e-12));
    BOOST_TEST(timings[1].ratio.blocks == 2);
}

BOOST_AUTO_TEST_CASE(blocks_left_out_leave_the_others_numbered_from_0) {
    auto steps = recorded();
    for (StepTime const& step : recorded()) {  // a third block, three times as slow
        if (step.block == 1) {
            steps.push_back({step.variant, 2, 3 * step.seconds, 0, 0});
        }
    }
    auto const kept = without_blocks(steps, {0, 1});
    BOOST_TEST(kept.size() == 2 + 4);
    BOOST_TEST(kept[0].block == -1);
    for (std::size_t i = 2; i < kept.size(); ++i) {
        BOOST_TEST(kept[i].block == 0);
        BOOST_TEST(kept[i].seconds >= 3.6 - 1e-12);
    }
    BOOST_TEST(paired_ratio(without_blocks(steps, {1}), "cp2", "cp1", 1).blocks == 2);
    BOOST_TEST(without_blocks(steps, {}).size() == steps.size());
}

BOOST_AUTO_TEST_CASE(a_variant_without_timed_steps_is_an_error) {
    BOOST_CHECK_THROW(summarize_timing(recorded(), {"cp1", "cp4"}, 1), Error);
}

BOOST_AUTO_TEST_CASE(the_number_of_steps_follows_the_options) {
    Options options;
    BOOST_TEST(timing_steps(options, 2) == 2 * (2 + 2 * 5));
    options.blocks = 0;
    BOOST_TEST(timing_steps(options, 2) == 0);
}
