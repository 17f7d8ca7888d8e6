#define BOOST_TEST_MODULE rope
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cuda/layers.hpp"
#include "tests/close.hpp"
#include "tests/views.hpp"

using namespace cpstep;
using namespace cpstep::test;

namespace {

constexpr std::int64_t rows = 5, heads = 3, head_dim = 8;
constexpr std::int64_t width = heads * head_dim;
constexpr double theta = 10000.0;

}  // namespace

BOOST_AUTO_TEST_CASE(position_zero_is_left_as_it_is) {
    auto x = random_values<float>(width, 1);
    auto const before = x;
    std::vector<std::int32_t> positions{0};
    rope(view(x, 1, width), view(positions, 1, 1), head_dim, theta, Rotation::forward);
    BOOST_TEST(x == before);
}

BOOST_AUTO_TEST_CASE(unit_pairs_turn_by_position_times_frequency) {
    // Head size 4: pairs (0,2) by p and (1,3) by p / sqrt(theta).
    std::vector<double> x{1, 0, 0, 1};
    std::vector<std::int32_t> positions{3};
    rope(view(x, 1, 4), view(positions, 1, 1), 4, 100.0, Rotation::forward);
    std::vector<double> const want{std::cos(3.0), -std::sin(0.3), std::sin(3.0), std::cos(0.3)};
    BOOST_TEST(all_close(x, want, 0.0, rounding_bound<double>(8, 1)));
}

BOOST_AUTO_TEST_CASE(float_angles_stay_exact_at_large_positions) {
    // In float the angle 1e6 * theta^(-1/4) alone would be off by 4e-3.
    std::vector<float> x{1, 1, 1, 1, 0, 0, 0, 0};
    std::vector<std::int32_t> positions{1000003};
    rope(view(x, 1, 8), view(positions, 1, 1), 8, theta, Rotation::forward);
    std::vector<double> want(8);
    for (std::size_t i = 0; i < 4; ++i) {
        double const angle = 1000003.0 * std::pow(theta, -static_cast<double>(i) / 4.0);
        want[i] = std::cos(angle);
        want[i + 4] = std::sin(angle);
    }
    BOOST_TEST(all_close(x, want, 0.0, rounding_bound<float>(1, 1)));
}

BOOST_AUTO_TEST_CASE(backward_undoes_forward_and_keeps_lengths) {
    auto x = random_values<double>(rows * width, 2);
    auto const before = x;
    std::vector<std::int32_t> positions{0, 1, 7, 4095, 131071};
    auto const all = view(x, rows, width);
    rope(all, view(positions, rows, 1), head_dim, theta, Rotation::forward);
    BOOST_TEST(!all_close(x, before, 0.0, 1e-3));
    BOOST_TEST(
        within(dot(x, x), dot(before, before), rounding_bound<double>(8, rows * width), 0.0));
    rope(all, view(positions, rows, 1), head_dim, theta, Rotation::backward);
    BOOST_TEST(all_close(x, before, 0.0, rounding_bound<double>(8, 2)));
}

BOOST_AUTO_TEST_CASE(backward_rotation_is_the_derivative_of_forward) {
    auto x = random_values<double>(rows * width, 3);
    auto dy = random_values<double>(rows * width, 4);
    std::vector<std::int32_t> positions{2, 0, 11, 5, 1000};
    auto const loss = [&] {
        auto y = x;
        rope(view(y, rows, width), view(positions, rows, 1), head_dim, theta, Rotation::forward);
        return dot(y, dy);
    };
    auto dx = dy;
    rope(view(dx, rows, width), view(positions, rows, 1), head_dim, theta, Rotation::backward);
    for (double const step : {1e-2, 1e-4}) {
        std::vector<double> numeric;
        for (double& element : x) {
            numeric.push_back(central_difference(element, step, loss));
        }
        // Linear: no truncation, rounding of the loss over the step.
        BOOST_TEST(all_close(dx, numeric, 0.0, rounding_bound<double>(8, rows * width) / step));
    }
}

BOOST_AUTO_TEST_CASE(scores_depend_on_the_distance_of_positions_only) {
    auto const q = random_values<double>(head_dim, 5);
    auto const k = random_values<double>(head_dim, 6);
    auto const score = [&](std::int32_t at_q, std::int32_t at_k) {
        auto rotated_q = q;
        auto rotated_k = k;
        std::vector<std::int32_t> p{at_q};
        std::vector<std::int32_t> r{at_k};
        rope(view(rotated_q, 1, head_dim), view(p, 1, 1), head_dim, theta, Rotation::forward);
        rope(view(rotated_k, 1, head_dim), view(r, 1, 1), head_dim, theta, Rotation::forward);
        return dot(rotated_q, rotated_k);
    };
    // Angles of size 1000 are rounded to 1000 eps.
    double const bound = 1000.0 * rounding_bound<double>(8, head_dim);
    BOOST_TEST(within(score(1000, 990), score(10, 0), 0.0, bound));
    BOOST_TEST(!within(score(1000, 991), score(10, 0), 0.0, bound));
}

BOOST_AUTO_TEST_CASE(strided_views_give_the_same_and_touch_nothing_else) {
    auto x = random_values<float>(rows * 30, 7);
    auto const before = x;
    std::vector<std::int32_t> positions{9, 8, 7, 6, 5};
    auto const strided = view(x, rows, width, 30, 4);
    auto dense = elements(strided);
    rope(view(dense, rows, width), view(positions, rows, 1), head_dim, theta, Rotation::forward);
    rope(strided, view(positions, rows, 1), head_dim, theta, Rotation::forward);
    BOOST_TEST(elements(strided) == dense);
    BOOST_TEST(x[3] == before[3]);
    BOOST_TEST(x[4 + width] == before[4 + width]);
}

BOOST_AUTO_TEST_CASE(zero_rows_are_allowed_and_odd_head_sizes_refused) {
    rope(Matrix<float>{nullptr, 0, width, width}, Matrix<std::int32_t>{nullptr, 0, 1, 1}, head_dim,
         theta, Rotation::forward);
    std::vector<float> x(9);
    std::vector<std::int32_t> positions{1};
    BOOST_CHECK_THROW(rope(view(x, 1, 9), view(positions, 1, 1), 3, theta, Rotation::forward),
                      Error);
}

BOOST_AUTO_TEST_CASE(rotation_is_the_same_bits_with_any_thread_count) {
    std::int64_t const many = 1000;
    auto const start = random_values<float>(static_cast<std::size_t>(many * width), 8);
    std::vector<std::int32_t> positions;
    for (std::int32_t s = 0; s < many; ++s) {
        positions.push_back(s);
    }
    BOOST_TEST(same_bits_with_any_threads([&] {
        auto x = start;
        rope(view(x, many, width), view(positions, many, 1), head_dim, theta, Rotation::forward);
        return x;
    }));
}
