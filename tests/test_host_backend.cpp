#define BOOST_TEST_MODULE host_backend
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "cuda/backend.hpp"
#include "tests/close.hpp"
#include "tests/views.hpp"

using namespace cpstep;
using namespace cpstep::test;

namespace {

constexpr std::int64_t rows = 4, width = 6;

struct Host {
    std::unique_ptr<Backend> owner = make_host_backend(2);
    Backend& backend = *owner;

    template <class T>
    Buffer buffer(std::vector<T> const& values, std::int64_t r, std::int64_t c) {
        BOOST_REQUIRE(values.size() == static_cast<std::size_t>(r * c));
        Buffer b(backend, r, c, dtype_of<T>::value);
        backend.upload(b, values.data());
        return b;
    }

    template <class T>
    std::vector<T> values(Tensor t) {
        std::vector<T> out(static_cast<std::size_t>(t.elements()));
        backend.download(out.data(), t);
        return out;
    }
};

std::vector<float> count_up(std::size_t n) {
    std::vector<float> v(n);
    std::iota(v.begin(), v.end(), 0.0F);
    return v;
}

}  // namespace

BOOST_FIXTURE_TEST_CASE(description_names_the_processor_and_its_threads, Host) {
    BOOST_TEST(backend.description().find("host CPU, 2 threads, ") == 0U);
    BOOST_TEST(make_host_backend(1)->description().find("host CPU, 1 thread, ") == 0U);
    BOOST_CHECK_THROW(make_host_backend(0), Error);
}

BOOST_FIXTURE_TEST_CASE(memory_is_aligned_and_an_empty_buffer_is_not_absent, Host) {
    for (std::int64_t n : {0, 1, 17, 100000}) {
        Buffer const b(backend, n, 3, DType::f32);
        BOOST_TEST(!b.tensor().absent());
        BOOST_TEST(reinterpret_cast<std::uintptr_t>(b.tensor().data) % 64 == 0U);
        BOOST_TEST(b.tensor().rows == n);
        BOOST_TEST(b.tensor().stride == 3);
    }
    BOOST_TEST(Buffer().tensor().absent());
}

BOOST_FIXTURE_TEST_CASE(the_peak_is_the_most_that_was_taken_at_once, Host) {
    BOOST_TEST(backend.peak_bytes() == 0);
    {
        Buffer const first(backend, 3, 5, DType::f32);
        Buffer const second(backend, 1, 7, DType::i32);
        BOOST_TEST(backend.peak_bytes() == 4 * (15 + 7));
    }
    Buffer const third(backend, 1, 20, DType::f32);
    BOOST_TEST(backend.peak_bytes() == 4 * (15 + 7));
    Buffer const fourth(backend, 1, 3, DType::f32);
    BOOST_TEST(backend.peak_bytes() == 4 * 23);
}

BOOST_FIXTURE_TEST_CASE(too_much_memory_is_an_error_that_names_the_bytes, Host) {
    // The first is beyond any object, the second beyond this machine; the address sanitizer aborts
    // on the second before the allocator can say no.
    std::vector<std::size_t> sizes{std::size_t{1} << 63};
#ifndef __SANITIZE_ADDRESS__
    sizes.push_back(std::size_t{1} << 62);
#endif
    for (std::size_t const bytes : sizes) {
        BOOST_CHECK_EXCEPTION(backend.allocate(bytes, "a block"), Error, [&](Error const& e) {
            return e.code() == ExitCode::input_data &&
                   std::string(e.what()).find(std::to_string(bytes) + " bytes") !=
                       std::string::npos;
        });
    }
    std::int64_t const most = std::numeric_limits<std::int64_t>::max();
    BOOST_CHECK_THROW(Buffer(backend, most, 2, DType::f32), Error);
    BOOST_CHECK_THROW(Buffer(backend, -1, 2, DType::f32), Error);
}

BOOST_FIXTURE_TEST_CASE(a_moved_buffer_has_one_owner, Host) {
    Buffer a = buffer(std::vector<float>{1, 2}, 2, 1);
    Buffer b(std::move(a));
    BOOST_TEST(a.tensor().absent());
    BOOST_TEST(values<float>(b) == (std::vector<float>{1, 2}));
    Buffer c = buffer(std::vector<float>{3}, 1, 1);
    c = std::move(b);
    BOOST_TEST(values<float>(c) == (std::vector<float>{1, 2}));
    Buffer& same = c;
    c = std::move(same);
    BOOST_TEST(values<float>(c) == (std::vector<float>{1, 2}));
}

