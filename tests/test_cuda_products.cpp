// Products on the device against sums in double, over views whose surroundings are NaN.
#define BOOST_TEST_MODULE cuda_products
#include <array>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/cuda_backend.hpp"
#include "cuda/products.hpp"
#include "tests/errors.hpp"
#include "tests/gpu_fixture.hpp"

using namespace cpstep;
using namespace cpstep::test;

namespace {

struct Size {
    std::int64_t m, n, k;
};

/// Elements before the first column, and beyond the last: 1 and 3 leave nothing aligned.
struct Place {
    std::int64_t before = 0;
    std::int64_t after = 0;
};

/// A matrix inside a larger one that is NaN elsewhere.
class Placed {
  public:
    Placed(std::int64_t rows, std::int64_t cols, DType dtype, Place place)
        : whole_(gpu(Precision::fp32), rows, place.before + cols + place.after, dtype),
          place_(place),
          cols_(cols) {}
    Placed(std::vector<float> const& values, std::int64_t rows, std::int64_t cols, DType dtype,
           Place place)
        : Placed(rows, cols, dtype, place) {
        DeviceMatrix const packed(gpu(Precision::fp32), values, rows, cols, dtype);
        gpu(Precision::fp32).copy(*this, packed);
    }
    operator Tensor() const { return whole_.tensor().columns(place_.before, cols_); }
    /// The values; empty if anything around them was written.
    std::vector<float> values() const {
        std::vector<float> const all = whole_.values();
        std::int64_t const width = place_.before + cols_ + place_.after;
        std::vector<float> inside;
        for (std::size_t i = 0; i < all.size(); ++i) {
            std::int64_t const c = static_cast<std::int64_t>(i) % width - place_.before;
            if (c >= 0 && c < cols_) {
                inside.push_back(all[i]);
            } else if (!std::isnan(all[i])) {
                return {};
            }
        }
        return inside;
    }

  private:
    DeviceMatrix whole_;
    Place place_;
    std::int64_t cols_;
};

struct Fixture {
    Buffer workspace{gpu(Precision::fp32), static_cast<std::int64_t>(products_workspace_bytes) / 4,
                     1, DType::f32};
    std::unique_ptr<MatrixProducts> products =
        make_matrix_products(gpu(Precision::fp32).queues()->compute(), workspace.tensor().data);
};

struct Case {
    Size size;
    DType in, out;
    bool transpose_a, transpose_b, add, bias;
    Place place;
};

std::string text(Case const& c) {
    auto const name = [](DType dtype) { return dtype == DType::bf16 ? "bf16" : "f32"; };
    return fmt::format("{} x {} x {} {}->{}{}{}{}{} at {}", c.size.m, c.size.n, c.size.k,
                       name(c.in), name(c.out), c.transpose_a ? " a^T" : "",
                       c.transpose_b ? " b^T" : "", c.add ? " add" : "", c.bias ? " bias" : "",
                       c.place.before);
}

/// The error of one product, relative to the result.
double error_of_product(MatrixProducts& products, Case const& c) {
    auto const [m, n, k] = c.size;
    auto const a = random_values(m * k, 1, c.in);
    auto const b = random_values(k * n, 2, c.in);
    auto const before = random_values(m * n, 3, c.out);
    auto const bias = random_values(n, 4, c.out);
    std::vector<float> want(before.size());
    for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t j = 0; j < n; ++j) {
            auto const at = static_cast<std::size_t>(i * n + j);
            double sum = c.add ? before[at] : 0.0;
            sum += c.bias ? bias[static_cast<std::size_t>(j)] : 0.0;
            for (std::int64_t l = 0; l < k; ++l) {
                auto const ia = static_cast<std::size_t>(c.transpose_a ? l * m + i : i * k + l);
                auto const ib = static_cast<std::size_t>(c.transpose_b ? j * k + l : l * n + j);
                sum += static_cast<double>(a[ia]) * b[ib];
            }
            want[at] = static_cast<float>(sum);
        }
    }
    Placed const da =
        c.transpose_a ? Placed(a, k, m, c.in, c.place) : Placed(a, m, k, c.in, c.place);
    Placed const db =
        c.transpose_b ? Placed(b, n, k, c.in, c.place) : Placed(b, k, n, c.in, c.place);
    Placed const bias_row(bias, 1, n, c.out, c.place);
    Placed const result =
        c.add ? Placed(before, m, n, c.out, c.place) : Placed(m, n, c.out, c.place);
    products.multiply(result, da, c.transpose_a, db, c.transpose_b, c.add,
                      c.bias ? static_cast<Tensor>(bias_row) : Tensor{});
    return relative_error(result.values(), want);
}

/// fp32 sums of k terms, and one rounding to bf16 where the result is bf16.
double bound(Case const& c) {
    double const sums = 8 * std::ldexp(std::sqrt(static_cast<double>(c.size.k) + 2), -24);
    return c.out == DType::bf16 ? std::ldexp(1.0, -8) : sums;
}

