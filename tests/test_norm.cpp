#define BOOST_TEST_MODULE norm
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

constexpr std::int64_t rows = 3, h = 8;

template <class T>
struct Result {
    std::vector<T> y, rstd;
};

template <class T>
Result<T> forward(Matrix<T> x, Matrix<T> w, T eps) {
    Result<T> r{std::vector<T>(static_cast<std::size_t>(x.rows * x.cols)),
                std::vector<T>(static_cast<std::size_t>(x.rows))};
    rmsnorm_forward(view(r.y, x.rows, x.cols), view(r.rstd, x.rows, 1), x, Matrix<T>{}, w, eps);
    return r;
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_constant_row_becomes_the_weights_with_its_sign) {
    std::vector<double> x(2 * h, 3.0);
    std::fill(x.begin() + h, x.end(), -5.0);
    auto w = random_values<double>(h, 1);
    auto const result = forward(view(x, 2, h), view(w, 1, h), 0.0);
    for (std::size_t c = 0; c < h; ++c) {
        BOOST_TEST(within(result.y[c], w[c], 0.0, rounding_bound<double>(4, 1)));
        BOOST_TEST(within(result.y[h + c], -w[c], 0.0, rounding_bound<double>(4, 1)));
    }
    BOOST_TEST(within(result.rstd[0], 1.0 / 3.0, rounding_bound<double>(4, 1), 0.0));
    BOOST_TEST(within(result.rstd[1], 1.0 / 5.0, rounding_bound<double>(4, 1), 0.0));
}

BOOST_AUTO_TEST_CASE(eps_keeps_a_zero_row_finite) {
    std::vector<float> x(h, 0.0F);
    std::vector<float> w(h, 1.0F);
    auto const result = forward(view(x, 1, h), view(w, 1, h), 1e-6F);
    BOOST_TEST(result.y == std::vector<float>(h, 0.0F));
    BOOST_TEST(within(result.rstd[0], 1000.0, rounding_bound<float>(4, 1), 0.0));
}

BOOST_AUTO_TEST_CASE(delta_is_added_into_x_before_the_norm) {
    auto x = random_values<double>(rows * h, 2);
    auto delta = random_values<double>(rows * h, 3);
    auto w = random_values<double>(h, 4);
    std::vector<double> sum(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
        sum[i] = x[i] + delta[i];
    }
    auto const want = forward(view(sum, rows, h), view(w, 1, h), 1e-6);
    std::vector<double> y(x.size());
    std::vector<double> rstd(rows);
    rmsnorm_forward(view(y, rows, h), view(rstd, rows, 1), view(x, rows, h), view(delta, rows, h),
                    view(w, 1, h), 1e-6);
    BOOST_TEST(x == sum);
    BOOST_TEST(y == want.y);
    BOOST_TEST(rstd == want.rstd);
}

BOOST_AUTO_TEST_CASE(long_float_rows_keep_float_accuracy) {
    // 65536 squares of size one: a float running sum would be off by far more than the bound.
    std::int64_t const wide = 65536;
    auto x = random_values<float>(static_cast<std::size_t>(wide), 5);
    std::vector<float> w(x.size(), 1.0F);
    double square = 0.0;
    for (float const value : x) {
        square += static_cast<double>(value) * static_cast<double>(value);
    }
    auto const result = forward(view(x, 1, wide), view(w, 1, wide), 0.0F);
    BOOST_TEST(within(result.rstd[0], 1.0 / std::sqrt(square / static_cast<double>(wide)),
                      rounding_bound<float>(1, 1), 0.0));
}

BOOST_AUTO_TEST_CASE(backward_is_the_derivative_of_forward) {
    auto x = random_values<double>(rows * h, 6);
    auto w = random_values<double>(h, 7);
    auto dy = random_values<double>(rows * h, 8);
    double const eps = 1e-3;
    auto const loss = [&] { return dot(forward(view(x, rows, h), view(w, 1, h), eps).y, dy); };
    auto rstd = forward(view(x, rows, h), view(w, 1, h), eps).rstd;
    auto dx = random_values<double>(rows * h, 9);
    auto dw = random_values<double>(h, 10);
    auto const dx_before = dx;
    auto const dw_before = dw;
    rmsnorm_backward(view(dx, rows, h), view(dw, 1, h), view(dy, rows, h), view(x, rows, h),
                     view(w, 1, h), view(rstd, rows, 1));
    for (double const step : {1e-3, 1e-4}) {
        // Truncation step^2/6 times a third derivative below 100; rounding of the loss over step.
        double const bound = 100.0 / 6.0 * step * step + rounding_bound<double>(8, rows * h) / step;
        std::vector<double> want_dx = dx_before;
        std::vector<double> want_dw = dw_before;
        for (std::size_t i = 0; i < x.size(); ++i) {
            want_dx[i] += central_difference(x[i], step, loss);
        }
        for (std::size_t i = 0; i < w.size(); ++i) {
            want_dw[i] += central_difference(w[i], step, loss);
        }
        BOOST_TEST(all_close(dx, want_dx, 0.0, bound));
        BOOST_TEST(all_close(dw, want_dw, 0.0, bound));
    }
}

