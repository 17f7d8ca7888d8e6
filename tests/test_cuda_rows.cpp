// Copies, sums, gathers and the embedding of the device against those of the host.
#define BOOST_TEST_MODULE cuda_rows
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "tests/gpu_shapes.hpp"

using namespace cpstep;

namespace {

/// rows distinct numbers below limit, in no order.
Ids distinct(std::int64_t rows, std::int64_t limit) {
    Ids ids(static_cast<std::size_t>(limit));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(9));
    ids.resize(static_cast<std::size_t>(rows));
    return ids;
}

}  // namespace

// ---- rows ----

BOOST_AUTO_TEST_CASE(a_copy_converts_to_nearest_even_and_keeps_to_its_columns) {
    if (!gpu_present()) {
        return;
    }
    Backend& backend = gpu(Precision::fp32);
    for (Shape const& s : shapes) {
        for (DType const from : {DType::f32, DType::bf16}) {
            for (DType const to : {DType::f32, DType::bf16}) {
                Floats const values = random_values(s.rows * s.cols, 1, from);
                DeviceMatrix const src(backend, values, s.rows, s.cols, from, s.cols + s.gap);
                DeviceMatrix const dst(backend, s.rows, s.cols, to, s.cols + 2 * s.gap);
                backend.copy(dst, src);
                BOOST_TEST((dst.values() == rounded(values, to)),
                           s << " from " << int(from) << " to " << int(to));
                BOOST_TEST(dst.gaps_untouched());
            }
        }
    }
    // 1 + 2^-8 and 1 + 3 * 2^-8 lie halfway between two bf16; the last rounds up a power of two.
    DeviceMatrix const halves(backend, {1.00390625F, 1.01171875F, -1.00390625F, 1.998046875F}, 1, 4,
                              DType::f32);
    DeviceMatrix const even(backend, 1, 4, DType::bf16);
    backend.copy(even, halves);
    BOOST_TEST((even.values() == Floats{1.0F, 1.015625F, -1.0F, 2.0F}));
}

BOOST_AUTO_TEST_CASE(columns_that_begin_off_alignment_are_copied_and_added) {
    if (!gpu_present()) {
        return;
    }
    in_both_precisions([](Precision p, DType dtype) {
        std::int64_t const rows = 33;
        Floats const values = random_values(rows * 128, 11, dtype);
        Pair const from(p, values, rows, 128, dtype);
        Pair const to(p, values, rows, 128, dtype);
        Pair const sum(p, values, rows, 128, DType::f32);
        on_both(p, [&](Backend& backend, Side side) {
            backend.copy(to[side].columns(8, 64), from[side].columns(1, 64));
            backend.add(sum[side].columns(2, 64), from[side].columns(64, 64));
        });
        BOOST_TEST(equal(to, dtype));
        BOOST_TEST(equal(sum, DType::f32));
    });
}

BOOST_AUTO_TEST_CASE(a_copy_of_integers_moves_their_bits) {
    if (!gpu_present()) {
        return;
    }
    Backend& backend = gpu(Precision::bf16);
    Ids const values{-1, 0x7f800001, 3, 151935, 0, -7};  // the first two are NaN as floats
    Buffer const src = uploaded(backend, values);
    Buffer const dst(backend, 6, 2, DType::i32);
    backend.zero(dst);
    backend.copy(dst.tensor().columns(1, 1), src);
    Ids back(12);
    backend.download(back.data(), dst);
    for (std::size_t i = 0; i < values.size(); ++i) {
        BOOST_TEST(back[2 * i] == 0);
        BOOST_TEST(back[2 * i + 1] == values[i]);
    }
}

BOOST_AUTO_TEST_CASE(zero_and_add_keep_to_their_columns) {
    if (!gpu_present()) {
        return;
    }
    for (Shape const& s : shapes) {
        for (DType const dtype : {DType::f32, DType::bf16}) {
            Precision const p = Precision::bf16;
            DeviceMatrix const cleared(gpu(p), s.rows, s.cols, dtype, s.cols + s.gap);
            gpu(p).zero(cleared);
            BOOST_TEST((cleared.values() == Floats(static_cast<std::size_t>(s.rows * s.cols))));
            BOOST_TEST(cleared.gaps_untouched());

            Pair const sum(p, random_values(s.rows * s.cols, 2), s.rows, s.cols, DType::f32, s.gap);
            Pair const term(p, random_values(s.rows * s.cols, 3, dtype), s.rows, s.cols, dtype,
                            2 * s.gap);
            on_both(p, [&](Backend& backend, Side side) { backend.add(sum[side], term[side]); });
            BOOST_TEST(equal(sum, DType::f32), s);
            BOOST_TEST(sum.gaps_untouched());
        }
    }
}

BOOST_AUTO_TEST_CASE(elements_past_2_to_31_are_reached) {
    if (!gpu_present() || cuda_device_info(0).free_bytes < std::int64_t{20} << 30) {
        return;
    }
    Backend& backend = gpu(Precision::bf16);
    std::int64_t const count = (std::int64_t{1} << 31) + 24;
    Buffer const narrow(backend, count, 1, DType::bf16);
    Buffer const wide(backend, count, 1, DType::f32);
    backend.zero(narrow);
    std::vector<std::uint16_t> const ones(24, to_bf16(1.0F));
    backend.upload(narrow.tensor().row_range(count - 24, 24), ones.data());
    backend.copy(wide, narrow);
    backend.add(wide, narrow);
    Floats last(32);
    backend.download(last.data(), wide.tensor().row_range(count - 32, 32));
    Floats expected(32, 2.0F);
    std::fill_n(expected.begin(), 8, 0.0F);
    BOOST_TEST((last == expected));
}

