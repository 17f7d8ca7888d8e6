#define BOOST_TEST_MODULE diff
#include <boost/test/unit_test.hpp>

#include "app/analysis/diff.hpp"

namespace {

using namespace cpstep;

std::vector<double> scaled(std::vector<double> values, double factor) {
    for (double& value : values) {
        value *= factor;
    }
    return values;
}

std::vector<double> const blocks{0.100, 0.102, 0.099, 0.101, 0.103, 0.098, 0.100, 0.101};

}  // namespace

BOOST_AUTO_TEST_CASE(the_ratio_of_two_runs_scales_with_one_of_them) {
    RatioEstimate const same = unpaired_ratio(blocks, blocks, 1);
    BOOST_TEST(same.ratio == 1.0);
    BOOST_TEST((same.low < 1 && same.high > 1 && same.low > 0.95 && same.high < 1.05));
    RatioEstimate const slower = unpaired_ratio(blocks, scaled(blocks, 1.25), 1);
    BOOST_TEST(slower.ratio == 1.25, boost::test_tools::tolerance(1e-12));
    BOOST_TEST(slower.low == 1.25 * same.low, boost::test_tools::tolerance(1e-12));
    BOOST_TEST(slower.high == 1.25 * same.high, boost::test_tools::tolerance(1e-12));
    BOOST_TEST(slower.blocks == 8);
}

BOOST_AUTO_TEST_CASE(the_interval_is_that_of_the_seed) {
    RatioEstimate const first = unpaired_ratio(blocks, scaled(blocks, 1.1), 7);
    RatioEstimate const again = unpaired_ratio(blocks, scaled(blocks, 1.1), 7);
    BOOST_TEST((first.low == again.low && first.high == again.high));
}
