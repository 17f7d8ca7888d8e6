// Norm, rope and SwiGLU of the device against those of the host.
#define BOOST_TEST_MODULE cuda_layers
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "tests/gpu_shapes.hpp"

using namespace cpstep;

// ---- norm ----

namespace {

/// A warp, several and many share a row; with gap 3 and odd sizes elements are read one by one.
std::vector<Shape> const norm_shapes = {{1, 8},        {9, 100, 3},   {203, 896},    {203, 896, 8},
                                        {50, 896, 3},  {33, 1536, 8}, {70, 3584, 0}, {5, 8192, 8},
                                        {4500, 64, 0}, {0, 64, 0}};

enum class Residual : std::uint8_t { none, apart, in_place };

void check_norm_forward(Precision p, DType dtype, Shape const& s, Residual residual) {
    Floats const from_values = random_values(s.rows * s.cols, 10, dtype);
    Floats const delta_values = random_values(s.rows * s.cols, 11, dtype, 0.3F);
    Pair const w(p, random_values(s.cols, 12, dtype), 1, s.cols, dtype);
    Pair const from(p, from_values, s.rows, s.cols, dtype, 2 * s.gap);
    Pair const delta(p, delta_values, s.rows, s.cols, dtype, s.gap);
    Pair const apart(p, s.rows, s.cols, dtype, s.gap);
    Pair const& x = residual == Residual::apart ? apart : from;
    Pair const y(p, s.rows, s.cols, dtype, s.gap);
    Pair const rstd(p, s.rows, 1, DType::f32, s.gap);
    double const eps = 0.05;  // large enough to show beside a mean of 1/3
    Backend& device = gpu(p);
    device.rmsnorm_forward(y[Side::device], rstd[Side::device], x[Side::device], from[Side::device],
                           residual == Residual::none ? Tensor{} : delta[Side::device],
                           w[Side::device], eps);
    // The norm is that of the rounded sum, so the host starts from it.
    Floats sum = from_values;
    if (residual != Residual::none) {
        std::transform(sum.begin(), sum.end(), delta_values.begin(), sum.begin(), std::plus<>());
    }
    Floats const rounded_sum = rounded(sum, dtype);
    BOOST_TEST((x.values(Side::device) == rounded_sum), s);
    DeviceMatrix const host_x(host(), rounded_sum, s.rows, s.cols, DType::f32);
    host().rmsnorm_forward(y[Side::host], rstd[Side::host], host_x, {}, {}, w[Side::host], eps);
    if (s.rows > 0) {
        double const fp32 = fp32_bound(8, static_cast<double>(s.cols));  // a sum of h squares
        BOOST_TEST(rstd.error() <= fp32, s << " error " << rstd.error());
        BOOST_TEST(y.error() <= bound_in(dtype, fp32), s << " error " << y.error());
    }
    BOOST_TEST((x.gaps_untouched() && y.gaps_untouched() && rstd.gaps_untouched()), s);
}

}  // namespace

BOOST_AUTO_TEST_CASE(rmsnorm_adds_the_residual_and_normalises_the_rounded_sum) {
    if (!gpu_present()) {
        return;
    }
    in_both_precisions([](Precision p, DType dtype) {
        for (Shape const& s : norm_shapes) {
            for (Residual const residual : {Residual::none, Residual::apart, Residual::in_place}) {
                check_norm_forward(p, dtype, s, residual);
            }
        }
        check_norm_forward(p, dtype, {40, 1, 0}, Residual::apart);
    });
}

BOOST_AUTO_TEST_CASE(rmsnorm_gradients_are_those_of_the_host_and_repeat) {
    if (!gpu_present()) {
        return;
    }
    in_both_precisions([](Precision p, DType dtype) {
        for (Shape const& s : norm_shapes) {
            std::int64_t const n = s.rows * s.cols;
            Pair const x(p, random_values(n, 13, dtype), s.rows, s.cols, dtype, s.gap);
            Pair const dy(p, random_values(n, 14, dtype), s.rows, s.cols, dtype, 2 * s.gap);
            Pair const w(p, random_values(s.cols, 15, dtype), 1, s.cols, dtype);
            Floats rstd_values = random_values(s.rows, 16);
            for (float& r : rstd_values) {
                r = 1.7F + 0.1F * r;  // near 1/rms of values uniform in [-1, 1)
            }
            Pair const rstd(p, rstd_values, s.rows, 1, DType::f32, s.gap);
            auto const gradients = [&] {
                Pair const dx(p, random_values(n, 17, dtype), s.rows, s.cols, dtype, s.gap);
                Pair const dw(p, random_values(s.cols, 18), 1, s.cols, DType::f32);
                on_both(p, [&](Backend& backend, Side side) {
                    backend.rmsnorm_backward(dx[side], dw[side], dy[side], x[side], w[side],
                                             rstd[side]);
                });
                // dx: a sum over a row; dw: a sum over the rows, fp32 whatever the precision.
                double const across = fp32_bound(8, static_cast<double>(s.cols));
                BOOST_TEST((n == 0 || dx.error() <= bound_in(dtype, across)),
                           s << " dx error " << dx.error());
                BOOST_TEST(dw.error() <= fp32_bound(8, static_cast<double>(s.rows + 1)),
                           s << " dw error " << dw.error());
                BOOST_TEST(dx.gaps_untouched(), s);
                Floats all = dx.values(Side::device);
                Floats const dw_values = dw.values(Side::device);
                all.insert(all.end(), dw_values.begin(), dw_values.end());
                return all;
            };
            BOOST_TEST((gradients() == gradients()), s);
        }
    });
}

