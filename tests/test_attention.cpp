#define BOOST_TEST_MODULE attention
#include <omp.h>

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstring>
#include <vector>

#include "cuda/attention.hpp"
#include "cuda/exp.hpp"
#include "tests/close.hpp"

using namespace cpstep;
using cpstep::test::all_close;
using cpstep::test::central_difference;
using cpstep::test::random_values;
using cpstep::test::rounding_bound;
using cpstep::test::within;

namespace {

using Segments = std::vector<Segment>;
constexpr double infinity = std::numeric_limits<double>::infinity();

template <class T>
Matrix<T> view(std::vector<T>& values, std::int64_t rows) {
    std::int64_t const cols = rows == 0 ? 0 : static_cast<std::int64_t>(values.size()) / rows;
    return {values.data(), rows, cols, cols};
}

std::size_t count(std::int64_t rows, std::int64_t cols) {
    return static_cast<std::size_t>(rows * cols);
}

/// Seeded q, k, v, do and room for results.
template <class T>
struct Problem {
    Problem(std::int64_t queries_, std::int64_t keys_, HeadShape shape_, double scale = 1.0)
        : queries(queries_), keys(keys_), shape(shape_) {
        std::int64_t const q_cols = shape.heads * shape.head_dim;
        std::int64_t const kv_cols = shape.kv_heads * shape.head_dim;
        q = random_values<T>(count(queries, q_cols), 1, scale);
        k = random_values<T>(count(keys, kv_cols), 2, scale);
        v = random_values<T>(count(keys, kv_cols), 3);
        d_o = random_values<T>(count(queries, q_cols), 4);
        o.assign(q.size(), T(-7));
        lse.assign(count(queries, shape.heads), T(-7));
        dq.assign(q.size(), T(0));
        dk.assign(k.size(), T(0));
        dv.assign(v.size(), T(0));
    }

    void forward(Segments const& segments, Accumulate mode = Accumulate::overwrite) {
        attention_forward<T>(view(o, queries), view(lse, queries), view(q, queries), view(k, keys),
                             view(v, keys), shape, segments, mode);
    }
    void backward(Segments const& segments) {
        attention_backward<T>(view(dq, queries), view(dk, keys), view(dv, keys), view(q, queries),
                              view(k, keys), view(v, keys), view(o, queries), view(d_o, queries),
                              view(lse, queries), shape, segments);
    }

    std::int64_t queries, keys;
    HeadShape shape;
    std::vector<T> q, k, v, d_o, o, lse, dq, dk, dv;
};

struct Expected {
    std::vector<double> o, lse;
};

/// The whole score matrix in double: what query i sees is the union over the segments.
template <class T>
Expected full_softmax(Problem<T> const& p, Segments const& segments) {
    auto const [heads, kv_heads, d] = p.shape;
    Expected want{std::vector<double>(p.o.size()), std::vector<double>(p.lse.size(), -infinity)};
    for (std::int64_t i = 0; i < p.queries; ++i) {
        for (std::int64_t h = 0; h < heads; ++h) {
            std::int64_t const g = h / (heads / kv_heads);
            std::vector<double> weights(static_cast<std::size_t>(p.keys));
            double sum = 0;
            for (Segment const& s : segments) {
                bool const inside = i >= s.q_row && i < s.q_row + s.q_rows;
                for (std::int64_t j = 0; inside && j < visible_keys(s, i - s.q_row); ++j) {
                    double score = 0;
                    for (std::int64_t c = 0; c < d; ++c) {
                        score +=
                            double(p.q[count(i, heads * d) + count(h, d) + count(c, 1)]) *
                            double(
                                p.k[count(s.kv_row + j, kv_heads * d) + count(g, d) + count(c, 1)]);
                    }
                    weights[count(s.kv_row + j, 1)] = std::exp(score / std::sqrt(double(d)));
                    sum += weights[count(s.kv_row + j, 1)];
                }
            }
            want.lse[count(i, heads) + count(h, 1)] = std::log(sum);
            for (std::int64_t j = 0; sum > 0 && j < p.keys; ++j) {
                for (std::int64_t c = 0; c < d; ++c) {
                    want.o[count(i, heads * d) + count(h, d) + count(c, 1)] +=
                        weights[count(j, 1)] / sum *
                        double(p.v[count(j, kv_heads * d) + count(g, d) + count(c, 1)]);
                }
            }
        }
    }
    return want;
}

template <class T>
void compare_with_full_softmax(Problem<T>& p, Segments const& segments) {
    p.forward(segments);
    Expected const want = full_softmax(p, segments);
    double const bound = rounding_bound<T>(8, static_cast<double>(p.keys));
    BOOST_TEST(all_close(p.o, want.o, bound, bound));
    BOOST_TEST(all_close(p.lse, want.lse, bound, bound));
}

/// Two packed samples of 40 and 110 tokens: the blocks on the diagonal, the second one in two
/// pieces.
Segments const on_diagonal = {{0, 40, 0, 40, 0}, {40, 70, 40, 70, 0}, {110, 40, 110, 40, 0}};
/// The rest of the second sample: its later queries see all of its earlier keys.
Segments const off_diagonal = {{110, 40, 40, 70, 70}};
/// The same attention in one list.
Segments const packed = {{0, 40, 0, 40, 0}, {40, 110, 40, 110, 0}};

constexpr HeadShape grouped = {.heads = 4, .kv_heads = 2, .head_dim = 6};

}  // namespace

