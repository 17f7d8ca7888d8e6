#define BOOST_TEST_MODULE cuda_attention
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/fault.hpp"
#include "tests/gpu_fixture.hpp"

using namespace cpstep;

namespace {

using Segments = std::vector<Segment>;
using Values = std::vector<float>;

/// One attention backend of the device.
struct Subject {
    std::string name;
    Backend* backend;
    DType dtype;
};

/// With an argument (`test_cuda_attention -- reference`) without cuDNN, whose kernels
/// compute-sanitizer's racecheck cannot follow.
std::vector<Subject> const& subjects() {
    static std::vector<Subject> const all = [] {
        std::vector<Subject> list{{"reference f32", &gpu(Precision::fp32), DType::f32},
                                  {"reference bf16", &gpu(Precision::bf16), DType::bf16}};
        if (boost::unit_test::framework::master_test_suite().argc > 1) {
            return list;
        }
        try {
            static std::unique_ptr<Backend> const cudnn = make_cuda_backend(
                {.precision = Precision::bf16, .attention = AttentionBackend::cudnn});
            list.push_back({cudnn->description(), cudnn.get(), DType::bf16});
        } catch (Error const& e) {
            BOOST_TEST_MESSAGE("cuDNN attention is not tested: " << e.what());
        }
        return list;
    }();
    return all;
}

struct Case {
    std::string name;
    HeadShape shape;
    std::int64_t queries, keys;
    Segments segments;
    float tilt = 0;  ///< every score is lower by about head_dim^0.5 tilt^2
};

/// The norm of a - b over that of b, whose elements count as 1/50 at least: sums that cancel to
/// zero are compared with their terms. NaN and infinity of b must be in a too; else NaN.
double difference(Values const& a, Values const& b) {
    double sum = 0;
    double norm = 0;
    std::size_t finite = 0;
    if (a.size() != b.size() || a.empty()) {
        return std::nan("");
    }
    for (std::size_t i = 0; i < b.size(); ++i) {
        if (std::isfinite(b[i])) {
            sum += std::pow(static_cast<double>(a[i]) - b[i], 2);
            norm += std::pow(static_cast<double>(b[i]), 2);
            ++finite;
        } else if (!(a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i])))) {
            return std::nan("");
        }
    }
    return sum == 0 ? 0 : std::sqrt(sum / (norm + 4e-4 * static_cast<double>(finite)));
}

/// f32: sums over D values, then over the rows of the other side and the heads of a group, of terms
/// rounded to 2^-24, c = 8. bf16: one rounding of results and of probabilities before products with
/// what is tilt away from zero, at a deviation of 1/sqrt(3): the tilt's share of a sum cancels.
double bound_of(Subject const& subject, Case const& c) {
    if (subject.dtype == DType::bf16) {
        return std::ldexp(1.0, -8) * std::sqrt(1 + 3 * std::pow(c.tilt, 2));
    }
    auto const length = static_cast<double>(
        c.shape.head_dim + std::max(c.queries, c.keys) * c.shape.heads / c.shape.kv_heads);
    return 8 * std::ldexp(1.0, -24) * std::sqrt(length);
}

void check(Subject const& subject, Case const& c, char const* what, Values const& got,
           Values const& want) {
    double const error = difference(got, want);
    BOOST_TEST(error <= bound_of(subject, c), subject.name << ", " << c.name << ": " << what
                                                           << " differs by " << error << ", bound "
                                                           << bound_of(subject, c));
}

/// How the tensors of a call lie in memory.
struct Layout {
    std::int64_t gap = 0;  ///< elements between rows
};

/// q, k and v of a case on one backend, k and v as columns of one matrix; outputs as NaN.
class Call {
  public:
    Call(Backend& backend, DType dtype, Case const& c, Layout layout = {})
        : backend_(backend),
          dtype_(dtype),
          case_(c),
          layout_(layout),
          q_(matrix(queries(), c.queries, q_cols())),
          kv_(matrix(keys_and_values(), c.keys, 2 * kv_cols())) {}

    std::int64_t q_cols() const { return case_.shape.heads * case_.shape.head_dim; }
    std::int64_t kv_cols() const { return case_.shape.kv_heads * case_.shape.head_dim; }

    struct Softmax {
        Values o, lse;
    };
    /// The lists one after the other, all but the first merged.
    Softmax forward(std::vector<Segments> const& lists, DType o_dtype) {
        DeviceMatrix const o(backend_, case_.queries, q_cols(), o_dtype, q_cols() + layout_.gap);
        DeviceMatrix const lse(backend_, case_.queries, case_.shape.heads, DType::f32,
                               case_.shape.heads + layout_.gap);
        Accumulate mode = Accumulate::overwrite;
        for (Segments const& segments : lists) {
            backend_.attention_forward(o, lse, q_, k(), v(), case_.shape, segments, mode);
            mode = Accumulate::merge;
        }
        BOOST_TEST(o.gaps_untouched());
        BOOST_TEST(lse.gaps_untouched());
        return {o.values(), lse.values()};
    }