#ifndef NDEBUG
BOOST_FIXTURE_TEST_CASE(debug_memory_starts_as_nan, Host) {
    Buffer const b(backend, 3, 5, DType::f32);
    for (float const value : values<float>(b)) {
        BOOST_TEST(std::isnan(value));
    }
}
#endif

BOOST_FIXTURE_TEST_CASE(upload_and_download_round_trip_through_strided_views, Host) {
    Buffer const whole = buffer(std::vector<float>(24, -1.0F), rows, width);
    Tensor const part = whole.tensor().columns(1, 3).row_range(1, 2);
    std::vector<float> const values_in{1, 2, 3, 4, 5, 6};
    backend.upload(part, values_in.data());
    BOOST_TEST(values<float>(part) == values_in);
    std::vector<float> want(24, -1.0F);
    for (std::size_t i = 0; i < 6; ++i) {
        want[(1 + i / 3) * width + 1 + i % 3] = values_in[i];
    }
    BOOST_TEST(values<float>(whole) == want);
    backend.zero(part);
    BOOST_TEST(values<float>(whole) == std::vector<float>({-1, -1, -1, -1, -1, -1,  //
                                                           -1, 0,  0,  0,  -1, -1,  //
                                                           -1, 0,  0,  0,  -1, -1,  //
                                                           -1, -1, -1, -1, -1, -1}));
}

BOOST_FIXTURE_TEST_CASE(copy_and_add_between_different_strides, Host) {
    Buffer const from = buffer(count_up(24), rows, width);
    Buffer const to = buffer(std::vector<float>(8, 100.0F), rows, 2);
    backend.copy(to, from.tensor().columns(3, 2));
    std::vector<float> const copied{3, 4, 9, 10, 15, 16, 21, 22};
    BOOST_TEST(values<float>(to) == copied);
    backend.add(to, from.tensor().columns(0, 2));
    BOOST_TEST(values<float>(to) == (std::vector<float>{3, 5, 15, 17, 27, 29, 39, 41}));
    backend.add(from, from);
    BOOST_TEST(values<float>(from)[23] == 46.0F);
}

BOOST_FIXTURE_TEST_CASE(add_over_a_large_arena_is_exact, Host) {
    std::int64_t const n = 100001;
    Buffer const a = buffer(count_up(100001), n, 1);
    Buffer const b = buffer(count_up(100001), n, 1);
    backend.add(a, b);
    auto want = count_up(100001);
    for (float& value : want) {
        value *= 2.0F;
    }
    BOOST_TEST((values<float>(a) == want));
}

BOOST_FIXTURE_TEST_CASE(shapes_and_types_that_differ_are_refused, Host) {
    Buffer const a = buffer(std::vector<float>(6), 2, 3);
    Buffer const b = buffer(std::vector<float>(6), 3, 2);
    Buffer const i = buffer(std::vector<std::int32_t>(6), 2, 3);
    BOOST_CHECK_THROW(backend.copy(a, b), Error);
    BOOST_CHECK_THROW(backend.copy(a, i), Error);
    BOOST_CHECK_THROW(backend.add(a, b), Error);
    BOOST_CHECK_THROW(backend.add(a, i), Error);
    BOOST_CHECK_THROW(backend.squared_norm(i), Error);
    BOOST_CHECK_THROW(backend.linear_forward(a, a, i, Tensor{}), Error);
    BOOST_CHECK_THROW(backend.rope(a, a.tensor().columns(0, 1), 1, 1e4, Rotation::forward), Error);
}

BOOST_FIXTURE_TEST_CASE(zero_rows_pass_through_every_memory_call, Host) {
    Buffer const none(backend, 0, width, DType::f32);
    Buffer const whole = buffer(count_up(24), rows, width);
    backend.upload(none, nullptr);
    backend.download(nullptr, none);
    backend.copy(none, whole.tensor().row_range(rows, 0));
    backend.add(none, none);
    backend.zero(none);
    backend.zero(Tensor{});
    BOOST_TEST(backend.squared_norm(none) == 0.0);
    BOOST_TEST(values<float>(whole) == count_up(24));
}

