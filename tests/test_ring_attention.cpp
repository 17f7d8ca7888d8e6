#define BOOST_TEST_MODULE ring_attention
#include <cmath>

#include "app/layout.hpp"
#include "app/ring_attention.hpp"
#include "mpi/grid.hpp"
#include "tests/close.hpp"
#include "tests/mpi_test_main.hpp"

using namespace cpstep;
using cpstep::test::all_close;
using cpstep::test::random_values;
using cpstep::test::test_world;

namespace {

HeadShape const shape{4, 2, 8};
std::int64_t const q_width = shape.heads * shape.head_dim;
std::int64_t const kv_width = 2 * shape.kv_heads * shape.head_dim;

/// One sequence over all positions, in double: the definition, with its T x T matrix.
struct Whole {
    explicit Whole(std::int64_t length, unsigned seed)
        : T(length),
          q(random_values<double>(T * q_width, seed)),
          kv(random_values<double>(T * kv_width, seed + 1)),
          d_o(random_values<double>(T * q_width, seed + 2)),
          o(T * q_width),
          dq(T * q_width),
          dkv(T * kv_width) {
        for (std::int64_t head = 0; head < shape.heads; ++head) {
            for (std::int64_t i = 0; i < T; ++i) {
                attend(head, i);
            }
        }
    }

    void attend(std::int64_t head, std::int64_t i) {
        std::int64_t const D = shape.head_dim;
        std::int64_t const group = head / (shape.heads / shape.kv_heads);
        double const scale = 1.0 / std::sqrt(static_cast<double>(D));
        double const* q_i = &q[i * q_width + head * D];
        double const* do_i = &d_o[i * q_width + head * D];
        std::vector<double> p(i + 1);
        double sum = 0;
        for (std::int64_t j = 0; j <= i; ++j) {
            double s = 0;
            for (std::int64_t d = 0; d < D; ++d) {
                s += q_i[d] * kv[j * kv_width + group * D + d];
            }
            p[j] = std::exp(s * scale);
            sum += p[j];
        }
        double delta = 0;
        std::vector<double> dp(i + 1);
        for (std::int64_t j = 0; j <= i; ++j) {
            p[j] /= sum;
            for (std::int64_t d = 0; d < D; ++d) {
                double const v = kv[j * kv_width + kv_width / 2 + group * D + d];
                o[i * q_width + head * D + d] += p[j] * v;
                dp[j] += do_i[d] * v;
                dkv[j * kv_width + kv_width / 2 + group * D + d] += p[j] * do_i[d];
            }
            delta += p[j] * dp[j];
        }
        for (std::int64_t j = 0; j <= i; ++j) {
            double const ds = p[j] * (dp[j] - delta) * scale;
            for (std::int64_t d = 0; d < D; ++d) {
                dq[i * q_width + head * D + d] += ds * kv[j * kv_width + group * D + d];
                dkv[j * kv_width + group * D + d] += ds * q_i[d];
            }
        }
    }

