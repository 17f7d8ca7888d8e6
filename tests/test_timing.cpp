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

BOOST_AUTO_TEST_CASE(a_variant_without_timed_steps_is_an_error) {
    BOOST_CHECK_THROW(summarize_timing(recorded(), {"cp1", "cp4"}, 1), Error);
}

BOOST_AUTO_TEST_CASE(the_number_of_steps_follows_the_options) {
    Options options;
    BOOST_TEST(timing_steps(options, 2) == 2 * (2 + 2 * 5));
    options.blocks = 0;
    BOOST_TEST(timing_steps(options, 2) == 0);
}
