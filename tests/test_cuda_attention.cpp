#define BOOST_TEST_MODULE cuda_attention
#include <boost/test/unit_test.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/fault.hpp"
#include "tests/gpu_attention.hpp"

using namespace cpstep;

namespace {

/// With an argument (`test_cuda_attention -- own`) without cuDNN, whose kernels
/// compute-sanitizer's racecheck cannot follow.
std::vector<Subject> const& subjects() {
    static std::vector<Subject> const all = [] {
        std::vector<Subject> list{{"reference f32", &gpu(Precision::fp32), DType::f32},
                                  {"reference bf16", &gpu(Precision::bf16), DType::bf16}};
        static std::unique_ptr<Backend> const mma =
            make_cuda_backend({.precision = Precision::bf16, .attention = AttentionBackend::mma});
        list.push_back({"mma", mma.get(), DType::bf16});
        if (boost::unit_test::framework::master_test_suite().argc > 1) {
            return list;
        }
        try {
            static std::unique_ptr<Backend> const cudnn = make_cuda_backend(
                {.precision = Precision::bf16, .attention = AttentionBackend::cudnn});
            static std::unique_ptr<Backend> const both = make_cuda_backend(
                {.precision = Precision::bf16, .attention = AttentionBackend::automatic});
            list.push_back({cudnn->description(), cudnn.get(), DType::bf16});
            list.push_back({both->description(), both.get(), DType::bf16});
        } catch (Error const& e) {
            BOOST_TEST_MESSAGE("cuDNN attention is not tested: " << e.what());
        }
        return list;
    }();
    return all;
}

void check_all(std::vector<Case> const& cases, Layout layout = {}) {
    for (Subject const& subject : subjects()) {
        for (Case const& c : cases) {
            check_overwrite(subject, c, layout);
        }
    }
}

constexpr HeadShape qwen = {.heads = 14, .kv_heads = 2, .head_dim = 64};
constexpr HeadShape pairs = {.heads = 4, .kv_heads = 2, .head_dim = 64};
constexpr HeadShape wide = {.heads = 4, .kv_heads = 2, .head_dim = 128};

Case causal(HeadShape shape, std::int64_t rows) {
    return {"causal " + std::to_string(rows) + " of " + std::to_string(shape.head_dim),
            shape,
            rows,
            rows,
            {{0, rows, 0, rows, 0}}};
}

/// Sequences of odd lengths, rows between them that none names; on both sides of what cuDNN takes.
Case const packed = {
    "packed",
    pairs,
    700,
    700,
    {{3, 130, 3, 130, 0}, {140, 65, 140, 65, 0}, {205, 20, 205, 20, 0}, {230, 300, 230, 300, 0}}};

/// Two chunks of queries of one sequence over prefixes of its keys.
Case const shared_keys = {
    "shared keys", pairs, 300, 600, {{0, 150, 0, 225, 75}, {150, 150, 0, 600, 450}}};

}  // namespace

BOOST_AUTO_TEST_CASE(square_causal_equals_the_host) {
    if (!gpu_present()) {
        return;
    }
    for (std::int64_t const rows : {1, 63, 64, 65, 200, 517}) {
        check_all({causal(pairs, rows)});
    }
    check_all({causal(qwen, 200), causal(wide, 200), causal({4, 4, 64}, 130)});
}

BOOST_AUTO_TEST_CASE(heads_of_any_multiple_of_eight_equal_the_host) {
    if (!gpu_present()) {
        return;
    }
    for (std::int64_t const head_dim : {8, 16, 80, 136, 256}) {
        check_all({causal({4, 2, head_dim}, 100)});
    }
}

BOOST_AUTO_TEST_CASE(other_masks_equal_the_host) {
    if (!gpu_present()) {
        return;
    }
    check_all({
        {"full, more keys", pairs, 100, 333, {{0, 100, 0, 333, 333}}},
        {"full, more queries", pairs, 333, 100, {{0, 333, 0, 100, 99}}},
        {"bottom right", pairs, 130, 517, {{0, 130, 0, 517, 387}}},
        {"bottom right, keys no query sees", pairs, 130, 517, {{0, 130, 0, 517, 100}}},
        {"rows without keys first", pairs, 300, 300, {{0, 300, 0, 300, -100}}},
        {"rows that see all last", pairs, 300, 160, {{0, 300, 0, 160, -20}}},
        {"no row sees a key", pairs, 70, 70, {{0, 70, 0, 70, -70}}},
        {"no keys", pairs, 70, 70, {{0, 70, 0, 0, 0}}},
        {"no segment", pairs, 70, 70, {}},
    });
}

