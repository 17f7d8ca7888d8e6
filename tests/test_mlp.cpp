#define BOOST_TEST_MODULE mlp
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

constexpr std::int64_t rows = 4, width = 5;

}  // namespace

BOOST_AUTO_TEST_CASE(known_values_of_silu_times_up) {
    // silu(0) = 0, silu(log 3) = log 3 * 3/4.
    double const log3 = std::log(3.0);
    std::vector<double> gate_up{0.0, log3, -log3, 5.0, 2.0, 2.0};
    std::vector<double> y(3);
    swiglu_forward(view(y, 1, 3), view(gate_up, 1, 6));
    std::vector<double> const want{0.0, 1.5 * log3, -0.5 * log3};
    BOOST_TEST(all_close(y, want, 0.0, rounding_bound<double>(4, 1)));
}

BOOST_AUTO_TEST_CASE(large_gates_saturate_without_nan) {
    std::vector<float> gate_up{-1000.0F, 1000.0F, 3.0F, 3.0F};
    std::vector<float> y(2);
    swiglu_forward(view(y, 1, 2), view(gate_up, 1, 4));
    BOOST_TEST(within(y[0], 0.0, 0.0, 0.0));
    BOOST_TEST(within(y[1], 3000.0, 0.0, 0.0));
    std::vector<float> dy{1.0F, 1.0F};
    std::vector<float> d(4);
    swiglu_backward(view(d, 1, 4), view(dy, 1, 2), view(gate_up, 1, 4));
    BOOST_TEST(all_close(d, std::vector<double>{0.0, 3.0, 0.0, 1000.0}, 0.0, 0.0));
}

BOOST_AUTO_TEST_CASE(backward_is_the_derivative_of_forward) {
    auto gate_up = random_values<double>(rows * 2 * width, 1, 3.0);
    auto dy = random_values<double>(rows * width, 2);
    auto const loss = [&] {
        std::vector<double> y(rows * width);
        swiglu_forward(view(y, rows, width), view(gate_up, rows, 2 * width));
        return dot(y, dy);
    };
    std::vector<double> gradient(gate_up.size(), 7.0);
    swiglu_backward(view(gradient, rows, 2 * width), view(dy, rows, width),
                    view(gate_up, rows, 2 * width));
    for (double const step : {1e-3, 1e-4}) {
        std::vector<double> numeric;
        for (double& element : gate_up) {
            numeric.push_back(central_difference(element, step, loss));
        }
        // |silu'''| < 1 and |up| <= 3: truncation step^2/2. The loss sums products up to 9.
        double const bound =
            0.5 * step * step + 9.0 * rounding_bound<double>(8, rows * width) / step;
        BOOST_TEST(all_close(gradient, numeric, 0.0, bound));
    }
}

BOOST_AUTO_TEST_CASE(strided_views_give_the_same_and_touch_nothing_else) {
    auto gate_up = random_values<float>(rows * 13, 3);
    auto dy = random_values<float>(rows * 7, 4);
    auto const wide = view(gate_up, rows, 2 * width, 13, 1);
    auto const dys = view(dy, rows, width, 7, 2);
    auto dense = elements(wide);
    auto dy_dense = elements(dys);
    std::vector<float> y(rows * 6, -1.0F);
    std::vector<float> want(rows * width);
    swiglu_forward(view(y, rows, width, 6), wide);
    swiglu_forward(view(want, rows, width), view(dense, rows, 2 * width));
    BOOST_TEST(elements(view(y, rows, width, 6)) == want);
    BOOST_TEST(y[width] == -1.0F);
    std::vector<float> d(rows * 11, -1.0F);
    std::vector<float> want_d(dense.size());
    swiglu_backward(view(d, rows, 2 * width, 11), dys, wide);
    swiglu_backward(view(want_d, rows, 2 * width), view(dy_dense, rows, width),
                    view(dense, rows, 2 * width));
    BOOST_TEST(elements(view(d, rows, 2 * width, 11)) == want_d);
    BOOST_TEST(d[2 * width] == -1.0F);
}

BOOST_AUTO_TEST_CASE(gradient_may_overwrite_its_input) {
    auto gate_up = random_values<float>(rows * 2 * width, 5);
    auto dy = random_values<float>(rows * width, 6);
    std::vector<float> want(gate_up.size());
    auto const both = view(gate_up, rows, 2 * width);
    swiglu_backward(view(want, rows, 2 * width), view(dy, rows, width), both);
    swiglu_backward(both, view(dy, rows, width), both);
    BOOST_TEST(gate_up == want);
}

BOOST_AUTO_TEST_CASE(zero_rows_are_allowed_and_wrong_widths_refused) {
    Matrix<float> const none{nullptr, 0, width, width};
    Matrix<float> const none_wide{nullptr, 0, 2 * width, 2 * width};
    swiglu_forward(none, none_wide);
    swiglu_backward(none_wide, none, none_wide);
    std::vector<float> y(4);
    BOOST_CHECK_THROW(swiglu_forward(view(y, 1, 3), view(y, 1, 4)), Error);
}

BOOST_AUTO_TEST_CASE(results_are_the_same_bits_with_any_thread_count) {
    std::int64_t const many = 300, wide = 101;
    auto gate_up = random_values<float>(static_cast<std::size_t>(many * 2 * wide), 7);
    auto dy = random_values<float>(static_cast<std::size_t>(many * wide), 8);
    BOOST_TEST(same_bits_with_any_threads([&] {
        std::vector<float> y(dy.size());
        std::vector<float> d(gate_up.size());
        swiglu_forward(view(y, many, wide), view(gate_up, many, 2 * wide));
        swiglu_backward(view(d, many, 2 * wide), view(dy, many, wide),
                        view(gate_up, many, 2 * wide));
        d.insert(d.end(), y.begin(), y.end());
        return d;
    }));
}
