#define BOOST_TEST_MODULE cp_attention
#include <cmath>

#include "app/cp_attention.hpp"
#include "app/layout.hpp"
#include "mpi/grid.hpp"
#include "tests/cases.hpp"
#include "tests/close.hpp"
#include "tests/mpi_test_main.hpp"

using namespace cpstep;
using cpstep::test::all_close;
using cpstep::test::random_values;
using cpstep::test::test_world;

namespace {

// 12 heads over 2, 3 and 4 ranks: key heads divided, repeated for each query head, one a rank.
HeadShape const shape{12, 2, 4};
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
                              std::vector<double> Whole::* array, std::int64_t width, Split split,
                              int cp_rank) {
    std::vector<float> rows;
    for (Whole const& whole : sequences) {
        for (PositionRange const range : owned_ranges(whole.T, split, cp_rank)) {
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

/// Of all ranks of the test.
std::vector<CpConfig> configs() {
    return test::cp_configs(test_world().size());
}

std::vector<Whole> whole_sequences(std::vector<std::int64_t> const& lengths) {
    std::vector<Whole> sequences;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
        sequences.emplace_back(lengths[i], static_cast<unsigned>(100 * i + 7));
    }
    return sequences;
}

/// One method's forward and backward on this rank's rows of the sequences.
struct Attended {
    Attended(std::vector<Whole> const& sequences, std::vector<std::int64_t> const& lengths,
             CpConfig const& config)
        : plan(make_cp_plan(lengths, config, test_world().rank())),
          split{.layout = config.layout, .ranks = config.size},
          grid(test_world(), make_grid_shape(config.size, config.size, config.a2a), *wires),
          q(local(sequences, &Whole::q, q_width)),
          kv(local(sequences, &Whole::kv, kv_width)),
          d_o(local(sequences, &Whole::d_o, q_width)),
          o(*backend, plan.own_rows, q_width, DType::f32),
          lse(*backend, plan.own_rows, shape.heads, DType::f32),
          dq(*backend, plan.own_rows, q_width, DType::f32),
          dkv(*backend, plan.own_rows, kv_width, DType::f32) {
        Buffer const kept(*backend, attention_kept_bytes(plan, shape, DType::f32) / 4, 1,
                          DType::f32);
        Buffer const workspace(*backend, attention_workspace_bytes(plan, shape, DType::f32) / 4, 1,
                               DType::f32);
        auto const attention = make_cp_attention(*backend, grid, trace, shape, plan, workspace);
        attention->begin_forward(kv, kept);
        attention->forward(o, lse, q, kv, kept);
        forward_ledger = grid.ledger();
        // What is kept must not lie in the workspace, which other micro-batches use meanwhile.
        std::vector<float> const poison(static_cast<std::size_t>(workspace.tensor().rows),
                                        std::nanf(""));
        backend->upload(workspace, poison.data());
        attention->backward(dq, dkv, q, kv, o, d_o, lse, kept);
    }

    Buffer local(std::vector<Whole> const& sequences, std::vector<double> Whole::* array,
                 std::int64_t width) const {
        return on_backend(*backend, local_rows(sequences, array, width, split, plan.rank), width);
    }

    std::unique_ptr<Backend> backend = make_host_backend(1);
    std::unique_ptr<Wires> wires = make_wires(test_world(), *backend, {});
    Trace trace;
    CpPlan plan;
    Split split;
    Grid grid;
    Buffer q, kv, d_o, o, lse, dq, dkv;
    Ledger forward_ledger;
};

void compare_with_whole(std::vector<std::int64_t> const& lengths) {
    std::vector<Whole> const sequences = whole_sequences(lengths);
    std::int64_t const longest = *std::ranges::max_element(lengths);
    // Forward sums T terms of size <= 1; dK/dV sum up to (H/G) T terms of size <= D.
    double const bound =
        test::rounding_bound<float>(8, static_cast<double>(longest * shape.head_dim));
    for (CpConfig const& config : configs()) {
        BOOST_TEST_CONTEXT(name_of(config.method) << " " << name_of(config.layout)) {
            Attended const got(sequences, lengths, config);
            auto const expect = [&](Buffer const& tensor, std::vector<double> Whole::* array,
                                    std::int64_t width) {
                expect_equal(downloaded(*got.backend, tensor),
                             local_rows(sequences, array, width, got.split, got.plan.rank), bound);
            };
            expect(got.o, &Whole::o, q_width);
            expect(got.dq, &Whole::dq, q_width);
            expect(got.dkv, &Whole::dkv, kv_width);
        }
    }
}

}  // namespace

BOOST_AUTO_TEST_CASE(every_method_equals_the_whole_sequence_on_any_rank_count) {
    compare_with_whole({48});
}

BOOST_AUTO_TEST_CASE(packed_sequences_of_uneven_length_stay_apart) {
    compare_with_whole({37, 64, 5, 129});
}

BOOST_AUTO_TEST_CASE(sequences_shorter_than_the_chunk_grid_leave_ranks_without_rows) {
    compare_with_whole({1, 2, 3});
    compare_with_whole({1});
}

BOOST_AUTO_TEST_CASE(each_method_makes_its_own_calls) {
    std::vector<std::int64_t> const lengths{64};
    std::vector<Whole> const sequences = whole_sequences(lengths);
    int const size = test_world().size();
    for (CpConfig const& config : configs()) {
        Attended got(sequences, lengths, config);
        Ledger const both = got.grid.ledger();
        if (size == 1) {
            BOOST_TEST(both.empty());
        } else if (config.method == CpMethod::all_gather) {
            BOOST_TEST(got.forward_ledger.at("cp.kv.gather").calls == 1);
            BOOST_TEST(both.at("cp.dkv.reduce_scatter").calls == 1);
            BOOST_TEST(both.size() == 2U);
        } else if (config.method == CpMethod::a2a) {
            BOOST_TEST(got.forward_ledger.size() == 2U);
            BOOST_TEST(both.at("cp.dqkv.a2a").calls == 1);
            BOOST_TEST(both.size() == 4U);
        } else if (config.method == CpMethod::p2p && config.layout == CpLayout::zigzag) {
            BOOST_TEST(got.forward_ledger.at("cp.kv").calls == size - 1);
            BOOST_TEST(both.at("cp.dkv").calls == size - 1);
        } else {
            BOOST_TEST(both.contains("cp.dqkv.a2a") == (config.a2a > 1));
        }
    }
}

BOOST_AUTO_TEST_CASE(scattered_heads_find_their_key_heads) {
    HeadShape const qwen{14, 2, 64};
    BOOST_TEST(scattered_heads(qwen, 2).kv_heads == 1);
    BOOST_TEST(scattered_heads(qwen, 7).kv_heads == 2);  // rank 3 has heads 6 and 7 of both groups
    BOOST_TEST(scattered_kv_head(qwen, 7, 3, 0) == 0);
    BOOST_TEST(scattered_kv_head(qwen, 7, 3, 1) == 1);
    BOOST_TEST(scattered_heads(qwen, 14).kv_heads == 1);
    BOOST_TEST(scattered_kv_head(qwen, 14, 6, 0) == 0);
    BOOST_TEST(scattered_kv_head(qwen, 14, 7, 0) == 1);
    BOOST_CHECK_THROW(scattered_heads(qwen, 4), Error);
}

BOOST_AUTO_TEST_CASE(the_workspace_is_as_large_as_it_must_be) {
    std::vector<std::int64_t> const lengths{37, 64, 5};
    auto const backend = make_host_backend(1);
    auto const wires = make_wires(test_world(), *backend, {});
    Trace trace;
    for (CpConfig const& config : configs()) {
        CpPlan const plan = make_cp_plan(lengths, config, test_world().rank());
        Grid grid(test_world(), make_grid_shape(config.size, config.size, config.a2a), *wires);
        std::int64_t const bytes = attention_workspace_bytes(plan, shape, DType::f32);
        BOOST_TEST((bytes > 0) == (config.size > 1));
        if (bytes > 0) {
            Buffer const small(*backend, bytes / 4 - 64, 1, DType::f32);
            BOOST_CHECK_THROW(make_cp_attention(*backend, grid, trace, shape, plan, small), Error);
        }
    }
}