BOOST_AUTO_TEST_CASE(packed_segments_equal_the_host_and_rows_between_stay) {
    if (!gpu_present()) {
        return;
    }
    check_all({packed, shared_keys});
    check_all({{"packed, keys ahead",
                pairs,
                400,
                900,
                {{0, 100, 20, 300, 200}, {100, 150, 320, 151, 1}, {250, 150, 471, 400, 400}}}});
    Case many{"seventy sequences", pairs, 70 * 40, 70 * 40, {}};
    for (std::int64_t i = 0; i < 70; ++i) {
        many.segments.push_back({i * 40, 40 - i % 3, i * 40, 40 - i % 3, 0});
    }
    check_all({many});
}

BOOST_AUTO_TEST_CASE(tiny_pieces_of_every_mask_equal_the_host) {
    if (!gpu_present()) {
        return;
    }
    Case alone{"one query, one key each", pairs, 9, 9, {}};
    Case mixed{"tiny and large", pairs, 1000, 1500, {}};
    std::int64_t q = 0;
    std::int64_t k = 0;
    for (std::int64_t i = 0; i < 9; ++i) {
        alone.segments.push_back({i, 1, i, 1, 0});
        for (std::int64_t const queries : {i % 4 + 1, 60 + i}) {
            std::int64_t const more = i % 3 == 0 ? 0 : 7 * i;  // bottom right, or all seen
            std::int64_t const diagonal = i % 3 == 2 ? queries + more : more;
            mixed.segments.push_back({q, queries, k, queries + more, diagonal});
            q += queries;
            k += queries + more;
        }
    }
    check_all({alone,
               mixed,
               {"few keys of many queries", pairs, 4200, 5, {{0, 4200, 0, 5, 5}}},
               {"many keys of few queries", pairs, 3, 4200, {{0, 3, 0, 4200, 4197}}}});
}