// ---- rope ----

namespace {

struct RopeCase {
    std::int64_t rows, heads, head_dim;
    std::int64_t before, after;  ///< columns of the matrix that are not turned
};

/// 0, the last position of a long context and any between.
Ids some_positions(std::int64_t rows) {
    Ids positions;
    std::mt19937 engine(19);
    std::uniform_int_distribution<std::int32_t> any(0, 131071);
    for (std::int64_t s = 0; s < rows; ++s) {
        positions.push_back(s % 50 == 0 ? 0 : s % 50 == 1 ? 131071 : any(engine));
    }
    return positions;
}

void check_rope(Precision p, DType dtype, RopeCase const& c) {
    std::int64_t const turned = c.heads * c.head_dim;
    std::int64_t const width = c.before + turned + c.after;
    Floats const values = random_values(c.rows * width, 20, dtype);
    Pair const matrix(p, values, c.rows, width, dtype);
    Ids const positions = some_positions(c.rows);
    auto const turn = [&](Rotation direction) {
        on_both(p, [&](Backend& backend, Side side) {
            backend.rope(matrix[side].columns(c.before, turned), uploaded(backend, positions),
                         c.head_dim, 1e6, direction);
        });
    };
    // Sums of two products; an angle rounded to 2^-25 half turns errs by 1.6 * 2^-24.
    double const bound = bound_in(dtype, fp32_bound(8, 2));
    turn(Rotation::forward);
    BOOST_TEST(matrix.error() <= bound, c.head_dim << " error " << matrix.error());
    turn(Rotation::backward);
    // Twice rounded by now, and the host's start is not the rounded one.
    BOOST_TEST(matrix.error() <= 2 * bound, c.head_dim << " error " << matrix.error());
    BOOST_TEST(relative_error(matrix.values(Side::device), values) <= 2 * bound, c.head_dim);
    Floats const after = matrix.values(Side::device);
    for (std::int64_t i = 0; i < c.rows * width; ++i) {
        bool const outside = i % width < c.before || i % width >= c.before + turned;
        auto const at = static_cast<std::size_t>(i);
        BOOST_REQUIRE((!outside || after[at] == values[at]));
    }
}

}  // namespace

BOOST_AUTO_TEST_CASE(rope_turns_pairs_by_far_positions_and_nothing_else) {
    if (!gpu_present()) {
        return;
    }
    in_both_precisions([](Precision p, DType dtype) {
        // Queries; keys beside values; keys where no wide access is aligned; heads of other sizes.
        for (RopeCase const& c :
             {RopeCase{203, 14, 64, 0, 0}, RopeCase{203, 2, 64, 0, 128}, RopeCase{77, 2, 64, 3, 61},
              RopeCase{301, 3, 2, 0, 1}, RopeCase{99, 3, 6, 0, 6}, RopeCase{99, 3, 80, 8, 8},
              RopeCase{50, 2, 128, 0, 0}, RopeCase{9, 1, 256, 0, 256}, RopeCase{1, 1, 16, 0, 0}}) {
            check_rope(p, dtype, c);
        }
        Buffer const none(gpu(p), 0, 64, dtype);
        gpu(p).rope(none, uploaded(gpu(p), Ids{}), 64, 1e6, Rotation::forward);
    });
}

// ---- mlp ----

BOOST_AUTO_TEST_CASE(swiglu_and_its_gradient_are_those_of_the_host_also_in_place) {
    if (!gpu_present()) {
        return;
    }
    in_both_precisions([](Precision p, DType dtype) {
        for (Shape const& s : shapes) {
            Floats gate_up_values = random_values(2 * s.rows * s.cols, 21, dtype, 4.0F);
            // Where exp(-a) overflows, vanishes and is nearly lost beside one.
            std::vector<float> const far{-120.0F, 120.0F, -88.5F, 17.0F, 0.0F, -20.0F};
            std::copy_n(far.begin(), std::min(far.size(), gate_up_values.size()),
                        gate_up_values.begin());
            Pair const gate_up(p, rounded(gate_up_values, dtype), s.rows, 2 * s.cols, dtype, s.gap);
            Pair const dy(p, random_values(s.rows * s.cols, 22, dtype), s.rows, s.cols, dtype,
                          2 * s.gap);
            Pair const y(p, s.rows, s.cols, dtype, s.gap);
            Pair const apart(p, s.rows, 2 * s.cols, dtype, s.gap);
            on_both(p, [&](Backend& backend, Side side) {
                backend.swiglu_forward(y[side], gate_up[side]);
                backend.swiglu_backward(apart[side], dy[side], gate_up[side]);
                backend.swiglu_backward(gate_up[side], dy[side], gate_up[side]);
            });
            // Four roundings in a row on either side; 1 - s loses up to |a| of them.
            double const bound = bound_in(dtype, fp32_bound(8, 4));
            BOOST_TEST((s.rows == 0 || y.error() <= bound), s << " error " << y.error());
            BOOST_TEST((s.rows == 0 || apart.error() <= bound), s << " error " << apart.error());
            BOOST_TEST((apart.values(Side::device) == gate_up.values(Side::device)), s);
            BOOST_TEST((y.gaps_untouched() && gate_up.gaps_untouched()), s);
        }
    });
}
