#define BOOST_TEST_MODULE lm_head
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <vector>

#include "cuda/lm_head.hpp"
#include "tests/close.hpp"

using namespace cpstep;
using cpstep::test::all_close;
using cpstep::test::central_difference;
using cpstep::test::random_values;
using cpstep::test::rounding_bound;
using cpstep::test::within;

namespace {

template <class T>
Matrix<T> view(std::vector<T>& values, std::int64_t cols) {
    return {values.data(), static_cast<std::int64_t>(values.size()) / cols, cols, cols};
}

template <class T>
struct Head {
    Head(std::size_t rows, std::size_t hidden, std::size_t vocabulary_, double scale = 1.0)
        : width(static_cast<std::int64_t>(hidden)),
          vocabulary(static_cast<std::int64_t>(vocabulary_)) {
        x = random_values<T>(rows * hidden, 1, scale);
        w = random_values<T>(vocabulary_ * hidden, 2, scale);
        d_log_prob = random_values<T>(rows, 3);
        d_entropy = random_values<T>(rows, 4);
        for (std::size_t r = 0; r < rows; ++r) {
            targets.push_back(static_cast<std::int32_t>((r * 7 + 1) % vocabulary_));
        }
        log_prob = entropy = lse = std::vector<T>(rows, T(-7));
        dx.assign(x.size(), T(-7));
        dw.assign(w.size(), T(0));
    }

    void keep_logits() {
        logits.assign(targets.size() * static_cast<std::size_t>(vocabulary), T(0));
    }
    Matrix<T> kept() { return logits.empty() ? Matrix<T>{} : view(logits, vocabulary); }

    void forward() {
        lm_head_forward<T>(view(log_prob, 1), view(entropy, 1), view(lse, 1), kept(),
                           view(x, width), view(w, width), view(targets, 1));
    }
    void backward() {
        lm_head_backward<T>(view(dx, width), view(dw, width), view(d_log_prob, 1),
                            view(d_entropy, 1), kept(), view(x, width), view(w, width),
                            view(targets, 1), view(lse, 1), view(entropy, 1));
    }

    std::int64_t width, vocabulary;
    std::vector<T> x, w, d_log_prob, d_entropy, log_prob, entropy, lse, dx, dw, logits;
    std::vector<std::int32_t> targets;
};

template <class T>
void compare_with_direct_sums(Head<T>& head) {
    head.forward();
    auto const width = static_cast<std::size_t>(head.width);
    auto const vocabulary = static_cast<std::size_t>(head.vocabulary);
    std::vector<double> log_prob, entropy, lse;
    for (std::size_t r = 0; r < head.targets.size(); ++r) {
        std::vector<double> z(vocabulary);
        double sum = 0;
        for (std::size_t v = 0; v < vocabulary; ++v) {
            for (std::size_t c = 0; c < width; ++c) {
                z[v] += double(head.x[r * width + c]) * double(head.w[v * width + c]);
            }
            sum += std::exp(z[v]);
        }
        lse.push_back(std::log(sum));
        log_prob.push_back(z[static_cast<std::size_t>(head.targets[r])] - lse[r]);
        entropy.push_back(0);
        for (double value : z) {
            entropy[r] -= std::exp(value - lse[r]) * (value - lse[r]);
        }
    }
    // |z| < 4: the product of `width` terms rounds, the sums over the vocabulary hardly do
    double const bound = 4 * rounding_bound<T>(2, static_cast<double>(width));
    BOOST_TEST(all_close(head.log_prob, log_prob, bound, bound));
    BOOST_TEST(all_close(head.entropy, entropy, bound, bound));
    BOOST_TEST(all_close(head.lse, lse, bound, bound));
}

}  // namespace

BOOST_AUTO_TEST_CASE(all_equal_logits_give_the_log_of_the_vocabulary) {
    for (std::size_t vocabulary : {1, 2, 511, 151936}) {
        Head<float> head(3, 4, vocabulary);
        for (std::size_t i = 0; i < head.w.size(); ++i) {
            head.w[i] = head.w[i % 4];
        }
        head.forward();
        double const want = std::log(static_cast<double>(vocabulary));
        double const bound = rounding_bound<float>(4, 1);
        for (std::size_t r = 0; r < 3; ++r) {
            BOOST_TEST(within(head.log_prob[r], -want, bound, 0.0));
            BOOST_TEST(within(head.entropy[r], want, bound, 0.0));
        }
    }
}

