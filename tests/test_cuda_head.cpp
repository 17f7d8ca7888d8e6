// Linear layers and the LM head of the device against those of the host.
#define BOOST_TEST_MODULE cuda_head
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "cuda/lm_head_chunks.hpp"
#include "tests/gpu_pair.hpp"

using namespace cpstep;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

struct LinearShape {
    std::int64_t rows, in, out, gap;
};

/// Arguments of a linear layer on both sides; gradients start at values that must not be lost.
struct Linear {
    Linear(Precision p, LinearShape s)
        : precision(p),
          dtype(dtype_of_precision(p)),
          x(p, random_values(s.rows * s.in, 1, dtype), s.rows, s.in, dtype, s.gap),
          w(p, random_values(s.out * s.in, 2, dtype), s.out, s.in, dtype),
          b(p, random_values(s.out, 3, dtype), 1, s.out, dtype),
          dy(p, random_values(s.rows * s.out, 4, dtype), s.rows, s.out, dtype, s.gap),
          y(p, s.rows, s.out, dtype, s.gap),
          dx(p, s.rows, s.in, dtype, s.gap),
          dw(p, random_values(s.out * s.in, 5), s.out, s.in, DType::f32),
          db(p, random_values(s.out, 6), 1, s.out, DType::f32) {}

    void forward(bool bias) {
        for (Side const side : sides) {
            backend_of(side, precision)
                .linear_forward(y[side], x[side], w[side], bias ? b[side] : Tensor{});
        }
    }
    void backward(bool input, bool bias, bool add_dx) {
        for (Side const side : sides) {
            backend_of(side, precision)
                .linear_backward(input ? dx[side] : Tensor{}, dw[side], bias ? db[side] : Tensor{},
                                 dy[side], x[side], w[side], add_dx);
        }
    }

    Precision precision;
    DType dtype;
    Pair x, w, b, dy, y, dx, dw, db;
};

/// Gaps of 8 elements keep rows aligned for the widest loads, of 3 they do not.
std::vector<LinearShape> const linear_shapes = {
    {1, 1, 1, 0}, {67, 131, 259, 3}, {67, 131, 259, 0}, {200, 96, 384, 8}, {300, 64, 36, 0}};

struct HeadCase {
    std::int64_t rows, hidden, vocabulary;
    std::int64_t logit_gap = 0;
    std::int64_t gap = 0;  ///< of all other matrices and columns
};

/// Arguments of the LM head on both sides. The host keeps no logits, the device where asked.
struct Head {
    Head(Precision p, HeadCase const& s, bool keep, float margin = 0)
        : precision(p),
          dtype(dtype_of_precision(p)),
          shape(s),
          x_values(random_values(s.rows * s.hidden, 1, dtype)),
          d_log_prob_values(random_values(s.rows, 3)),
          d_entropy_values(random_values(s.rows, 4)),
          w(p, weights(margin), s.vocabulary, s.hidden, dtype),
          dw(p, random_values(s.vocabulary * s.hidden, 5, DType::f32, 0.1F), s.vocabulary, s.hidden,
             DType::f32),
          x(p, x_values, s.rows, s.hidden, dtype, s.gap),
          dx(p, s.rows, s.hidden, dtype, s.gap),
          log_prob(p, s.rows, 1, DType::f32, s.gap),
          entropy(p, s.rows, 1, DType::f32, s.gap),
          lse(p, s.rows, 1, DType::f32, s.gap),
          logits(gpu(p), keep ? s.rows : 0, s.vocabulary, dtype, s.vocabulary + s.logit_gap),
          kept(keep) {}

    std::int32_t target(std::int64_t row) const {
        return static_cast<std::int32_t>((row * 7 + 1) % shape.vocabulary);
    }

