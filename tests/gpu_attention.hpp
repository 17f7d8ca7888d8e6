// One attention call as a case, on the host and on a device: inputs, bounds, comparison.
#pragma once

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tests/gpu_fixture.hpp"

namespace cpstep {

using Segments = std::vector<Segment>;
using Values = std::vector<float>;

/// One attention backend of the device.
struct Subject {
    std::string name;
    Backend* backend;
    DType dtype;
};

struct Case {
    std::string name;
    HeadShape shape;
    std::int64_t queries, keys;
    Segments segments;
    float tilt = 0;  ///< every score is lower by about head_dim^0.5 tilt^2
};

/// The norm of a - b over that of b, whose elements count as 1/50 at least: sums that cancel to
/// zero are compared with their terms. NaN and infinity of b must be in a too; else NaN.
inline double difference(Values const& a, Values const& b) {
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
inline double bound_of(Subject const& subject, Case const& c) {
    if (subject.dtype == DType::bf16) {
        return std::ldexp(1.0, -8) * std::sqrt(1 + 3 * std::pow(c.tilt, 2));
    }
    auto const length = static_cast<double>(
        c.shape.head_dim + std::max(c.queries, c.keys) * c.shape.heads / c.shape.kv_heads);
    return 8 * std::ldexp(1.0, -24) * std::sqrt(length);
}

inline void check(Subject const& subject, Case const& c, char const* what, Values const& got,
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
inline Call::Softmax rounded_softmax(Call::Softmax softmax, DType dtype) {
    softmax.o = rounded(std::move(softmax.o), dtype);
    return softmax;
}

inline void check_gradients(Subject const& subject, Case const& c, Call::Gradients const& got,
                            Call::Gradients const& want) {
    check(subject, c, "dq", got.dq, want.dq);
    check(subject, c, "dk", got.dk, want.dk);
    check(subject, c, "dv", got.dv, want.dv);
}

/// Forward and backward of a case as one list, overwriting, against the host.
inline void check_overwrite(Subject const& subject, Case const& c, Layout layout = {}) {
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

}  // namespace cpstep