BOOST_FIXTURE_TEST_CASE(norm_and_linear_equal_the_typed_operations, Host) {
    auto x = random_values<float>(rows * width, 1);
    auto w = random_values<float>(width, 2);
    auto matrix = random_values<float>(3 * width, 3);
    auto bias = random_values<float>(3, 4);
    std::vector<float> y(x.size());
    std::vector<float> rstd(rows);
    std::vector<float> z(rows * 3);
    rmsnorm_forward(view(y, rows, width), view(rstd, rows, 1), view(x, rows, width),
                    Matrix<float>{}, view(w, 1, width), 1e-6F);
    linear_forward(view(z, rows, 3), view(y, rows, width), view(matrix, 3, width),
                   view(bias, 1, 3));

    Buffer const bx = buffer(x, rows, width);
    Buffer const by(backend, rows, width, DType::f32);
    Buffer const br(backend, rows, 1, DType::f32);
    Buffer const bz(backend, rows, 3, DType::f32);
    backend.rmsnorm_forward(by, br, bx, Tensor{}, Tensor{}, buffer(w, 1, width), 1e-6);
    backend.linear_forward(bz, by, buffer(matrix, 3, width), buffer(bias, 1, 3));
    BOOST_TEST(values<float>(by) == y);
    BOOST_TEST(values<float>(br) == rstd);
    BOOST_TEST(values<float>(bz) == z);
}

BOOST_FIXTURE_TEST_CASE(rope_and_swiglu_equal_the_typed_operations, Host) {
    auto x = random_values<float>(rows * 8, 5);
    std::vector<std::int32_t> positions{3, 1, 4, 1};
    Buffer const bx = buffer(x, rows, 8);
    Buffer const by(backend, rows, 4, DType::f32);
    backend.rope(bx, buffer(positions, rows, 1), 4, 1e4, Rotation::forward);
    backend.swiglu_forward(by, bx);
    std::vector<float> y(rows * 4);
    rope(view(x, rows, 8), view(positions, rows, 1), 4, 1e4, Rotation::forward);
    swiglu_forward(view(y, rows, 4), view(x, rows, 8));
    BOOST_TEST(values<float>(bx) == x);
    BOOST_TEST(values<float>(by) == y);
}

BOOST_FIXTURE_TEST_CASE(adamw_and_norm_equal_the_typed_operations, Host) {
    std::int64_t const n = 50;
    auto w = random_values<float>(50, 6);
    auto g = random_values<float>(50, 7);
    std::vector<float> m(50), v(50);
    std::vector<ParameterRange> const ranges{{0, 50, true}};
    AdamWOptions options{.lr = 1e-2, .clip_grad = 0.5};
    Buffer const bw = buffer(w, n, 1);
    Buffer const bg = buffer(g, n, 1);
    Buffer const norm(backend, 1, 1, DType::f32);
    backend.norm(norm, bg);
    BOOST_TEST(values<float>(norm).front() ==
               static_cast<float>(std::sqrt(squared_norm(view(g, n, 1)))));
    backend.adamw(bw, buffer(m, n, 1), buffer(v, n, 1), bg, norm, Tensor{}, ranges, options);
    options.gradient_scale = 0.5 / (values<float>(norm).front() + 1e-6);
    BOOST_TEST(options.gradient_scale < 1.0);
    adamw(view(w, n, 1), view(m, n, 1), view(v, n, 1), view(g, n, 1), ranges, options);
    BOOST_TEST(values<float>(bw) == w);
    BOOST_TEST(backend.squared_norm(bg) == squared_norm(view(g, n, 1)));
}

BOOST_FIXTURE_TEST_CASE(attention_over_uniform_keys_gives_the_mean_of_the_values, Host) {
    Buffer const q = buffer(std::vector<float>{1, 2, 3, 4}, 2, 2);
    Buffer const k = buffer(std::vector<float>{1, 1, 1, 1}, 2, 2);
    Buffer const v = buffer(std::vector<float>{1, 2, 3, 6}, 2, 2);
    Buffer const o(backend, 2, 2, DType::f32);
    Buffer const lse(backend, 2, 1, DType::f32);
    std::vector<Segment> const segments{{0, 2, 0, 2, 0}};
    backend.attention_forward(o, lse, q, k, v, {1, 1, 2}, segments, Accumulate::overwrite);
    std::vector<double> const want{1, 2, 2, 4};
    BOOST_TEST(all_close(values<float>(o), want, rounding_bound<float>(4, 2), 0.0));
}

