#define BOOST_TEST_MODULE statistics
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "app/statistics.hpp"
#include "cuda/error.hpp"
#include "tests/close.hpp"

namespace {

using namespace cpstep;
using test::within;
using Values = std::vector<double>;

/// exp and log cost a few roundings each.
double const kRounding = test::rounding_bound<double>(8, 1);

RatioEstimate interval(double low, double high) {
    return {.ratio = (low + high) / 2, .low = low, .high = high, .blocks = 5};
}

}  // namespace

BOOST_AUTO_TEST_CASE(the_median_is_the_middle_or_the_mean_of_the_middle_two) {
    BOOST_TEST(median(Values{3}) == 3);
    BOOST_TEST(median(Values{5, 1, 3}) == 3);
    BOOST_TEST(median(Values{4, 1, 3, 2}) == 2.5);
    BOOST_TEST(median(Values{-1, -1, 7, 100}) == 3);
}

BOOST_AUTO_TEST_CASE(quantiles_interpolate_between_neighbours) {
    Values const values{40, 10, 30, 20, 50};
    BOOST_TEST(quantile(values, 0) == 10);
    BOOST_TEST(quantile(values, 1) == 50);
    BOOST_TEST(quantile(values, 0.25) == 20);
    BOOST_TEST(within(quantile(values, 0.1), 14, kRounding, 0));
    BOOST_TEST(quantile(Values{7}, 0.3) == 7);
    BOOST_TEST(quantile(Values{1, 2}, 0.75) == 1.75);
}

BOOST_AUTO_TEST_CASE(median_abs_deviation_ignores_one_outlier) {
    BOOST_TEST(median_abs_deviation(Values{1, 1, 2, 2, 4, 6, 9}) == 1);  // about the median 2
    BOOST_TEST(median_abs_deviation(Values{1, 2, 3, 4, 1e9}) == 1);
    BOOST_TEST(median_abs_deviation(Values{5}) == 0);
}

BOOST_AUTO_TEST_CASE(empty_or_non_finite_values_are_refused) {
    double const nan = std::numeric_limits<double>::quiet_NaN();
    double const inf = std::numeric_limits<double>::infinity();
    BOOST_CHECK_THROW(median(Values{}), Error);
    BOOST_CHECK_THROW(median(Values{1, nan}), Error);
    BOOST_CHECK_THROW(quantile(Values{1, inf}, 0.5), Error);
    BOOST_CHECK_THROW(quantile(Values{1, 2}, 1.5), Error);
    BOOST_CHECK_THROW(quantile(Values{1, 2}, nan), Error);
    BOOST_CHECK_THROW(median_abs_deviation(Values{}), Error);
    BOOST_CHECK_THROW(bootstrap_ratio(Values{}, 1), Error);
    BOOST_CHECK_THROW(bootstrap_ratio(Values{0.1, nan}, 1), Error);
}

BOOST_AUTO_TEST_CASE(a_single_block_has_a_zero_width_interval) {
    RatioEstimate const estimate = bootstrap_ratio(Values{std::log(1.25)}, 1);
    BOOST_TEST(within(estimate.ratio, 1.25, kRounding, 0));
    BOOST_TEST(estimate.low == estimate.ratio);
    BOOST_TEST(estimate.high == estimate.ratio);
    BOOST_TEST(estimate.blocks == 1);
}

BOOST_AUTO_TEST_CASE(identical_blocks_have_a_zero_width_interval) {
    RatioEstimate const estimate = bootstrap_ratio(Values(6, std::log(2.0)), 1);
    BOOST_TEST(within(estimate.ratio, 2.0, kRounding, 0));
    BOOST_TEST(estimate.low == estimate.high);
    BOOST_TEST(estimate.blocks == 6);
}

BOOST_AUTO_TEST_CASE(two_blocks_give_the_exact_bootstrap_interval) {
    // The median of a resample of {a, b} is a, (a+b)/2, b with probability 1/4, 1/2, 1/4: the 2.5 %
    // and 97.5 % quantiles are a and b, the estimate is the geometric mean.
    RatioEstimate const estimate = bootstrap_ratio(Values{std::log(1.0), std::log(4.0)}, 99);
    BOOST_TEST(within(estimate.ratio, 2.0, kRounding, 0));
    BOOST_TEST(within(estimate.low, 1.0, kRounding, 0));
    BOOST_TEST(within(estimate.high, 4.0, kRounding, 0));
}

BOOST_AUTO_TEST_CASE(three_blocks_reach_their_extremes) {
    // P(median of a resample of three = smallest) = 7/27 > 2.5 %.
    RatioEstimate const estimate =
        bootstrap_ratio(Values{std::log(1.1), std::log(1.0), std::log(1.3)}, 7);
    BOOST_TEST(within(estimate.ratio, 1.1, kRounding, 0));
    BOOST_TEST(within(estimate.low, 1.0, kRounding, 0));
    BOOST_TEST(within(estimate.high, 1.3, kRounding, 0));
}

BOOST_AUTO_TEST_CASE(many_blocks_exclude_their_extremes_and_agree_with_order_statistics) {
    // n = 101 blocks i/100. The bootstrap median lies at the k-th value with the binomial law of
    // ranks: standard deviation sqrt(n)/2 = 5.02 ranks, so the 95 % interval is the 51st value
    // -+ 1.96 * 5.02 = 9.8 ranks. One rank each for discreteness, and 3 sigma of 10 000 resamples
    // at the 2.5 % quantile: 3 sqrt(0.025 * 0.975 / 1e4) / density 0.0116 a rank = 0.4 ranks.
    Values values(101);
    for (std::size_t i = 0; i < values.size(); ++i) {
        values[(i * 37) % values.size()] = static_cast<double>(i) / 100;
    }
    RatioEstimate const estimate = bootstrap_ratio(values, 5);
    BOOST_TEST(within(std::log(estimate.ratio), 0.5, kRounding, 0));
    BOOST_TEST(within(std::log(estimate.low), 0.402, 0, 0.014));
    BOOST_TEST(within(std::log(estimate.high), 0.598, 0, 0.014));
}

BOOST_AUTO_TEST_CASE(the_interval_depends_on_the_seed_only) {
    std::vector<double> const values = test::random_values<double>(40, 3);
    RatioEstimate const a = bootstrap_ratio(values, 11);
    RatioEstimate const b = bootstrap_ratio(values, 11);
    BOOST_TEST(a.low == b.low);
    BOOST_TEST(a.high == b.high);
    Values sorted = values;
    std::sort(sorted.begin(), sorted.end());
    RatioEstimate const c = bootstrap_ratio(sorted, 11);
    BOOST_TEST(a.ratio == c.ratio);
    BOOST_TEST((a.low < a.ratio && a.ratio < a.high));
}

BOOST_AUTO_TEST_CASE(the_gate_has_three_values_and_off) {
    BOOST_TEST((judge_gate(interval(1.00, 1.04), 1.05) == GateResult::pass));
    BOOST_TEST((judge_gate(interval(1.00, 1.05), 1.05) == GateResult::pass));
    BOOST_TEST((judge_gate(interval(1.06, 1.10), 1.05) == GateResult::fail));
    BOOST_TEST((judge_gate(interval(1.00, 1.10), 1.05) == GateResult::inconclusive));
    BOOST_TEST((judge_gate(interval(1.05, 1.10), 1.05) == GateResult::inconclusive));
    BOOST_TEST((judge_gate(interval(9, 10), 0) == GateResult::off));
    double const nan = std::numeric_limits<double>::quiet_NaN();
    BOOST_TEST((judge_gate(interval(nan, nan), 1.05) == GateResult::inconclusive));
}