    void forward() {
        for (Side const side : sides) {
            Backend& backend = backend_of(side, precision);
            backend.lm_head_forward(log_prob[side], entropy[side], lse[side], logits_of(side),
                                    x[side], w[side], uploaded(backend, targets()));
        }
    }
    void backward() {
        Pair const d_log_prob(precision, d_log_prob_values, shape.rows, 1, DType::f32, shape.gap);
        Pair const d_entropy(precision, d_entropy_values, shape.rows, 1, DType::f32, shape.gap);
        for (Side const side : sides) {
            Backend& backend = backend_of(side, precision);
            backend.lm_head_backward(dx[side], dw[side], d_log_prob[side], d_entropy[side],
                                     logits_of(side), x[side], w[side],
                                     uploaded(backend, targets()), lse[side], entropy[side]);
        }
    }

    Precision precision;
    DType dtype;
    HeadCase shape;
    std::vector<float> x_values, d_log_prob_values, d_entropy_values;
    Pair w, dw, x, dx, log_prob, entropy, lse;
    DeviceMatrix logits;
    bool kept;

  private:
    Tensor logits_of(Side side) const {
        return side == Side::device && kept ? logits.tensor() : Tensor{};
    }
    std::vector<std::int32_t> targets() const {
        std::vector<std::int32_t> values;
        for (std::int64_t r = 0; r < shape.rows; ++r) {
            values.push_back(target(r));
        }
        return values;
    }
    /// Small weights, and of each target x_r margin / |x_r|^2 more: its logit is `margin` higher.
    std::vector<float> weights(float margin) const {
        std::int64_t const h = shape.hidden;
        std::vector<float> values = random_values(shape.vocabulary * h, 2, DType::f32, 0.5F);
        for (std::int64_t r = 0; r < shape.rows && margin != 0; ++r) {
            float square = 0;
            for (std::int64_t c = 0; c < h; ++c) {
                float const value = x_values[static_cast<std::size_t>(r * h + c)];
                square += value * value;
            }
            for (std::int64_t c = 0; c < h; ++c) {
                values[static_cast<std::size_t>(target(r) * h + c)] +=
                    margin / square * x_values[static_cast<std::size_t>(r * h + c)];
            }
        }
        return rounded(std::move(values), dtype);
    }
};

double norm_of(std::vector<float> const& values) {
    double square = 0;
    for (float const value : values) {
        square += static_cast<double>(value) * value;
    }
    return std::sqrt(square);
}

/// log_prob = z_y - lse has the error of its terms, which may be larger than it is.
double cancellation(Head const& head) {
    double const terms = norm_of(head.lse.values(Side::host));
    double const difference = norm_of(head.log_prob.values(Side::host));
    return terms > difference ? terms / difference : 1.0;
}

void compare_head(Precision precision, HeadCase const& shape, bool keep, float margin = 0) {
    BOOST_TEST_CONTEXT("bf16 " << (precision == Precision::bf16) << ", rows " << shape.rows
                               << ", vocabulary " << shape.vocabulary << ", gaps "
                               << shape.logit_gap << " and " << shape.gap << ", kept " << keep
                               << ", margin " << margin) {
        Head head(precision, shape, keep, margin);
        head.forward();
        // Products of bf16 are exact in fp32: z is a sum of `hidden` terms of either type. Where p
        // is near 1, log p is a sum of exp(z_v - z_y) that an error of z changes relative to
        // itself, and z is as large as the margin.
        double const of_z =
            fp32_bound(8, static_cast<double>(shape.hidden)) * std::max(1.0, double{margin});
        BOOST_TEST(head.log_prob.error() <= of_z * cancellation(head));
        BOOST_TEST(head.entropy.error() <= of_z);
        BOOST_TEST(head.lse.error() <= of_z);
        head.backward();
        // dz inherits the error of z; dx sums it over the vocabulary, dw over the rows.
        auto const length = [&](std::int64_t terms) {
            return static_cast<double>(shape.hidden + terms);
        };
        BOOST_TEST(head.dx.error() <=
                   bound_in(head.dtype, fp32_bound(8, length(shape.vocabulary))));
        BOOST_TEST(head.dw.error() <= bound_in(head.dtype, fp32_bound(8, length(shape.rows))));
        BOOST_TEST(head.dx.gaps_untouched());
        BOOST_TEST(head.log_prob.gaps_untouched());
        BOOST_TEST(head.entropy.gaps_untouched());
        BOOST_TEST(head.lse.gaps_untouched());
        BOOST_TEST(head.logits.gaps_untouched());
    }
}

}  // namespace