// cuDNN of some releases gives NaN where the last tile of keys is half full and a row's sum of
// exponentials is below the smallest f32 (pytorch issue 196678).
BOOST_AUTO_TEST_CASE(scores_far_below_zero_equal_the_host) {
    if (!gpu_present()) {
        return;
    }
    std::vector<Case> cases = {packed,
                               causal(pairs, 64),
                               causal(pairs, 192),
                               causal(wide, 320),
                               {"tiny", pairs, 20, 20, {{0, 1, 0, 1, 0}, {1, 19, 1, 19, 0}}},
                               {"full", pairs, 100, 192, {{0, 100, 0, 192, 192}}},
                               {"one query", pairs, 1, 128, {{0, 1, 0, 128, 127}}}};
    for (Subject const& subject : subjects()) {
        for (Case& c : cases) {
            c.tilt = 4;
            if (subject.dtype == DType::bf16) {  // f32 bounds are for scores of about one
                check_overwrite(subject, c);
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(one_long_sequence_equals_the_host) {
    if (!gpu_present()) {
        return;
    }
    check_all({causal({2, 1, 64}, 4100)});
}

BOOST_AUTO_TEST_CASE(rows_with_gaps_give_the_same_aligned_or_not) {
    if (!gpu_present()) {
        return;
    }
    check_all({packed, causal(wide, 130)}, {.gap = 24});
    check_all({packed, causal(wide, 130)}, {.gap = 3});
}

BOOST_AUTO_TEST_CASE(merged_key_ranges_equal_the_whole) {
    if (!gpu_present()) {
        return;
    }
    Case const c = causal(pairs, 517);
    std::vector<std::vector<Segments>> const splits = {
        {{{0, 517, 0, 200, 0}}, {{0, 517, 200, 317, -200}}},
        {{{0, 517, 300, 217, -300}}, {{0, 517, 0, 100, 0}}, {{0, 517, 100, 200, -100}}},
        {{{0, 200, 0, 200, 0}, {200, 317, 200, 317, 0}}, {{200, 317, 0, 200, 200}}}};
    for (Subject const& subject : subjects()) {
        Call expected(host(), DType::f32, c);
        Call call(*subject.backend, subject.dtype, c);
        Call::Softmax const whole = expected.forward({c.segments}, DType::f32);
        Call::Softmax const given = rounded_softmax(whole, subject.dtype);
        for (auto const& lists : splits) {
            Call::Softmax const got = call.forward(lists, DType::f32);
            check(subject, c, "merged o", got.o, whole.o);
            check(subject, c, "merged lse", got.lse, whole.lse);
            for (Segments const& list : lists) {
                Call::Gradients const want =
                    expected.backward(list, given, DType::f32, Accumulate::merge);
                check_gradients(subject, c,
                                call.backward(list, given, DType::f32, Accumulate::merge), want);
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(gradients_of_shared_keys_are_added_and_of_queries_where_merged) {
    if (!gpu_present()) {
        return;
    }
    for (Subject const& subject : subjects()) {
        for (Case const& c : {packed, shared_keys}) {
            Call expected(host(), DType::f32, c);
            Call call(*subject.backend, subject.dtype, c);
            Call::Softmax const given =
                rounded_softmax(expected.forward({c.segments}, DType::f32), subject.dtype);
            check_gradients(subject, c,
                            call.backward(c.segments, given, DType::f32, Accumulate::merge),
                            expected.backward(c.segments, given, DType::f32, Accumulate::merge));
        }
    }
}

BOOST_AUTO_TEST_CASE(rows_without_keys_take_what_a_merge_brings) {
    if (!gpu_present()) {
        return;
    }
    // Queries 0 .. 99 see no key at first: their o, NaN before, must not be read.
    Case const c = {"late keys", pairs, 200, 300, {}};
    std::vector<Segments> const lists = {
        {{0, 200, 0, 100, -100}}, {{0, 200, 100, 0, 0}}, {{0, 200, 100, 200, 70}}};
    for (Subject const& subject : subjects()) {
        Call::Softmax const want = Call(host(), DType::f32, c).forward(lists, DType::f32);
        Call::Softmax const got =
            Call(*subject.backend, subject.dtype, c).forward(lists, DType::f32);
        check(subject, c, "o", got.o, want.o);
        check(subject, c, "lse", got.lse, want.lse);
    }
}

BOOST_AUTO_TEST_CASE(planted_faults_of_the_merge_show) {
    if (!gpu_present()) {
        return;
    }
    Case const c = causal(pairs, 200);
    std::vector<Segments> const lists = {{{0, 200, 0, 90, 0}}, {{0, 200, 90, 110, -90}}};
    for (Fault const fault : {Fault::merge_without_rescale, Fault::merge_wrong_sign}) {
        PlantedFault const planted(fault);
        Call::Softmax const want = Call(host(), DType::f32, c).forward(lists, DType::f32);
        for (Subject const& subject : subjects()) {
            Call::Softmax const got =
                Call(*subject.backend, subject.dtype, c).forward(lists, DType::f32);
            check(subject, c, "o under a planted fault", got.o, want.o);
        }
    }
}

BOOST_AUTO_TEST_CASE(forward_and_our_backward_repeat_bit_for_bit) {
    if (!gpu_present()) {
        return;
    }
    for (Subject const& subject : subjects()) {
        for (Case const& c : {packed, shared_keys}) {
            Call call(*subject.backend, subject.dtype, c);
            Call::Softmax const once = call.forward({c.segments}, DType::f32);
            Call::Softmax const again = call.forward({c.segments}, DType::f32);
            BOOST_TEST(difference(again.o, once.o) == 0.0);
            BOOST_TEST(difference(again.lse, once.lse) == 0.0);
            if (subject.name.find("cudnn") != std::string::npos) {
                continue;  // cuDNN sums dq with atomics
            }
            Call::Gradients const first = call.backward(c.segments, once, subject.dtype);
            Call::Gradients const second = call.backward(c.segments, once, subject.dtype);
            BOOST_TEST(difference(second.dq, first.dq) == 0.0);
            BOOST_TEST(difference(second.dk, first.dk) == 0.0);
            BOOST_TEST(difference(second.dv, first.dv) == 0.0);
        }
    }
}

BOOST_AUTO_TEST_CASE(calls_without_rows_do_nothing) {
    if (!gpu_present()) {
        return;
    }
    for (Subject const& subject : subjects()) {
        Case const c = {"no rows", pairs, 0, 0, {}};
        Call call(*subject.backend, subject.dtype, c);
        Call::Softmax const nothing = call.forward({c.segments}, subject.dtype);
        BOOST_TEST(nothing.o.empty());
        call.backward(c.segments, nothing, subject.dtype);
    }
}

BOOST_AUTO_TEST_CASE(heads_and_segments_that_do_not_fit_are_refused) {
    if (!gpu_present()) {
        return;
    }
    for (Subject const& subject : subjects()) {
        Case const odd = causal({2, 1, 20}, 70);
        BOOST_CHECK_EXCEPTION(
            Call(*subject.backend, subject.dtype, odd).forward({odd.segments}, DType::f32), Error,
            [](Error const& e) { return e.code() == ExitCode::input_data; });
        Case const twice = {"twice", pairs, 70, 70, {{0, 40, 0, 70, 0}, {39, 31, 0, 70, 0}}};
        BOOST_CHECK_EXCEPTION(
            Call(*subject.backend, subject.dtype, twice).forward({twice.segments}, DType::f32),
            Error, [](Error const& e) { return e.code() == ExitCode::internal; });
    }
}
