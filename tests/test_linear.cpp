#define BOOST_TEST_MODULE linear
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "cuda/layers.hpp"
#include "tests/close.hpp"
#include "tests/views.hpp"

using namespace cpstep;
using namespace cpstep::test;

namespace {

constexpr std::int64_t rows = 4, in = 5, out = 3;

struct Case {
    std::vector<double> x = random_values<double>(rows * in, 1);
    std::vector<double> w = random_values<double>(out * in, 2);
    std::vector<double> b = random_values<double>(out, 3);
    std::vector<double> dy = random_values<double>(rows * out, 4);

    double loss() {
        std::vector<double> y(rows * out);
        linear_forward(view(y, rows, out), view(x, rows, in), view(w, out, in), view(b, 1, out));
        return dot(y, dy);
    }

    std::vector<double> numeric(std::vector<double>& with_respect_to, double step) {
        std::vector<double> gradient;
        for (double& element : with_respect_to) {
            gradient.push_back(central_difference(element, step, [&] { return loss(); }));
        }
        return gradient;
    }
};

}  // namespace

BOOST_AUTO_TEST_CASE(one_by_one_weights_scale_and_shift) {
    std::vector<float> x{1, 2, 3};
    std::vector<float> w{2};
    std::vector<float> b{10};
    std::vector<float> y(3, std::numeric_limits<float>::quiet_NaN());
    linear_forward(view(y, 3, 1), view(x, 3, 1), view(w, 1, 1), view(b, 1, 1));
    BOOST_TEST(y == (std::vector<float>{12, 14, 16}));
    linear_forward(view(y, 3, 1), view(x, 3, 1), view(w, 1, 1), Matrix<float>{});
    BOOST_TEST(y == (std::vector<float>{2, 4, 6}));
}

BOOST_AUTO_TEST_CASE(forward_equals_the_triple_loop_through_strides) {
    auto x = random_values<float>(rows * 7, 5);
    auto w = random_values<float>(out * 6, 6);
    auto b = random_values<float>(out, 7);
    std::vector<float> y(rows * 4, -1.0F);
    auto const xs = view(x, rows, in, 7, 1);
    auto const ws = view(w, out, in, 6);
    auto const ys = view(y, rows, out, 4);
    linear_forward(ys, xs, ws, view(b, 1, out));
    std::vector<double> want;
    for (std::int64_t s = 0; s < rows; ++s) {
        for (std::int64_t o = 0; o < out; ++o) {
            double sum = b[static_cast<std::size_t>(o)];
            for (std::int64_t c = 0; c < in; ++c) {
                sum += static_cast<double>(xs.row(s)[c]) * static_cast<double>(ws.row(o)[c]);
            }
            want.push_back(sum);
        }
        BOOST_TEST(ys.row(s)[out] == -1.0F);
    }
    BOOST_TEST(all_close(elements(ys), want, 0.0, rounding_bound<float>(4, in + 1)));
}

BOOST_AUTO_TEST_CASE(backward_is_the_derivative_of_forward) {
    Case c;
    std::vector<double> dx(rows * in, std::numeric_limits<double>::quiet_NaN());
    std::vector<double> dw(out * in, 0.0);
    std::vector<double> db(out, 0.0);
    linear_backward(view(dx, rows, in), view(dw, out, in), view(db, 1, out), view(c.dy, rows, out),
                    view(c.x, rows, in), view(c.w, out, in), false);
    for (double const step : {1e-2, 1e-4}) {
        // Linear in each argument: no truncation, rounding of the loss over the step.
        double const bound = rounding_bound<double>(8, rows * out * (in + 1)) / step;
        BOOST_TEST(all_close(dx, c.numeric(c.x, step), 0.0, bound));
        BOOST_TEST(all_close(dw, c.numeric(c.w, step), 0.0, bound));
        BOOST_TEST(all_close(db, c.numeric(c.b, step), 0.0, bound));
    }
}