constexpr std::array sizes{Size{1, 1, 1},    Size{5, 7, 3},      Size{17, 33, 9},
                           Size{64, 48, 40}, Size{33, 1, 65},    Size{1, 129, 70},
                           Size{3, 8, 512},  Size{130, 72, 264}, Size{200, 136, 1000}};
constexpr std::array places{Place{0, 0}, Place{1, 3}, Place{8, 8}};
constexpr std::array<std::array<DType, 2>, 3> types{
    {{DType::f32, DType::f32}, {DType::bf16, DType::bf16}, {DType::bf16, DType::f32}}};

}  // namespace

BOOST_AUTO_TEST_CASE(every_form_of_a_product_equals_the_sum_in_double) {
    if (!gpu_present()) {
        return;
    }
    Fixture fixture;
    for (Size const& size : sizes) {
        for (auto const& [in, out] : types) {
            for (Place const& place : places) {
                for (unsigned form = 0; form < 16; ++form) {
                    Case const c{size,
                                 in,
                                 out,
                                 (form & 1U) != 0,
                                 (form & 2U) != 0,
                                 (form & 4U) != 0,
                                 (form & 8U) != 0,
                                 place};
                    double const error = error_of_product(*fixture.products, c);
                    BOOST_TEST(error <= bound(c), text(c) << ": " << error << " > " << bound(c));
                }
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(a_product_over_nothing_is_the_bias_or_zero_or_what_was_there) {
    if (!gpu_present()) {
        return;
    }
    Fixture fixture;
    Backend& backend = gpu(Precision::fp32);
    for (DType const dtype : {DType::f32, DType::bf16}) {
        auto const there = random_values(15, 5, dtype);
        auto const bias = random_values(5, 6, dtype);
        DeviceMatrix const wide(backend, 8, 8, dtype);
        Tensor const a = wide.tensor().row_range(0, 3).columns(0, 0);
        Tensor const b = wide.tensor().row_range(0, 0).columns(0, 5);
        DeviceMatrix const bias_row(backend, bias, 1, 5, dtype);
        for (bool const add : {false, true}) {
            for (bool const with_bias : {false, true}) {
                DeviceMatrix const c(backend, there, 3, 5, dtype);
                fixture.products->multiply(c, a, false, b, false, add,
                                           with_bias ? bias_row.tensor() : Tensor{});
                std::vector<float> want(15);
                for (std::size_t i = 0; i < want.size(); ++i) {
                    want[i] = (add ? there[i] : 0.0F) + (with_bias ? bias[i % 5] : 0.0F);
                }
                BOOST_TEST((c.values() == rounded(want, dtype)));
            }
        }
        // No rows or no columns: nothing is written, nothing is read.
        Tensor const none = wide.tensor().row_range(0, 0).columns(0, 5);
        fixture.products->multiply(none, wide.tensor().row_range(0, 0), false,
                                   wide.tensor().columns(0, 5), false, false, {});
        fixture.products->multiply(wide.tensor().columns(0, 0), wide.tensor(), true,
                                   wide.tensor().columns(0, 0), false, true, {});
        BOOST_TEST(std::isnan(wide.values().front()));
    }
}

BOOST_AUTO_TEST_CASE(the_same_product_gives_the_same_bits) {
    if (!gpu_present()) {
        return;
    }
    Fixture fixture;
    Backend& backend = gpu(Precision::fp32);
    for (auto const& [in, out] : types) {
        std::int64_t const m = 128, n = 96, k = 16384;  // few tiles, a long sum: split over blocks
        DeviceMatrix const a(backend, random_values(k * m, 7, in), k, m, in);
        DeviceMatrix const b(backend, random_values(k * n, 8, in), k, n, in);
        DeviceMatrix const first(backend, m, n, out);
        DeviceMatrix const again(backend, m, n, out);
        fixture.products->multiply(first, a, true, b, false, false, {});
        auto const want = first.values();
        for (int turn = 0; turn < 5; ++turn) {
            fixture.products->multiply(again, a, true, b, false, false, {});
            BOOST_TEST((again.values() == want));
        }
    }
}

BOOST_AUTO_TEST_CASE(shapes_and_types_that_do_not_fit_are_refused) {
    if (!gpu_present()) {
        return;
    }
    Fixture fixture;
    Backend& backend = gpu(Precision::fp32);
    DeviceMatrix const f(backend, 4, 4, DType::f32);
    DeviceMatrix const h(backend, 4, 4, DType::bf16);
    Tensor const narrow = f.tensor().columns(0, 3);
    auto const refused = [&](Tensor c, Tensor a, Tensor b, Tensor bias) {
        Error const error =
            error_of([&] { fixture.products->multiply(c, a, false, b, false, false, bias); });
        return error.code() == ExitCode::internal && contains(error.what(), "product: ");
    };
    BOOST_TEST(refused(narrow, f, f, {}));
    BOOST_TEST(refused(f, narrow, f, {}));
    BOOST_TEST(refused(f, f, f, f));
    BOOST_TEST(refused(f, f, h, {}));
    BOOST_TEST(refused(h, f, f, {}));
    BOOST_TEST(refused(f, h, h, h.tensor().row_range(0, 1)));
}