    struct Gradients {
        Values dq, dk, dv;
    };
    Gradients backward(Segments const& segments, Softmax const& softmax, DType to,
                       Accumulate mode = Accumulate::overwrite) {
        DeviceMatrix const o = matrix(softmax.o, case_.queries, q_cols());
        DeviceMatrix const d_o = matrix(input(case_.queries, q_cols(), 3), case_.queries, q_cols());
        DeviceMatrix const lse(backend_, softmax.lse, case_.queries, case_.shape.heads, DType::f32,
                               case_.shape.heads + layout_.gap);
        DeviceMatrix const dq = gradient(case_.queries, q_cols(), to, mode);
        DeviceMatrix const dkv = gradient(case_.keys, 2 * kv_cols(), to, Accumulate::overwrite);
        Tensor const dk = dkv.tensor().columns(0, kv_cols());
        Tensor const dv = dkv.tensor().columns(kv_cols(), kv_cols());
        backend_.attention_backward(dq, dk, dv, q_, k(), v(), o, d_o, lse, case_.shape, segments,
                                    mode);
        BOOST_TEST(dq.gaps_untouched());
        BOOST_TEST(dkv.gaps_untouched());
        Gradients result{dq.values(), {}, {}};
        Values const both = dkv.values();
        for (std::size_t i = 0; i < both.size(); ++i) {
            bool const key = static_cast<std::int64_t>(i) % (2 * kv_cols()) < kv_cols();
            (key ? result.dk : result.dv).push_back(both[i]);
        }
        return result;
    }

  private:
    /// The same numbers on every backend: what bf16 holds, so that all of them start from equals.
    Values input(std::int64_t rows, std::int64_t cols, unsigned seed) const {
        return random_values(rows * cols, seed, DType::bf16);
    }
    Values queries() const {
        Values values = input(case_.queries, q_cols(), 1);
        for (float& value : values) {
            value += case_.tilt;
        }
        return rounded(std::move(values), DType::bf16);
    }
    Values keys_and_values() const {
        Values values = input(case_.keys, 2 * kv_cols(), 2);
        for (std::size_t i = 0; i < values.size(); ++i) {
            bool const key = static_cast<std::int64_t>(i) % (2 * kv_cols()) < kv_cols();
            values[i] -= key ? case_.tilt : 0.0F;
        }
        return rounded(std::move(values), DType::bf16);
    }
    DeviceMatrix matrix(Values const& values, std::int64_t rows, std::int64_t cols) const {
        return {backend_, values, rows, cols, dtype_, cols + layout_.gap};
    }
    DeviceMatrix gradient(std::int64_t rows, std::int64_t cols, DType to, Accumulate mode) const {
        if (mode == Accumulate::overwrite) {
            return {backend_, rows, cols, to, cols + layout_.gap};
        }
        return {backend_, random_values(rows * cols, 4), rows, cols, to, cols + layout_.gap};
    }
    Tensor k() const { return kv_.tensor().columns(0, kv_cols()); }
    Tensor v() const { return kv_.tensor().columns(kv_cols(), kv_cols()); }

    Backend& backend_;
    DType dtype_;
    Case const& case_;
    Layout layout_;
    DeviceMatrix q_, kv_;
};

/// What backward calls are given: the host's results, rounded to the element type of o.
Call::Softmax rounded_softmax(Call::Softmax softmax, DType dtype) {
    softmax.o = rounded(std::move(softmax.o), dtype);
    return softmax;
}

void check_gradients(Subject const& subject, Case const& c, Call::Gradients const& got,
                     Call::Gradients const& want) {
    check(subject, c, "dq", got.dq, want.dq);
    check(subject, c, "dk", got.dk, want.dk);
    check(subject, c, "dv", got.dv, want.dv);
}

/// Forward and backward of a case as one list, overwriting, against the host.
void check_overwrite(Subject const& subject, Case const& c, Layout layout = {}) {
    Call expected(host(), DType::f32, c);
    Call call(*subject.backend, subject.dtype, c, layout);
    Call::Softmax const want = expected.forward({c.segments}, DType::f32);
    for (DType const to : {subject.dtype, DType::f32}) {
        Call::Softmax const got = call.forward({c.segments}, to);
        check(subject, c, "o", got.o, want.o);
        check(subject, c, "lse", got.lse, want.lse);
    }
    Call::Softmax const given = rounded_softmax(want, subject.dtype);
    Call::Gradients const gradients = expected.backward(c.segments, given, DType::f32);
    for (DType const to : {subject.dtype, DType::f32}) {
        check_gradients(subject, c, call.backward(c.segments, given, to), gradients);
    }
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

BOOST_AUTO_TEST_CASE(forward_and_the_reference_backward_repeat_bit_for_bit) {
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
            if (!subject.name.starts_with("reference")) {
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