BOOST_AUTO_TEST_CASE(exponential_is_within_two_units_in_the_last_place) {
    for (double at = -87.3; at < 88.3; at += 0.00137) {
        float const x = static_cast<float>(at);
        BOOST_REQUIRE(within(exp_inline(x), std::exp(double(x)), rounding_bound<float>(2, 1), 0.0));
    }
    float const inf = std::numeric_limits<float>::infinity();
    BOOST_TEST(exp_inline(0.0F) == 1.0F);
    BOOST_TEST(exp_inline(-inf) == 0.0F);
    BOOST_TEST(exp_inline(-1000.0F) == 0.0F);
    BOOST_TEST(exp_inline(inf) == inf);
    BOOST_TEST(exp_inline(1000.0F) == inf);
    BOOST_TEST(std::isnan(exp_inline(std::numeric_limits<float>::quiet_NaN())));
}

BOOST_AUTO_TEST_CASE(equals_the_full_softmax_for_any_length_and_head_shape) {
    for (std::int64_t tokens : {1, 5, 63, 64, 65, 130}) {
        for (HeadShape shape : {HeadShape{4, 2, 64}, HeadShape{3, 1, 5}, HeadShape{2, 2, 8}}) {
            Problem<float> single(tokens, tokens, shape);
            compare_with_full_softmax(single, {{0, tokens, 0, tokens, 0}});
            Problem<double> both(tokens, tokens, shape);
            compare_with_full_softmax(both, {{0, tokens, 0, tokens, 0}});
        }
    }
}

BOOST_AUTO_TEST_CASE(equals_the_full_softmax_for_packed_samples_and_blocks_off_the_diagonal) {
    Problem<float> p(150, 150, grouped);
    compare_with_full_softmax(p, packed);
    Problem<double> ahead(90, 200, grouped);  // the last 90 queries of 200
    compare_with_full_softmax(ahead, {{0, 90, 0, 200, 110}});
}

BOOST_AUTO_TEST_CASE(uniform_keys_give_the_mean_of_the_values) {
    constexpr std::int64_t tokens = 100;
    Problem<double> p(tokens, tokens, {1, 1, 4});
    for (std::size_t i = 0; i < p.k.size(); ++i) {
        p.k[i] = p.k[i % 4];
    }
    p.forward({{0, tokens, 0, tokens, 0}});
    std::vector<double> mean(p.o.size());
    std::vector<double> sum(4);
    for (std::size_t i = 0; i < mean.size(); ++i) {
        sum[i % 4] += p.v[i];
        mean[i] = sum[i % 4] / static_cast<double>(i / 4 + 1);
    }
    BOOST_TEST(all_close(p.o, mean, 0.0, rounding_bound<double>(8, tokens)));
}

