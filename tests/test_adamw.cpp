#define BOOST_TEST_MODULE adamw
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "cuda/adamw.hpp"
#include "tests/close.hpp"
#include "tests/views.hpp"

using namespace cpstep;
using namespace cpstep::test;

namespace {

template <class T>
struct State {
    std::vector<T> w, m, v;
};

template <class T>
void update(State<T>& state, std::vector<T> g, std::vector<ParameterRange> const& ranges,
            AdamWOptions const& options) {
    auto const n = static_cast<std::int64_t>(g.size());
    adamw(view(state.w, n, 1), view(state.m, n, 1), view(state.v, n, 1), view(g, n, 1), ranges,
          options);
}

/// One element over all gradients, as torch.optim.AdamW writes it.
double reference(double w, std::vector<double> const& gradients, AdamWOptions const& o) {
    double m = 0.0;
    double v = 0.0;
    for (std::size_t t = 1; t <= gradients.size(); ++t) {
        double const g = gradients[t - 1] * o.gradient_scale;
        w *= 1.0 - o.lr * o.weight_decay;
        m = o.beta1 * m + (1.0 - o.beta1) * g;
        v = o.beta2 * v + (1.0 - o.beta2) * g * g;
        double const c1 = 1.0 - std::pow(o.beta1, static_cast<double>(t));
        double const c2 = 1.0 - std::pow(o.beta2, static_cast<double>(t));
        w -= o.lr / c1 * m / (std::sqrt(v) / std::sqrt(c2) + o.eps);
    }
    return w;
}

template <class T>
void compare_with_reference() {
    std::size_t const n = 40;
    int const steps = 20;
    AdamWOptions options{.lr = 1e-2, .weight_decay = 0.1, .gradient_scale = 0.3};
    State<T> state{random_values<T>(n, 1), std::vector<T>(n), std::vector<T>(n)};
    auto const start = state.w;
    std::vector<std::vector<double>> gradients(n);
    for (int step = 1; step <= steps; ++step) {
        options.step = step;
        auto const g = random_values<T>(n, static_cast<unsigned>(100 + step));
        for (std::size_t i = 0; i < n; ++i) {
            gradients[i].push_back(static_cast<double>(g[i]));
        }
        update(state, g, {{0, 40, true}}, options);
    }
    std::vector<double> want;
    for (std::size_t i = 0; i < n; ++i) {
        want.push_back(reference(static_cast<double>(start[i]), gradients[i], options));
    }
    // One rounding of a weight of size one a step; the update itself is a hundred times smaller.
    BOOST_TEST(all_close(state.w, want, 0.0, rounding_bound<T>(4, steps)));
}

}  // namespace

BOOST_AUTO_TEST_CASE(first_step_by_hand) {
    // m = 0.1 g, v = 0.001 g^2; both corrections cancel: w = w0 (1 - lr decay) - lr g/(|g| + eps).
    AdamWOptions const options{.lr = 0.1, .weight_decay = 0.5};
    State<double> state{{2.0, 2.0, 2.0}, {0.0, 0.0, 0.0}, {0.0, 0.0, 0.0}};
    update(state, {4.0, -0.25, 0.0}, {{0, 3, true}}, options);
    std::vector<double> const w{1.9 - 0.1, 1.9 + 0.1, 1.9};
    // eps / |g| = 4e-8 of the step at most.
    BOOST_TEST(all_close(state.w, w, 0.0, 0.1 * 4e-8 + rounding_bound<double>(8, 1)));
    BOOST_TEST(all_close(state.m, std::vector<double>{0.4, -0.025, 0.0}, 0.0,
                         rounding_bound<double>(4, 1)));
    BOOST_TEST(all_close(state.v, std::vector<double>{0.016, 0.0000625, 0.0}, 0.0,
                         rounding_bound<double>(4, 1)));
}

BOOST_AUTO_TEST_CASE(many_steps_equal_the_double_loop) {
    compare_with_reference<double>();
    compare_with_reference<float>();
}