BOOST_AUTO_TEST_CASE(equals_direct_sums_over_the_vocabulary) {
    Head<float> single(5, 16, 5003);
    compare_with_direct_sums(single);
    Head<double> both(5, 16, 5003);
    compare_with_direct_sums(both);
}

BOOST_AUTO_TEST_CASE(a_common_offset_of_the_logits_changes_only_lse) {
    Head<double> plain(4, 3, 50);
    for (std::size_t r = 0; r < 4; ++r) {
        plain.x[3 * r + 2] = 1.0;
    }
    Head<double> shifted = plain;
    for (std::size_t v = 0; v < 50; ++v) {
        shifted.w[3 * v + 2] += 1000.0;  // exp(1000) overflows
    }
    plain.forward();
    shifted.forward();
    double const bound = 1000 * rounding_bound<double>(4, 3);
    BOOST_TEST(all_close(shifted.log_prob, plain.log_prob, bound, bound));
    BOOST_TEST(all_close(shifted.entropy, plain.entropy, bound, bound));
    BOOST_TEST(within(shifted.lse[0], plain.lse[0] + 1000, bound, bound));
}

BOOST_AUTO_TEST_CASE(backward_equals_finite_differences) {
    Head<double> head(5, 4, 13);
    auto const loss = [&] {
        head.forward();
        double sum = 0;
        for (std::size_t r = 0; r < head.targets.size(); ++r) {
            sum += head.d_log_prob[r] * head.log_prob[r] + head.d_entropy[r] * head.entropy[r];
        }
        return sum;
    };
    loss();
    head.backward();
    for (double const step : {1e-4, 1e-5}) {
        for (std::size_t i = 0; i < head.x.size(); ++i) {
            BOOST_TEST(within(head.dx[i], central_difference(head.x[i], step, loss), 1e-7, 1e-8));
        }
        for (std::size_t i = 0; i < head.w.size(); ++i) {
            BOOST_TEST(within(head.dw[i], central_difference(head.w[i], step, loss), 1e-7, 1e-8));
        }
    }
}

BOOST_AUTO_TEST_CASE(kept_logits_and_recomputed_chunks_give_the_same_bits) {
    // 200 rows of 65536 floats: chunks of 128 and 72 rows
    Head<float> chunked(200, 4, 65536);
    Head<float> kept(200, 4, 65536);
    kept.keep_logits();
    for (Head<float>* head : {&chunked, &kept}) {
        head->forward();
        head->backward();
    }
    BOOST_TEST(chunked.log_prob == kept.log_prob);
    BOOST_TEST(chunked.entropy == kept.entropy);
    BOOST_TEST(chunked.lse == kept.lse);
    BOOST_TEST(chunked.dx == kept.dx);
    BOOST_TEST(chunked.dw == kept.dw);
}

BOOST_AUTO_TEST_CASE(weight_gradient_is_added_and_input_gradient_is_replaced) {
    Head<double> once(3, 4, 9);
    once.forward();
    once.backward();
    std::vector<double> const dx = once.dx;
    std::vector<double> twice = once.dw;
    once.backward();
    for (double& value : twice) {
        value *= 2;
    }
    BOOST_TEST(once.dx == dx);
    BOOST_TEST(all_close(once.dw, twice, rounding_bound<double>(4, 3), 1e-16));
}

BOOST_AUTO_TEST_CASE(rows_without_gradient_contribute_nothing_whatever_they_hold) {
    Head<double> head(3, 4, 9);
    head.d_log_prob[1] = head.d_entropy[1] = 0;
    head.forward();
    head.lse[1] = std::nan("");
    head.backward();
    for (std::size_t c = 0; c < 4; ++c) {
        BOOST_TEST(head.dx[4 + c] == 0.0);
    }
    for (double value : head.dw) {
        BOOST_TEST(std::isfinite(value));
    }
}

BOOST_AUTO_TEST_CASE(no_rows_leave_the_weight_gradient_alone) {
    Head<double> head(0, 4, 9);
    head.forward();
    head.backward();
    BOOST_TEST(head.dw == std::vector<double>(36, 0.0));
}

BOOST_AUTO_TEST_CASE(targets_outside_the_vocabulary_are_refused) {
    auto const internal = [](Error const& e) { return e.code() == ExitCode::internal; };
    for (std::int32_t const target : {-1, 9}) {
        Head<double> head(3, 4, 9);
        head.targets[2] = target;
        BOOST_CHECK_EXCEPTION(head.forward(), Error, internal);
        BOOST_CHECK_EXCEPTION(head.backward(), Error, internal);
    }
}