BOOST_AUTO_TEST_CASE(one_token_attends_to_itself) {
    Problem<double> p(1, 1, {1, 1, 3});
    p.forward({{0, 1, 0, 1, 0}});
    double const score = (p.q[0] * p.k[0] + p.q[1] * p.k[1] + p.q[2] * p.k[2]) / std::sqrt(3.0);
    double const bound = rounding_bound<double>(4, 3);
    BOOST_TEST(all_close(p.o, p.v, bound, bound));
    BOOST_TEST(within(p.lse[0], score, bound, bound));
}

BOOST_AUTO_TEST_CASE(large_scores_do_not_overflow) {
    Problem<float> p(130, 130, {1, 1, 8}, 40.0);  // |q.k| up to 1e4, growing and falling over tiles
    p.forward({{0, 130, 0, 130, 0}});
    for (std::size_t i = 0; i < p.o.size(); ++i) {
        BOOST_REQUIRE(std::abs(p.o[i]) <= 1.001F);
        BOOST_REQUIRE(std::isfinite(p.lse[i / 8]));
    }
}

BOOST_AUTO_TEST_CASE(merging_split_key_ranges_equals_one_call) {
    Problem<double> whole(150, 150, grouped);
    whole.forward(packed);
    Problem<double> parts(150, 150, grouped);
    parts.forward(on_diagonal);
    parts.forward(off_diagonal, Accumulate::merge);
    double const bound = rounding_bound<double>(8, 150);
    BOOST_TEST(all_close(parts.o, whole.o, bound, bound));
    BOOST_TEST(all_close(parts.lse, whole.lse, bound, bound));

    Problem<double> keys_in_three(150, 150,
                                  grouped);  // the first rows see no key of the second part
    keys_in_three.forward({{0, 150, 0, 50, 0}});
    keys_in_three.forward({{0, 150, 50, 70, -50}}, Accumulate::merge);
    keys_in_three.forward({{0, 150, 120, 30, -120}}, Accumulate::merge);
    whole.forward({{0, 150, 0, 150, 0}});
    BOOST_TEST(all_close(keys_in_three.o, whole.o, bound, bound));
    BOOST_TEST(all_close(keys_in_three.lse, whole.lse, bound, bound));
}

BOOST_AUTO_TEST_CASE(rows_that_see_no_key_are_empty_until_a_merge_brings_one) {
    Problem<double> p(70, 70, grouped);
    p.forward({{0, 70, 0, 70, -3}});
    for (std::int64_t h = 0; h < 4; ++h) {
        BOOST_TEST(p.lse[count(2, 4) + count(h, 1)] == -infinity);
        BOOST_TEST(std::isfinite(p.lse[count(3, 4) + count(h, 1)]));
    }
    BOOST_TEST(p.o[count(2, 24)] == 0.0);
    std::vector<double> const o = p.o;
    std::vector<double> const lse = p.lse;
    p.forward({{0, 70, 0, 0, 0}, {3, 0, 0, 70, 0}}, Accumulate::merge);  // brings no key
    BOOST_TEST(p.o == o);
    BOOST_TEST(p.lse == lse);

    std::fill(p.o.begin(), p.o.begin() + 3 * 24, std::nan(""));  // what lse = -inf says is not read
    p.forward({{0, 3, 10, 5, 4}}, Accumulate::merge);
    Problem<double> fresh(70, 70, grouped);
    fresh.forward({{0, 3, 10, 5, 4}});
    BOOST_TEST(std::equal(p.o.begin(), p.o.begin() + 3 * 24, fresh.o.begin()));
    BOOST_TEST(std::equal(p.lse.begin(), p.lse.begin() + 3 * 4, fresh.lse.begin()));
}