BOOST_AUTO_TEST_CASE(weight_gradients_accumulate_and_dx_does_when_asked) {
    Case c;
    std::vector<double> dx(rows * in, 0.0);
    std::vector<double> dw(out * in, 0.0);
    std::vector<double> db(out, 0.0);
    auto const run = [&](bool add_dx) {
        linear_backward(view(dx, rows, in), view(dw, out, in), view(db, 1, out),
                        view(c.dy, rows, out), view(c.x, rows, in), view(c.w, out, in), add_dx);
    };
    run(false);
    auto const dx_once = dx;
    auto const dw_once = dw;
    auto const db_once = db;
    run(true);
    auto const twice = [](std::vector<double> v) {
        for (double& element : v) {
            element *= 2.0;
        }
        return v;
    };
    double const bound = rounding_bound<double>(8, in);
    BOOST_TEST(all_close(dx, twice(dx_once), 0.0, bound));
    BOOST_TEST(all_close(dw, twice(dw_once), 0.0, bound));
    BOOST_TEST(all_close(db, twice(db_once), 0.0, bound));
    run(false);
    BOOST_TEST(all_close(dx, dx_once, 0.0, bound));
}

BOOST_AUTO_TEST_CASE(absent_dx_and_db_leave_dw_unchanged) {
    Case c;
    std::vector<double> dx(rows * in);
    std::vector<double> dw(out * in, 0.0);
    std::vector<double> dw_only(out * in, 0.0);
    std::vector<double> db(out, 0.0);
    linear_backward(view(dx, rows, in), view(dw, out, in), view(db, 1, out), view(c.dy, rows, out),
                    view(c.x, rows, in), view(c.w, out, in), false);
    linear_backward(Matrix<double>{}, view(dw_only, out, in), Matrix<double>{},
                    view(c.dy, rows, out), view(c.x, rows, in), view(c.w, out, in), false);
    BOOST_TEST(dw_only == dw);
}

BOOST_AUTO_TEST_CASE(zero_rows_leave_the_gradients) {
    std::vector<double> w(out * in, 1.0);
    std::vector<double> dw(out * in, 7.0);
    std::vector<double> db(out, 7.0);
    Matrix<double> const x{nullptr, 0, in, in};
    Matrix<double> const y{nullptr, 0, out, out};
    linear_forward(y, x, view(w, out, in), view(db, 1, out));
    linear_backward(x, view(dw, out, in), view(db, 1, out), y, x, view(w, out, in), false);
    BOOST_TEST(dw == std::vector<double>(out * in, 7.0));
    BOOST_TEST(db == std::vector<double>(out, 7.0));
}

BOOST_AUTO_TEST_CASE(shapes_that_do_not_fit_are_refused) {
    std::vector<float> x(6);
    std::vector<float> w(6);
    std::vector<float> y(6);
    BOOST_CHECK_THROW(linear_forward(view(y, 2, 2), view(x, 2, 3), view(w, 3, 2), Matrix<float>{}),
                      Error);
    BOOST_CHECK_THROW(linear_forward(view(y, 2, 2), view(x, 2, 3), view(w, 2, 3), view(x, 1, 3)),
                      Error);
}

BOOST_AUTO_TEST_CASE(bias_gradient_is_the_same_bits_with_any_thread_count) {
    std::int64_t const many = 400, wide = 150;
    auto dy = random_values<float>(static_cast<std::size_t>(many * wide), 8);
    std::vector<float> x(static_cast<std::size_t>(many), 0.5F);
    std::vector<float> w(static_cast<std::size_t>(wide), 0.5F);
    BOOST_TEST(same_bits_with_any_threads([&] {
        std::vector<float> dw(w.size(), 0.0F);
        std::vector<float> db(w.size(), 0.0F);
        linear_backward(Matrix<float>{}, view(dw, wide, 1), view(db, 1, wide), view(dy, many, wide),
                        view(x, many, 1), view(w, wide, 1), false);
        return db;
    }));
}
