#define BOOST_TEST_MODULE embedding
#include <boost/test/unit_test.hpp>
#include <cstdint>
#include <vector>

#include "cuda/layers.hpp"
#include "tests/close.hpp"
#include "tests/views.hpp"

using namespace cpstep;
using namespace cpstep::test;

BOOST_AUTO_TEST_CASE(every_row_is_the_table_row_of_its_token) {
    std::vector<float> table{0, 1, 10, 11, 20, 21};
    std::vector<std::int32_t> ids{2, 0, 2};
    std::vector<float> x(6, -1.0F);
    embedding_forward(view(x, 3, 2), view(table, 3, 2), view(ids, 3, 1));
    BOOST_TEST(x == (std::vector<float>{20, 21, 0, 1, 20, 21}));
}

BOOST_AUTO_TEST_CASE(an_id_outside_the_vocabulary_is_bad_input) {
    std::vector<float> table(6);
    std::vector<float> x(2);
    for (std::int32_t id : {-1, 3}) {
        std::vector<std::int32_t> ids{id};
        BOOST_CHECK_EXCEPTION(embedding_forward(view(x, 1, 2), view(table, 3, 2), view(ids, 1, 1)),
                              Error,
                              [](Error const& e) { return e.code() == ExitCode::input_data; });
        BOOST_CHECK_THROW(embedding_backward(view(table, 3, 2), view(x, 1, 2), view(ids, 1, 1)),
                          Error);
    }
}

BOOST_AUTO_TEST_CASE(a_repeated_token_collects_all_its_gradients) {
    std::vector<float> dtable{100, 100, 100, 100, 100, 100};
    std::vector<float> dx{1, 2, 3, 4, 5, 6};
    std::vector<std::int32_t> ids{2, 0, 2};
    embedding_backward(view(dtable, 3, 2), view(dx, 3, 2), view(ids, 3, 1));
    BOOST_TEST(dtable == (std::vector<float>{103, 104, 100, 100, 106, 108}));
}

BOOST_AUTO_TEST_CASE(backward_is_the_derivative_of_forward) {
    std::int64_t const rows = 5, vocabulary = 4, h = 3;
    auto table = random_values<double>(12, 1);
    auto const dx = random_values<double>(15, 2);
    std::vector<std::int32_t> ids{3, 1, 1, 0, 3};
    auto const loss = [&] {
        std::vector<double> x(15);
        embedding_forward(view(x, rows, h), view(table, vocabulary, h), view(ids, rows, 1));
        return dot(x, dx);
    };
    std::vector<double> dtable(12, 0.0);
    auto gradient = dx;
    embedding_backward(view(dtable, vocabulary, h), view(gradient, rows, h), view(ids, rows, 1));
    for (double const step : {1e-2, 1e-4}) {
        std::vector<double> numeric;
        for (double& element : table) {
            numeric.push_back(central_difference(element, step, loss));
        }
        // Linear: no truncation, rounding of 15 terms over the step.
        BOOST_TEST(all_close(dtable, numeric, 0.0, rounding_bound<double>(8, 15) / step));
    }
}

BOOST_AUTO_TEST_CASE(scatter_of_gathered_rows_adds_them_back_through_strides) {
    std::int64_t const h = 3, stride = 5;
    auto source = random_values<float>(7 * 5, 3);
    std::vector<std::int32_t> index{6, 0, 3};
    std::vector<float> picked(3 * 4, -1.0F);
    auto const from = view(source, 7, h, stride, 1);
    auto const to = view(picked, 3, h, 4);
    gather_rows(to, from, view(index, 3, 1));
    for (std::int64_t i = 0; i < 3; ++i) {
        for (std::int64_t c = 0; c < h; ++c) {
            BOOST_TEST(to.row(i)[c] == from.row(index[static_cast<std::size_t>(i)])[c]);
        }
        BOOST_TEST(to.row(i)[h] == -1.0F);
    }
    auto want = source;
    for (std::int32_t row : index) {
        for (std::int64_t c = 0; c < h; ++c) {
            want[static_cast<std::size_t>(row * stride + 1 + c)] *= 2.0F;
        }
    }
    scatter_add_rows(from, to, view(index, 3, 1));
    BOOST_TEST(source == want);
}

BOOST_AUTO_TEST_CASE(an_index_outside_the_source_is_refused) {
    std::vector<float> source(6);
    std::vector<float> dst(2);
    std::vector<std::int32_t> index{3};
    BOOST_CHECK_THROW(gather_rows(view(dst, 1, 2), view(source, 3, 2), view(index, 1, 1)), Error);
    BOOST_CHECK_THROW(scatter_add_rows(view(source, 3, 2), view(dst, 1, 2), view(index, 1, 1)),
                      Error);
}

BOOST_AUTO_TEST_CASE(zero_rows_change_nothing) {
    std::vector<float> table{1, 2};
    Matrix<float> const none{nullptr, 0, 2, 2};
    Matrix<std::int32_t> const no_index{nullptr, 0, 1, 1};
    embedding_forward(none, view(table, 1, 2), no_index);
    embedding_backward(view(table, 1, 2), none, no_index);
    gather_rows(none, view(table, 1, 2), no_index);
    scatter_add_rows(view(table, 1, 2), none, no_index);
    BOOST_TEST(table == (std::vector<float>{1, 2}));
}

BOOST_AUTO_TEST_CASE(gradients_of_repeated_tokens_are_the_same_bits_with_any_thread_count) {
    std::int64_t const rows = 300, h = 130;
    auto dx = random_values<float>(static_cast<std::size_t>(rows * h), 4);
    std::vector<std::int32_t> ids;
    for (std::int32_t s = 0; s < rows; ++s) {
        ids.push_back((s * s) % 7);
    }
    BOOST_TEST(same_bits_with_any_threads([&] {
        std::vector<float> dtable(static_cast<std::size_t>(7 * h), 0.25F);
        embedding_backward(view(dtable, 7, h), view(dx, rows, h), view(ids, rows, 1));
        return dtable;
    }));
}