BOOST_AUTO_TEST_CASE(rows_are_gathered_and_scattered_by_index) {
    if (!gpu_present()) {
        return;
    }
    in_both_precisions([](Precision p, DType dtype) {
        for (Shape const& s : shapes) {
            std::int64_t const all = 2 * s.rows + 3;
            Ids const index = distinct(s.rows, all);
            Pair const src(p, random_values(all * s.cols, 4, dtype), all, s.cols, dtype, s.gap);
            Pair const picked(p, s.rows, s.cols, dtype, 2 * s.gap);
            Pair const sum(p, random_values(all * s.cols, 5, dtype), all, s.cols, dtype, s.gap);
            on_both(p, [&](Backend& backend, Side side) {
                Buffer const rows = uploaded(backend, index);
                backend.gather_rows(picked[side], src[side], rows);
                backend.scatter_add_rows(sum[side], picked[side], rows);
            });
            BOOST_TEST(equal(picked, dtype), s);
            BOOST_TEST(equal(sum, dtype), s);
            BOOST_TEST((picked.gaps_untouched() && sum.gaps_untouched()), s);
        }
    });
}

BOOST_AUTO_TEST_CASE(a_column_is_gathered_by_a_strided_index) {
    if (!gpu_present()) {
        return;
    }
    Precision const p = Precision::fp32;
    std::int64_t const rows = 1000;
    Ids const index = distinct(rows, rows);
    Pair const src(p, random_values(2 * rows, 6), rows, 2, DType::f32);
    Pair const dst(p, rows, 1, DType::f32);
    on_both(p, [&](Backend& backend, Side side) {
        Buffer const pairs(backend, rows, 2, DType::i32);
        Tensor const column = pairs.tensor().columns(1, 1);
        backend.upload(column, index.data());
        backend.gather_rows(dst[side], src[side].columns(1, 1), column);
    });
    BOOST_TEST(equal(dst, DType::f32));
}

// ---- embedding ----

namespace {

/// Ids of rows whose sums differ in where their runs begin and end once sorted.
std::vector<Ids> id_lists(std::int64_t rows, std::int64_t vocabulary) {
    std::vector<Ids> lists;
    for (std::int64_t const run : {1, 15, 16, 17, 32, 40, 700}) {
        Ids ids;
        for (std::int64_t s = 0; s < rows; ++s) {
            ids.push_back(static_cast<std::int32_t>(s / run * 7919 % vocabulary));
        }
        lists.push_back(ids);
    }
    // As text: a third of the rows one token, the rest of any frequency, the last id among them.
    std::mt19937 engine(10);
    std::geometric_distribution<std::int32_t> rare(0.01);
    Ids text;
    for (std::int64_t s = 0; s < rows; ++s) {
        auto const id = static_cast<std::int32_t>(rare(engine) % vocabulary);
        text.push_back(s % 3 == 0 ? static_cast<std::int32_t>(vocabulary - 1) : id);
    }
    lists.push_back(text);
    lists.emplace_back(static_cast<std::size_t>(rows), 0);
    return lists;
}

}  // namespace

BOOST_AUTO_TEST_CASE(embedding_rows_are_read_by_id) {
    if (!gpu_present()) {
        return;
    }
    in_both_precisions([](Precision p, DType dtype) {
        for (std::int64_t const h : {7, 896}) {
            Pair const table(p, random_values(1000 * h, 7, dtype), 1000, h, dtype);
            Ids const ids = id_lists(333, 1000).back();
            Pair const x(p, 333, h, dtype, 8);
            on_both(p, [&](Backend& backend, Side side) {
                backend.embedding_forward(x[side], table[side], uploaded(backend, ids));
            });
            BOOST_TEST(equal(x, dtype));
            BOOST_TEST(x.gaps_untouched());
        }
    });
}

BOOST_AUTO_TEST_CASE(embedding_gradients_of_repeated_ids_add_up_in_one_order) {
    if (!gpu_present()) {
        return;
    }
    struct Case {
        std::int64_t rows, vocabulary, h, gap;
    };
    in_both_precisions([](Precision p, DType dtype) {
        for (Case const& c : {Case{1, 1, 3, 0}, Case{0, 5, 8, 0}, Case{999, 1024, 136, 8},
                              Case{2500, 1024, 131, 3}, Case{333, 16, 2400, 0}}) {
            for (Ids const& ids : id_lists(c.rows, c.vocabulary)) {
                Pair const dx(p, random_values(c.rows * c.h, 8, dtype), c.rows, c.h, dtype, c.gap);
                Floats const before = random_values(c.vocabulary * c.h, 9);
                auto const dtable = [&] {
                    Pair const table(p, before, c.vocabulary, c.h, DType::f32, c.gap);
                    on_both(p, [&](Backend& backend, Side side) {
                        backend.embedding_backward(table[side], dx[side], uploaded(backend, ids));
                    });
                    // Sums of as many terms as there are rows, at most; the host's are fp32 too.
                    BOOST_TEST(table.error() <= fp32_bound(4, static_cast<double>(c.rows + 1)),
                               c.rows << " x " << c.h << " error " << table.error());
                    BOOST_TEST(table.gaps_untouched());
                    return table.values(Side::device);
                };
                BOOST_TEST((dtable() == dtable()));
            }
        }
    });
}