BOOST_AUTO_TEST_CASE(linear_forward_equals_the_host) {
    if (!gpu_present()) return;
    for (Precision const precision : precisions) {
        for (LinearShape const& shape : linear_shapes) {
            for (bool const bias : {false, true}) {
                Linear layer(precision, shape);
                layer.forward(bias);
                double const length = static_cast<double>(shape.in + 1);
                BOOST_TEST(layer.y.error() <= bound_in(layer.dtype, fp32_bound(4, length)));
                BOOST_TEST(layer.y.gaps_untouched());
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(linear_backward_equals_the_host) {
    if (!gpu_present()) return;
    for (Precision const precision : precisions) {
        for (LinearShape const& shape : linear_shapes) {
            Linear layer(precision, shape);
            for (bool const add_dx : {false, true}) {
                layer.backward(true, true, add_dx);
                // bf16: rounded once a call, the second time beside what is there
                double const of_dx = fp32_bound(4, static_cast<double>(shape.out + 1));
                double const of_rows = fp32_bound(4, static_cast<double>(2 * shape.rows + 1));
                BOOST_TEST(layer.dx.error() <= bound_in(layer.dtype, of_dx));
                BOOST_TEST(layer.dw.error() <= of_rows);
                BOOST_TEST(layer.db.error() <= of_rows);
            }
            BOOST_TEST(layer.dx.gaps_untouched());
        }
    }
}

BOOST_AUTO_TEST_CASE(gradients_that_are_not_wanted_stay_away) {
    if (!gpu_present()) return;
    for (Precision const precision : precisions) {
        Linear layer(precision, {67, 24, 40, 0});
        auto const db = layer.db.values(Side::device);
        layer.backward(false, false, false);
        BOOST_TEST(layer.dw.error() <= fp32_bound(4, 68));
        BOOST_TEST(layer.db.values(Side::device) == db);
        for (float const value : layer.dx.values(Side::device)) {
            BOOST_TEST(std::isnan(value));
        }
    }
}

BOOST_AUTO_TEST_CASE(bias_gradients_of_many_rows_keep_float_accuracy) {
    if (!gpu_present()) return;
    for (Precision const precision : precisions) {
        // 132 columns take vector loads, 130 with a gap of 3 do not
        for (LinearShape const& shape :
             {LinearShape{70001, 1, 132, 0}, LinearShape{70001, 1, 130, 3}}) {
            Linear layer(precision, shape);
            layer.backward(false, true, false);
            // sums in a tree of at most 32 + 8 + 32 + 8 terms, on values that partly cancel
            BOOST_TEST(layer.db.error() <= fp32_bound(8, 80));
        }
    }
}

BOOST_AUTO_TEST_CASE(linear_of_zero_rows_leaves_the_gradients) {
    if (!gpu_present()) return;
    for (Precision const precision : precisions) {
        Linear layer(precision, {0, 24, 40, 0});
        auto const dw = layer.dw.values(Side::device);
        auto const db = layer.db.values(Side::device);
        layer.forward(true);
        layer.backward(true, true, false);
        BOOST_TEST(layer.dw.values(Side::device) == dw);
        BOOST_TEST(layer.db.values(Side::device) == db);
    }
}

BOOST_AUTO_TEST_CASE(equal_calls_of_a_linear_layer_give_equal_bits) {
    if (!gpu_present()) return;
    for (Precision const precision : precisions) {
        Linear first(precision, {1500, 96, 384, 0});
        Linear second(precision, {1500, 96, 384, 0});
        for (Linear* const layer : {&first, &second}) {
            layer->forward(true);
            layer->backward(true, true, false);
        }
        BOOST_TEST(first.y.values(Side::device) == second.y.values(Side::device));
        BOOST_TEST(first.dx.values(Side::device) == second.dx.values(Side::device));
        BOOST_TEST(first.dw.values(Side::device) == second.dw.values(Side::device));
        BOOST_TEST(first.db.values(Side::device) == second.db.values(Side::device));
    }
}

BOOST_AUTO_TEST_CASE(chunks_of_the_head_fit_their_bytes_and_cover_whole_tiles) {
    HeadChunks const real = head_chunks(16384, 151936, DType::bf16);
    BOOST_TEST(real.logit_rows == 512);
    BOOST_TEST(real.gradient_rows == 4096);
    BOOST_TEST(real.logit_bytes == std::size_t{512} * 151936 * 4);
    BOOST_TEST(real.gradient_bytes == std::size_t{4096} * 151936 * 2);
    BOOST_TEST(head_chunks(16384, 151936, DType::f32).gradient_rows == 2048);
    BOOST_TEST(head_chunks(100, 151936, DType::bf16).logit_rows == 100);
    BOOST_TEST(head_chunks(100, 151936, DType::bf16).gradient_rows == 100);
    BOOST_TEST(head_chunks(0, 151936, DType::bf16).logit_bytes == 0U);
    BOOST_TEST(head_chunks(5, 61, DType::bf16).stride == 64);
    BOOST_TEST(head_chunks(9, std::int64_t{1} << 28, DType::f32).logit_rows == 1);
    for (std::int64_t vocabulary = 1; vocabulary < (std::int64_t{1} << 30); vocabulary *= 3) {
        for (DType const dtype : {DType::f32, DType::bf16}) {
            HeadChunks const c = head_chunks(std::int64_t{1} << 20, vocabulary, dtype);
            BOOST_TEST(c.stride % 8 == 0);
            BOOST_TEST(c.stride - vocabulary < 8);
            BOOST_TEST(c.logit_rows >= 1);
            BOOST_TEST((c.logit_rows == 1 || c.logit_bytes <= std::size_t{320} << 20));
            BOOST_TEST(
                (c.gradient_rows == std::int64_t{1} << 20 || c.gradient_rows % c.logit_rows == 0));
        }
    }
}

BOOST_AUTO_TEST_CASE(head_equals_the_host) {
    if (!gpu_present()) return;
    for (Precision const precision : precisions) {
        for (bool const keep : {false, true}) {
            compare_head(precision, {1, 8, 1}, keep);
            compare_head(precision, {5, 16, 61, 0, 3}, keep);
            compare_head(precision, {37, 64, 5003, 5, 8}, keep);
            compare_head(precision, {37, 64, 5000, 8}, keep);
            compare_head(precision, {3, 16, 4099, 4}, keep);
            compare_head(precision, {9, 32, 151936}, keep);
        }
    }
}

BOOST_AUTO_TEST_CASE(head_keeps_its_accuracy_where_a_probability_is_near_one) {
    if (!gpu_present()) return;
    // log(5003) + 6: 1 - p is about 0.003 at every target
    for (Precision const precision : precisions) {
        for (bool const keep : {false, true}) {
            compare_head(precision, {37, 64, 5003}, keep, 14.5F);
        }
    }
}

BOOST_AUTO_TEST_CASE(head_of_many_chunks_equals_the_host) {
    if (!gpu_present()) return;
    static_assert(head_chunks(1300, 65539, DType::f32).logit_rows < 1300);
    for (Precision const precision : precisions) {
        for (bool const keep : {false, true}) {
            compare_head(precision, {1300, 8, 65539}, keep);
        }
    }
    static_assert(head_chunks(4700, 65539, DType::f32).gradient_rows < 4700);
    compare_head(Precision::fp32, {4700, 8, 65539}, false);
}

BOOST_AUTO_TEST_CASE(all_equal_logits_give_the_log_of_the_vocabulary) {
    if (!gpu_present()) return;
    for (Precision const precision : precisions) {
        Backend& backend = gpu(precision);
        DType const dtype = dtype_of_precision(precision);
        for (std::int64_t const vocabulary : {1, 2, 4095, 151936}) {
            DeviceMatrix const x(backend, {1, -1, 0.5F, 2, 3, 1}, 3, 2, dtype);
            DeviceMatrix const w(backend,
                                 std::vector<float>(static_cast<std::size_t>(2 * vocabulary), 7),
                                 vocabulary, 2, dtype);
            DeviceMatrix const log_prob(backend, 3, 1, DType::f32);
            DeviceMatrix const entropy(backend, 3, 1, DType::f32);
            DeviceMatrix const lse(backend, 3, 1, DType::f32);
            std::vector<std::int32_t> const targets(3, static_cast<std::int32_t>(vocabulary - 1));
            backend.lm_head_forward(log_prob, entropy, lse, {}, x, w, uploaded(backend, targets));
            auto const want = static_cast<float>(std::log(static_cast<double>(vocabulary)));
            // every term is exactly 1 and counts stay below 2^24: one rounding of the result
            for (std::size_t r = 0; r < 3; ++r) {
                BOOST_TEST(std::abs(log_prob.values()[r] + want) <= want * 0x1p-23F);
                BOOST_TEST(std::abs(entropy.values()[r] - want) <= want * 0x1p-23F);
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(head_rows_without_gradient_contribute_nothing_whatever_they_hold) {
    if (!gpu_present()) return;
    for (Precision const precision : precisions) {
        for (bool const keep : {false, true}) {
            Head head(precision, {3, 8, 61}, keep);
            head.d_log_prob_values[1] = head.d_entropy_values[1] = 0;
            head.forward();
            for (Side const side : sides) {
                Backend& backend = backend_of(side, precision);
                backend.upload(head.lse[side].row_range(1, 1), &not_a_number);
                if (side == Side::device && keep) {
                    Tensor const row = head.logits.tensor().row_range(1, 1);
                    backend.copy(row, DeviceMatrix(backend, 1, 61, head.dtype));
                }
            }
            head.backward();
            std::vector<float> const dx = head.dx.values(Side::device);
            for (std::size_t c = 8; c < 16; ++c) {
                BOOST_TEST(dx[c] == 0.0F);
            }
            BOOST_TEST(head.dx.error() <= bound_in(head.dtype, fp32_bound(8, 8 + 61)));
            BOOST_TEST(head.dw.error() <= bound_in(head.dtype, fp32_bound(8, 8 + 3)));
        }
    }
}

BOOST_AUTO_TEST_CASE(head_of_zero_rows_leaves_the_weight_gradient) {
    if (!gpu_present()) return;
    for (Precision const precision : precisions) {
        Head head(precision, {0, 8, 61}, false);
        auto const dw = head.dw.values(Side::device);
        head.forward();
        head.backward();
        BOOST_TEST(head.dw.values(Side::device) == dw);
    }
}

BOOST_AUTO_TEST_CASE(equal_calls_of_the_head_give_equal_bits) {
    if (!gpu_present()) return;
    for (Precision const precision : precisions) {
        for (bool const keep : {false, true}) {
            Head first(precision, {200, 64, 5003}, keep);
            Head second(precision, {200, 64, 5003}, keep);
            for (Head* const head : {&first, &second}) {
                head->forward();
                head->backward();
            }
            BOOST_TEST(first.log_prob.values(Side::device) == second.log_prob.values(Side::device));
            BOOST_TEST(first.entropy.values(Side::device) == second.entropy.values(Side::device));
            BOOST_TEST(first.dx.values(Side::device) == second.dx.values(Side::device));
            BOOST_TEST(first.dw.values(Side::device) == second.dw.values(Side::device));
        }
    }
}