BOOST_FIXTURE_TEST_CASE(policy_rows_reach_the_typed_loss_in_their_places, Host) {
    // Distinct values everywhere: two columns exchanged on the way would change the result.
    std::int64_t const n = 3;
    auto column = [](unsigned seed) { return random_values<float>(3, seed, 0.5); };
    std::vector<float> lp = column(1), old = column(2), ref = column(3), roll = column(4),
                       ent = column(5), adv = column(6), kl = column(7), weight{0.25F, 0.5F},
                       factor{0.75F, 1.25F}, mask_sum{1.0F, 3.0F};
    kl.resize(2);
    std::vector<std::int32_t> mask{1, 0, 1}, sample{0, 0, 1};
    PolicyLossOptions options;
    options.estimator = Estimator::gspo;
    options.use_tis = true;
    options.use_kl_loss = true;
    options.kl_type = KlType::k3;
    options.kl_loss_coef = 0.3;
    options.entropy_coef = 0.1;
    Buffer const b_lp = buffer(lp, n, 1), b_old = buffer(old, n, 1), b_ref = buffer(ref, n, 1),
                 b_roll = buffer(roll, n, 1), b_ent = buffer(ent, n, 1), b_adv = buffer(adv, n, 1),
                 b_mask = buffer(mask, n, 1), b_sample = buffer(sample, n, 1),
                 b_kl = buffer(kl, 2, 1), b_weight = buffer(weight, 2, 1),
                 b_factor = buffer(factor, 2, 1), b_mask_sum = buffer(mask_sum, 2, 1);
    Buffer const d_lp(backend, n, 1, DType::f32), d_ent(backend, n, 1, DType::f32);
    for (bool const closed_form : {false, true}) {
        PolicyRows<float> const rows{view(lp, n, 1),
                                     view(old, n, 1),
                                     view(ref, n, 1),
                                     view(roll, n, 1),
                                     view(ent, n, 1),
                                     view(adv, n, 1),
                                     view(mask, n, 1),
                                     view(sample, n, 1),
                                     view(kl, 2, 1),
                                     view(weight, 2, 1),
                                     closed_form ? view(factor, 2, 1) : Matrix<float>{}};
        std::vector<float> dlp(3), dent(3), dkl(2), metrics(metric_count), share(2), factors(2);
        policy_loss(view(dlp, n, 1), view(dent, n, 1), view(dkl, 2, 1),
                    view(metrics, metric_count, 1), rows, options);
        sequence_kl_partial(view(share, 2, 1), view(factors, 2, 1), view(mask_sum, 2, 1), rows,
                            options);

        PolicyTensors const tensors{b_lp,
                                    b_old,
                                    b_ref,
                                    b_roll,
                                    b_ent,
                                    b_adv,
                                    b_mask,
                                    b_sample,
                                    b_kl,
                                    b_weight,
                                    closed_form ? b_factor.tensor() : Tensor{}};
        Buffer const d_kl = buffer(std::vector<float>(2), 2, 1);
        Buffer const sums = buffer(std::vector<float>(metric_count), metric_count, 1);
        Buffer const b_share = buffer(std::vector<float>(2), 2, 1);
        Buffer const b_factors = buffer(std::vector<float>(2), 2, 1);
        backend.policy_loss(d_lp, d_ent, d_kl, sums, tensors, options);
        backend.sequence_kl_partial(b_share, b_factors, b_mask_sum, tensors, options);
        BOOST_TEST(values<float>(d_lp) == dlp);
        BOOST_TEST(values<float>(d_ent) == dent);
        BOOST_TEST(values<float>(d_kl) == dkl);
        BOOST_TEST(values<float>(sums) == metrics);
        BOOST_TEST(values<float>(b_share) == share);
        BOOST_TEST(values<float>(b_factors) == factors);
        BOOST_TEST(metrics[metric_pg_loss] != 0.0F);
        BOOST_TEST((dkl[0] != 0.0F) == !closed_form);
    }
}
