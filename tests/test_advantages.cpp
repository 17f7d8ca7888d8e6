#define BOOST_TEST_MODULE advantages
#include <boost/test/unit_test.hpp>
#include <numeric>

#include "app/advantages.hpp"
#include "close.hpp"
#include "cuda/error.hpp"

using namespace cpstep;
using cpstep::test::all_close;
using cpstep::test::random_values;
using cpstep::test::within;

namespace {

// Half a unit in the last place of a float of size one, and as much again for its rounded inputs.
constexpr double float_rounding = 2 * 5.97e-8;

// Population moments of the unmasked values, after the sample variance is made from them.
struct Shape {
    double mean, deviation;
};

Shape shape_of(std::vector<float> const& values, std::vector<std::int32_t> const& mask) {
    double sum = 0, squares = 0, count = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
        sum += mask[i] * static_cast<double>(values[i]);
        count += mask[i];
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
        squares += mask[i] * std::pow(values[i] - sum / count, 2);
    }
    return {sum / count, std::sqrt(squares / (count - 1))};
}

}  // namespace

BOOST_AUTO_TEST_CASE(pairs_give_the_golden_advantages) {
    std::vector<float> const rewards = {.661f, .841f, .456f, .87f, .16f, .296f, .186f, .766f};
    std::vector<std::int32_t> const groups = {0, 0, 1, 1, 2, 2, 3, 3};
    std::vector<double> const golden = {-0.7071012,  0.7071012,  -0.7071044,  0.7071044,
                                        -0.70709944, 0.70709944, -0.70710504, 0.70710504};
    // The list is printed to seven digits: half of its last place comes on top.
    BOOST_TEST(all_close(group_advantages(rewards, groups, true, true), golden, 0.0,
                         float_rounding + 0.5e-7));
}

BOOST_AUTO_TEST_CASE(groups_need_not_be_contiguous) {
    std::vector<float> const rewards = {1, 10, 2, 20, 3, 60};
    std::vector<std::int32_t> const groups = {7, -1, 7, -1, 7, -1};
    std::vector<double> const centred = {-1, -20, 0, -10, 1, 30};
    BOOST_TEST(all_close(group_advantages(rewards, groups, true, false), centred, 0.0, 0.0));
    double const deviation = std::sqrt((400.0 + 100.0 + 900.0) / 2.0) + 1e-6;
    std::vector<double> const scaled = {-1 / (1 + 1e-6), -20 / deviation, 0,
                                        -10 / deviation, 1 / (1 + 1e-6),  30 / deviation};
    BOOST_TEST(
        all_close(group_advantages(rewards, groups, true, true), scaled, float_rounding, 0.0));
}

BOOST_AUTO_TEST_CASE(a_singleton_group_and_equal_rewards_give_zero) {
    std::vector<float> const rewards = {0.3f, 0.1f, 0.1f, 0.1f};
    std::vector<std::int32_t> const groups = {0, 1, 1, 1};
    for (bool const scaled : {false, true}) {
        for (float const advantage : group_advantages(rewards, groups, true, scaled)) {
            BOOST_TEST(advantage == 0.0f);
        }
    }
}

BOOST_AUTO_TEST_CASE(without_normalization_the_rewards_come_back) {
    std::vector<float> const rewards = {0.3f, 0.1f};
    BOOST_TEST(
        (group_advantages(rewards, std::vector<std::int32_t>{0, 0}, false, true) == rewards));
    BOOST_CHECK_THROW(group_advantages(rewards, std::vector<std::int32_t>{0}, true, true), Error);
}

BOOST_AUTO_TEST_CASE(whitened_unmasked_rows_have_mean_zero_and_deviation_one) {
    std::vector<float> values = random_values<float>(1001, 3, 2.0);
    std::vector<std::int32_t> mask(values.size());
    for (std::size_t i = 0; i < mask.size(); ++i) {
        values[i] += 5.0f;
        mask[i] = i % 3 != 0;
    }
    double const variance = std::pow(shape_of(values, mask).deviation, 2);
    whiten(values, masked_moments(values, mask));
    Shape const shape = shape_of(values, mask);
    double const bound = cpstep::test::rounding_bound<float>(1, 1);
    BOOST_TEST(std::abs(shape.mean) < bound);
    BOOST_TEST(within(shape.deviation, std::sqrt(variance / (variance + 1e-8)), bound, 0.0));
}

BOOST_AUTO_TEST_CASE(moments_of_parts_add_up_and_skip_masked_rows) {
    std::vector<float> const values = {1.0f, NAN, 3.0f, 5.0f};
    std::vector<std::int32_t> const mask = {1, 0, 1, 1};
    std::span<float const> const v = values;
    std::span<std::int32_t const> const m = mask;
    Moments const low = masked_moments(v.first(2), m.first(2));
    Moments const high = masked_moments(v.last(2), m.last(2));
    BOOST_TEST(low.sum + high.sum == 9.0);
    BOOST_TEST(low.sum_squares + high.sum_squares == 35.0);
    BOOST_TEST(low.count + high.count == 3.0);
    BOOST_TEST(masked_moments({}, {}).count == 0.0);
    BOOST_CHECK_THROW(masked_moments(v, m.first(2)), Error);
}

BOOST_AUTO_TEST_CASE(whitening_few_or_equal_rows_is_finite_and_none_is_an_error) {
    std::vector<float> one = {3.0f};
    whiten(one, {3.0, 9.0, 1.0});
    BOOST_TEST(one[0] == 0.0f);

    // 0.1f squared and averaged rounds: the variance must not become negative.
    std::vector<float> equal(7, 0.1f);
    whiten(equal, masked_moments(equal, std::vector<std::int32_t>(7, 1)));
    for (float const value : equal) {
        // A mean off by one rounding of a double over sqrt(1e-8).
        BOOST_TEST(std::abs(value) < 7 * 1.1e-16 * 0.1 / 1e-4);
    }
    std::vector<float> none = {1.0f};
    BOOST_CHECK_EXCEPTION(whiten(none, {}), Error,
                          [](Error const& error) { return error.code() == ExitCode::input_data; });
}