BOOST_AUTO_TEST_CASE(decay_shrinks_only_ranges_that_ask_for_it) {
    AdamWOptions const options{.lr = 0.1, .weight_decay = 0.5};
    State<double> state{std::vector<double>(6, 2.0), std::vector<double>(6),
                        std::vector<double>(6)};
    update(state, std::vector<double>(6, 0.0), {{0, 2, true}, {2, 4, false}}, options);
    std::vector<double> const want{1.9, 1.9, 2.0, 2.0, 2.0, 2.0};
    BOOST_TEST(all_close(state.w, want, 0.0, rounding_bound<double>(2, 1)));
}

BOOST_AUTO_TEST_CASE(elements_outside_every_range_are_left_alone) {
    State<float> state{{1, 1, 1}, {0, 0, 0}, {0, 0, 0}};
    update(state, {1, 1, 1}, {{1, 2, true}}, AdamWOptions{.lr = 0.1});
    BOOST_TEST(state.w[0] == 1.0F);
    BOOST_TEST(state.w[1] < 1.0F);
    BOOST_TEST(state.w[2] == 1.0F);
    BOOST_TEST(state.m[2] == 0.0F);
    BOOST_TEST(state.v[2] == 0.0F);
}

BOOST_AUTO_TEST_CASE(ranges_outside_the_arena_and_step_zero_are_refused) {
    State<float> state{{1}, {0}, {0}};
    BOOST_CHECK_THROW(update(state, {1}, {{0, 2, true}}, AdamWOptions{}), Error);
    BOOST_CHECK_THROW(update(state, {1}, {{0, 1, true}}, AdamWOptions{.step = 0}), Error);
    BOOST_TEST(state.w[0] == 1.0F);
}

BOOST_AUTO_TEST_CASE(a_nan_gradient_reaches_its_weight_only) {
    State<float> state{{1, 1}, {0, 0}, {0, 0}};
    update(state, {std::numeric_limits<float>::quiet_NaN(), 1}, {{0, 2, true}}, AdamWOptions{});
    BOOST_TEST(std::isnan(state.w[0]));
    BOOST_TEST(std::isfinite(state.w[1]));
}

BOOST_AUTO_TEST_CASE(update_is_the_same_bits_with_any_thread_count) {
    std::size_t const n = 100003;
    BOOST_TEST(same_bits_with_any_threads([&] {
        State<float> state{random_values<float>(n, 2), random_values<float>(n, 3),
                           std::vector<float>(n, 0.25F)};
        update(state, random_values<float>(n, 4), {{0, 99991, true}, {99991, 100003, false}},
               AdamWOptions{.lr = 1e-2, .step = 3});
        return state.w;
    }));
}

BOOST_AUTO_TEST_CASE(squared_norm_of_small_integers_is_exact) {
    std::int64_t const n = 200001;
    std::vector<float> x(static_cast<std::size_t>(n), 3.0F);
    BOOST_TEST(squared_norm(view(x, n, 1)) == 9.0 * static_cast<double>(n));
    BOOST_TEST(squared_norm(Matrix<float>{nullptr, 0, 1, 1}) == 0.0);
}

BOOST_AUTO_TEST_CASE(squared_norm_of_a_view_counts_its_elements_only) {
    std::vector<double> x{1, 2, 100, 3, 4, 100};
    BOOST_TEST(squared_norm(view(x, 2, 2, 3)) == 30.0);
}

BOOST_AUTO_TEST_CASE(squared_norm_is_the_same_bits_with_any_thread_count) {
    std::int64_t const n = 7 * 65536 + 11;
    auto x = random_values<float>(static_cast<std::size_t>(n), 5);
    BOOST_TEST(same_bits_with_any_threads(
        [&] { return std::vector<double>{squared_norm(view(x, n, 1))}; }));
}

BOOST_AUTO_TEST_CASE(one_bad_element_anywhere_makes_the_norm_nonfinite) {
    std::int64_t const n = 3 * 65536;
    for (float const bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
        for (std::size_t at : {std::size_t{0}, std::size_t{70001}, std::size_t{3 * 65536 - 1}}) {
            std::vector<float> x(static_cast<std::size_t>(n), 1.0F);
            x[at] = bad;
            BOOST_TEST(!std::isfinite(squared_norm(view(x, n, 1))));
            BOOST_TEST(std::isnan(squared_norm(view(x, n, 1))) == std::isnan(bad));
        }
    }
}