BOOST_AUTO_TEST_CASE(input_gradient_is_orthogonal_to_the_input_without_eps) {
    // y does not change when a row is scaled, so the derivative along the row is zero.
    auto x = random_values<double>(rows * h, 11);
    auto w = random_values<double>(h, 12);
    auto dy = random_values<double>(rows * h, 13);
    auto rstd = forward(view(x, rows, h), view(w, 1, h), 0.0).rstd;
    std::vector<double> dx(x.size(), 0.0);
    std::vector<double> dw(h, 0.0);
    rmsnorm_backward(view(dx, rows, h), view(dw, 1, h), view(dy, rows, h), view(x, rows, h),
                     view(w, 1, h), view(rstd, rows, 1));
    for (std::int64_t s = 0; s < rows; ++s) {
        double along = 0.0;
        for (std::int64_t c = s * h; c < (s + 1) * h; ++c) {
            along += dx[static_cast<std::size_t>(c)] * x[static_cast<std::size_t>(c)];
        }
        BOOST_TEST(within(along, 0.0, 0.0, rounding_bound<double>(8, h)));
    }
}

BOOST_AUTO_TEST_CASE(strided_views_give_the_same_and_touch_nothing_else) {
    auto x = random_values<float>(rows * 11, 14);
    auto w = random_values<float>(h, 15);
    auto dy = random_values<float>(rows * 10, 16);
    auto const xs = view(x, rows, h, 11, 2);
    auto const dys = view(dy, rows, h, 10, 1);
    auto x_dense = elements(xs);
    auto dy_dense = elements(dys);
    auto want = forward(view(x_dense, rows, h), view(w, 1, h), 1e-6F);

    std::vector<float> y(rows * 9, -1.0F);
    std::vector<float> rstd(rows * 2, -1.0F);
    auto const rstds = view(rstd, rows, 1, 2);
    rmsnorm_forward(view(y, rows, h, 9), rstds, xs, Matrix<float>{}, view(w, 1, h), 1e-6F);
    BOOST_TEST(elements(view(y, rows, h, 9)) == want.y);
    BOOST_TEST(elements(rstds) == want.rstd);
    BOOST_TEST(y[h] == -1.0F);
    BOOST_TEST(rstd[1] == -1.0F);

    std::vector<float> dx(rows * 9, 0.0F);
    std::vector<float> dw(h, 0.0F);
    std::vector<float> want_dx(rows * h, 0.0F);
    std::vector<float> want_dw(h, 0.0F);
    rmsnorm_backward(view(dx, rows, h, 9), view(dw, 1, h), dys, xs, view(w, 1, h), rstds);
    rmsnorm_backward(view(want_dx, rows, h), view(want_dw, 1, h), view(dy_dense, rows, h),
                     view(x_dense, rows, h), view(w, 1, h), view(want.rstd, rows, 1));
    BOOST_TEST(elements(view(dx, rows, h, 9)) == want_dx);
    BOOST_TEST(dw == want_dw);
    BOOST_TEST(dx[h] == 0.0F);
}

BOOST_AUTO_TEST_CASE(zero_rows_leave_the_weight_gradient) {
    Matrix<float> const none{nullptr, 0, h, h};
    Matrix<float> const no_rstd{nullptr, 0, 1, 1};
    std::vector<float> w(h, 1.0F);
    std::vector<float> dw(h, 7.0F);
    rmsnorm_forward(none, no_rstd, none, none, view(w, 1, h), 1e-6F);
    rmsnorm_backward(none, view(dw, 1, h), none, none, view(w, 1, h), no_rstd);
    BOOST_TEST(dw == std::vector<float>(h, 7.0F));
}

BOOST_AUTO_TEST_CASE(gradients_are_the_same_bits_with_any_thread_count) {
    std::int64_t const many = 200, wide = 203;
    auto const count = static_cast<std::size_t>(many * wide);
    auto x = random_values<float>(count, 17);
    auto w = random_values<float>(static_cast<std::size_t>(wide), 18);
    auto dy = random_values<float>(count, 19);
    BOOST_TEST(same_bits_with_any_threads([&] {
        auto result = forward(view(x, many, wide), view(w, 1, wide), 1e-6F);
        std::vector<float> dx(count, 0.0F);
        std::vector<float> dw(w.size(), 0.0F);
        rmsnorm_backward(view(dx, many, wide), view(dw, 1, wide), view(dy, many, wide),
                         view(x, many, wide), view(w, 1, wide), view(result.rstd, many, 1));
        dx.insert(dx.end(), dw.begin(), dw.end());
        dx.insert(dx.end(), result.y.begin(), result.y.end());
        return dx;
    }));
}