    std::int64_t T;
    std::vector<double> q, kv, d_o, o, dq, dkv;
};

/// The rows of the packed sequences that this rank owns, of one of Whole's arrays.
std::vector<float> local_rows(std::vector<Whole> const& sequences,
                              std::vector<double> Whole::* array, std::int64_t width, int cp_size,
                              int cp_rank) {
    std::vector<float> rows;
    for (Whole const& whole : sequences) {
        for (PositionRange const range : owned_ranges(whole.T, {.ranks = cp_size}, cp_rank)) {
            auto const& values = whole.*array;
            rows.insert(rows.end(), values.begin() + range.begin * width,
                        values.begin() + range.end * width);
        }
    }
    return rows;
}

Buffer on_backend(Backend& backend, std::vector<float> const& values, std::int64_t width) {
    Buffer buffer(backend, static_cast<std::int64_t>(values.size()) / width, width, DType::f32);
    backend.upload(buffer, values.data());
    return buffer;
}

std::vector<float> downloaded(Backend& backend, Tensor tensor) {
    std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
    backend.download(values.data(), tensor);
    return values;
}

void expect_equal(std::vector<float> const& got, std::vector<float> const& want, double bound) {
    if (want.empty()) {
        BOOST_TEST(got.empty());
        return;
    }
    BOOST_TEST(all_close(got, want, bound, bound));
}

void compare_with_whole(std::vector<std::int64_t> const& lengths) {
    World& world = test_world();
    auto const backend = make_host_backend(1);
    Trace trace;
    Grid grid(world, make_grid_shape(world.size(), world.size()));
    std::vector<Whole> sequences;
    std::int64_t longest = 0;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
        sequences.emplace_back(lengths[i], static_cast<unsigned>(100 * i + 7));
        longest = std::max(longest, lengths[i]);
    }
    RingPlan const plan = make_ring_plan(lengths, world.size(), world.rank());
    std::int64_t const largest = *std::max_element(plan.block_rows.begin(), plan.block_rows.end());
    RingAttention attention(*backend, grid.cp(), trace, shape, largest);
    attention.set_plan(plan);
    auto const local = [&](std::vector<double> Whole::* array, std::int64_t width) {
        return local_rows(sequences, array, width, world.size(), world.rank());
    };
    Buffer const q = on_backend(*backend, local(&Whole::q, q_width), q_width);
    Buffer const kv = on_backend(*backend, local(&Whole::kv, kv_width), kv_width);
    Buffer const d_o = on_backend(*backend, local(&Whole::d_o, q_width), q_width);
    std::int64_t const rows = q.tensor().rows;
    Buffer const o(*backend, rows, q_width, DType::f32);
    Buffer const lse(*backend, rows, shape.heads, DType::f32);
    Buffer const dq(*backend, rows, q_width, DType::f32);
    Buffer const dkv(*backend, rows, kv_width, DType::f32);
    attention.forward(o, lse, q, kv);
    attention.backward(dq, dkv, q, kv, o, d_o, lse);
    // Forward sums T terms of size <= 1; dK/dV sum up to (H/G) T terms of size <= D.
    double const bound =
        test::rounding_bound<float>(8, static_cast<double>(longest * shape.head_dim));
    expect_equal(downloaded(*backend, o), local(&Whole::o, q_width), bound);
    expect_equal(downloaded(*backend, dq), local(&Whole::dq, q_width), bound);
    expect_equal(downloaded(*backend, dkv), local(&Whole::dkv, kv_width), bound);
}

}  // namespace

BOOST_AUTO_TEST_CASE(ring_equals_the_whole_sequence_on_any_rank_count) {
    compare_with_whole({48});
}

BOOST_AUTO_TEST_CASE(packed_sequences_of_uneven_length_stay_apart) {
    compare_with_whole({37, 64, 5, 129});
}

BOOST_AUTO_TEST_CASE(sequences_shorter_than_the_chunk_grid_leave_ranks_without_rows) {
    compare_with_whole({1, 2, 3});
    compare_with_whole({1});
}

BOOST_AUTO_TEST_CASE(a_ring_hops_as_often_as_planned) {
    World& world = test_world();
    auto const backend = make_host_backend(1);
    Trace trace;
    Grid grid(world, make_grid_shape(world.size(), world.size()));
    std::vector<std::int64_t> const lengths{64};
    RingPlan const plan = make_ring_plan(lengths, world.size(), world.rank());
    RingAttention attention(*backend, grid.cp(), trace, shape, 64);
    attention.set_plan(plan);
    std::int64_t const rows = plan.block_rows[world.rank()];
    Buffer const q(*backend, rows, q_width, DType::f32);
    Buffer const kv(*backend, rows, kv_width, DType::f32);
    Buffer const o(*backend, rows, q_width, DType::f32);
    Buffer const lse(*backend, rows, shape.heads, DType::f32);
    backend->zero(q);
    backend->zero(kv);
    attention.forward(o, lse, q, kv);
    Ledger const ledger = grid.ledger();
    if (world.size() == 1) {
        BOOST_TEST(ledger.empty());
    } else {
        BOOST_TEST(ledger.at("cp.kv").calls == world.size() - 1);
        BOOST_TEST(ledger.size() == 1U);
    }
}