BOOST_AUTO_TEST_CASE(only_covered_rows_are_written) {
    Problem<double> p(70, 70, grouped);
    p.forward({});
    p.backward({});
    p.forward({{5, 60, 0, 70, 70}});
    for (std::int64_t i : {0, 4, 65, 69}) {
        BOOST_TEST(p.o[count(i, 24)] == -7.0);
        BOOST_TEST(p.lse[count(i, 4)] == -7.0);
    }
    Problem<double> none(0, 0, grouped);
    attention_forward<double>({nullptr, 0, 24, 24}, {nullptr, 0, 4, 4}, {nullptr, 0, 24, 24},
                              {nullptr, 0, 12, 12}, {nullptr, 0, 12, 12}, grouped, {},
                              Accumulate::overwrite);
}

BOOST_AUTO_TEST_CASE(column_slices_of_one_matrix_give_the_same_bits) {
    constexpr std::int64_t rows = 90;
    Problem<float> p(rows, rows, grouped);
    std::vector<float> qkv(count(rows, 24 + 12 + 12 + 1), 9.0F);
    auto const slice = [&](std::vector<float>& from, std::int64_t at, std::int64_t cols) {
        for (std::int64_t i = 0; i < rows; ++i) {
            std::copy_n(&from[count(i, cols)], cols, &qkv[count(i, 49) + count(at, 1)]);
        }
        return Matrix<float>{qkv.data() + at, rows, cols, 49};
    };
    Matrix<float> const q = slice(p.q, 0, 24);
    Matrix<float> const k = slice(p.k, 24, 12);
    Matrix<float> const v = slice(p.v, 36, 12);
    Segments const causal = {{0, rows, 0, rows, 0}};
    p.forward(causal);
    p.backward(causal);
    std::vector<float> o(p.o.size());
    std::vector<float> lse(p.lse.size());
    attention_forward<float>(view(o, rows), view(lse, rows), q, k, v, grouped, causal,
                             Accumulate::overwrite);
    BOOST_TEST(o == p.o);
    BOOST_TEST(lse == p.lse);
    std::vector<float> d_qkv(qkv.size());
    attention_backward<float>({d_qkv.data(), rows, 24, 49}, {d_qkv.data() + 24, rows, 12, 49},
                              {d_qkv.data() + 36, rows, 12, 49}, q, k, v, view(o, rows),
                              view(p.d_o, rows), view(lse, rows), grouped, causal);
    for (std::int64_t i = 0; i < rows; ++i) {
        float const* const row = &d_qkv[count(i, 49)];
        BOOST_REQUIRE(std::equal(row, row + 24, &p.dq[count(i, 24)]));
        BOOST_REQUIRE(std::equal(row + 24, row + 36, &p.dk[count(i, 12)]));
        BOOST_REQUIRE(std::equal(row + 36, row + 48, &p.dv[count(i, 12)]));
        BOOST_REQUIRE(row[48] == 0.0F);
    }
}

namespace {

/// dq, dk and dv of sum(do * o) against central differences, every `every`-th element, two steps.
void check_gradient(Problem<double>& p, std::vector<Segments> const& lists, std::size_t every) {
    auto const loss = [&] {
        Accumulate mode = Accumulate::overwrite;
        for (Segments const& list : lists) {
            p.forward(list, mode);
            mode = Accumulate::merge;
        }
        double sum = 0;
        for (std::size_t i = 0; i < p.o.size(); ++i) {
            sum += p.d_o[i] * p.o[i];
        }
        return sum;
    };
    loss();
    for (Segments const& list : lists) {
        p.backward(list);
    }
    for (double const step : {1e-4, 1e-5}) {
        auto const check = [&](std::vector<double>& x, std::vector<double> const& dx) {
            for (std::size_t i = 0; i < x.size(); i += every) {
                // truncation O(step^2) plus rounding of a loss of about 10 divided by the step
                BOOST_REQUIRE(within(dx[i], central_difference(x[i], step, loss), 1e-7, 4e-9));
            }
        };
        check(p.q, p.dq);
        check(p.k, p.dk);
        check(p.v, p.dv);
    }
}

}  // namespace

BOOST_AUTO_TEST_CASE(backward_equals_finite_differences_for_grouped_heads) {
    Problem<double> p(11, 11, {4, 2, 3});
    check_gradient(p, {{{0, 11, 0, 11, 0}}}, 1);
    Problem<double> single_head(9, 14, {1, 1, 9});
    check_gradient(single_head, {{{0, 9, 0, 14, 5}}}, 1);
}

BOOST_AUTO_TEST_CASE(backward_equals_finite_differences_over_segment_lists_and_tiles) {
    Problem<double> p(150, 150, grouped);
    check_gradient(p, {on_diagonal, off_diagonal}, 97);
    Problem<double> unseen(80, 150, grouped);  // the first queries and the last keys are alone
    check_gradient(unseen, {{{0, 80, 10, 140, -4}}}, 97);
}

BOOST_AUTO_TEST_CASE(backward_of_subsets_sums_to_the_whole) {
    Problem<double> whole(150, 150, grouped);
    whole.forward(packed);
    whole.backward(packed);
    Problem<double> parts(150, 150, grouped);
    parts.forward(packed);
    parts.backward(off_diagonal);
    parts.backward(on_diagonal);
    double const bound = rounding_bound<double>(8, 300);  // up to 150 queries x 2 heads a key
    BOOST_TEST(all_close(parts.dq, whole.dq, bound, bound));
    BOOST_TEST(all_close(parts.dk, whole.dk, bound, bound));
    BOOST_TEST(all_close(parts.dv, whole.dv, bound, bound));
}

BOOST_AUTO_TEST_CASE(segments_of_one_backward_call_may_share_query_and_key_rows) {
    Problem<double> apart(150, 150, grouped);
    apart.forward(packed);
    apart.backward(on_diagonal);
    apart.backward(off_diagonal);
    Problem<double> together(150, 150, grouped);
    together.forward(packed);
    Segments all = on_diagonal;
    all.insert(all.end(), off_diagonal.begin(), off_diagonal.end());
    together.backward(all);
    double const bound = rounding_bound<double>(8, 300);
    BOOST_TEST(all_close(together.dq, apart.dq, bound, bound));
    BOOST_TEST(all_close(together.dk, apart.dk, bound, bound));
    BOOST_TEST(all_close(together.dv, apart.dv, bound, bound));
}

BOOST_AUTO_TEST_CASE(result_does_not_depend_on_the_thread_count) {
    auto const run = [](int threads) {
        omp_set_num_threads(threads);
        Problem<float> p(300, 300, {4, 2, 16});
        Segments const segments = {{0, 70, 0, 70, 0}, {70, 230, 20, 280, 50}};
        p.forward(segments);
        p.backward(segments);
        return p;
    };
    Problem<float> const one = run(1);
    for (int threads : {2, 5}) {
        Problem<float> const many = run(threads);
        BOOST_TEST(many.o == one.o);
        BOOST_TEST(many.lse == one.lse);
        BOOST_TEST(many.dq == one.dq);
        BOOST_TEST(many.dk == one.dk);
        BOOST_TEST(many.dv == one.dv);
    }
}

BOOST_AUTO_TEST_CASE(segments_and_shapes_out_of_range_are_refused) {
    auto const internal = [](Error const& e) { return e.code() == ExitCode::internal; };
    Problem<double> p(10, 10, grouped);
    BOOST_CHECK_EXCEPTION(p.forward({{5, 6, 0, 10, 0}}), Error, internal);
    BOOST_CHECK_EXCEPTION(p.backward({{0, 10, 1, 10, 0}}), Error, internal);
    p.shape.kv_heads = 3;
    BOOST_CHECK_EXCEPTION(p.forward({}), Error, internal);
}
