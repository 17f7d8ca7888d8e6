// Backward of mma attention in one launch: blocks that take a tile of keys and a query head for
// dk and dv, and blocks that take a tile of queries and a head for dq.
#include <cstddef>
#include <cstdint>

#include "cuda/attention_device.hpp"
#include "cuda/attention_mma.cuh"
#include "cuda/kernel.cuh"

namespace cpstep::device {
namespace {

using namespace mma;

using BackwardArguments = tiles::BackwardArguments<bf16>;

/// Columns of scores that a warp works on at once: two products of them and the sums fit registers.
constexpr int strip = 32;
using Scores = Sums[strip / chunk];

/// Shared memory of a block: six tiles, then lse and delta of the 64 queries of two stages.
template <int D>
struct Room {
    std::uint32_t base;
    float* numbers;

    static constexpr int bytes =
        6 * SharedTile<D>::bytes + 4 * tile_rows * static_cast<int>(sizeof(float));

    __device__ __forceinline__ explicit Room(float4* shared)
        : base(static_cast<std::uint32_t>(__cvta_generic_to_shared(shared))),
          numbers(reinterpret_cast<float*>(shared) +
                  6 * SharedTile<D>::bytes / static_cast<int>(sizeof(float))) {}
    __device__ __forceinline__ SharedTile<D> tile(int n) const {
        return {base + static_cast<std::uint32_t>(n * SharedTile<D>::bytes)};
    }
    __device__ __forceinline__ SharedTile<D> first_of(int stage) const {
        return tile(2 + 2 * stage);
    }
    __device__ __forceinline__ SharedTile<D> second_of(int stage) const {
        return tile(3 + 2 * stage);
    }
    __device__ __forceinline__ float* lse_of(int stage) const {
        return numbers + 2 * stage * tile_rows;
    }
    __device__ __forceinline__ float* delta_of(int stage) const {
        return lse_of(stage) + tile_rows;
    }
};

/// Scores of the queries of a warp and keys from `key` on become ds_ij = p_ij (dp_ij - delta_i), 0
/// where query i does not see key j.
__device__ __forceinline__ void to_slopes(Scores& s, Scores const& dp, Tile const& t, int key,
                                          float const (&lse_log2)[2], float const (&delta)[2],
                                          float scale_log2) {
    auto const [g, column] = lane();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        int const seen = tiles::seen_from(t, key, first_row_of_warp() + g + 8 * h);
#pragma unroll
        for (int i = 0; i < strip / 4; ++i) {
            int const n = i / 2;
            int const e = 2 * h + i % 2;
            float const p = fast_exp2(fmaf(s[n][e], scale_log2, -lse_log2[h]));
            s[n][e] = n * chunk + 2 * column + i % 2 < seen ? p * (dp[n][e] - delta[h]) : 0.0F;
        }
    }
}

/// dq of one head of the queries of one tile: ds_ij = p_ij (do_i . v_j - delta_i), dq_i = scale
/// sum_j ds_ij k_j.
template <int D>
__device__ __forceinline__ void queries_block(BackwardArguments const& a, Room<D> const& room,
                                              unsigned block) {
    int const head = static_cast<int>(block % static_cast<unsigned>(a.shape.heads));
    Tile const t = a.work.queries[block / static_cast<unsigned>(a.shape.heads)];
    int const head_dim = a.shape.head_dim;
    auto const keys = a.k.at(a.shape.kv_head_of(head), head_dim);
    auto const values = a.v.at(a.shape.kv_head_of(head), head_dim);
    auto const fetch = [&](int key, int stage) {
        int const count = min(tile_rows, t.kv_rows - key);
        copy_rows(room.first_of(stage), keys, std::int64_t{t.kv_row} + key, count, head_dim);
        copy_rows(room.second_of(stage), values, std::int64_t{t.kv_row} + key, count, head_dim);
    };
    copy_rows(room.tile(0), a.q.at(head, head_dim), t.q_row, t.q_rows, head_dim);
    copy_rows(room.tile(1), a.d_o.at(head, head_dim), t.q_row, t.q_rows, head_dim);
    fetch(0, 0);
    float lse_log2[2];
    float delta[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        int const r = first_row_of_warp() + lane().g + 8 * h;
        std::int64_t const row = std::int64_t{t.q_row} + r;
        lse_log2[h] = r < t.q_rows ? row_of(a.lse, row)[head] * log2_e : 0.0F;
        delta[h] = r < t.q_rows ? row_of(a.work.delta, row)[head] : 0.0F;
    }
    await_copies();
    LeftRows<D> q{room.tile(0), first_row_of_warp(), {}};
    LeftRows<D> d_o{room.tile(1), first_row_of_warp(), {}};
    q.keep();
    d_o.keep();
    Sums dq[D / chunk] = {};
    float const scale_log2 = a.shape.scale * log2_e;
    for (int key = 0, stage = 0; key < t.kv_rows; key += tile_rows, stage ^= 1) {
        if (key > 0) {
            await_copies();
        }
        if (key + tile_rows < t.kv_rows) {
            fetch(key + tile_rows, stage ^ 1);
        }
#pragma unroll 1
        for (int first = 0; first < tile_rows; first += strip) {
            if (tiles::seen_from(t, key + first, first_row_of_warp() + warp_rows - 1) <= 0) {
                break;
            }
            Scores s;
            Scores dp;
            product_of_rows<D, strip>(s, q, room.first_of(stage), first);
            product_of_rows<D, strip>(dp, d_o, room.second_of(stage), first);
            to_slopes(s, dp, t, key + first, lse_log2, delta, scale_log2);
            Fragment ds[strip / 16];
            to_fragments<strip>(ds, s);
            add_product<D, strip>(dq, ds, room.first_of(stage), first);
        }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        int const r = first_row_of_warp() + lane().g + 8 * h;
        if (r < t.q_rows) {
            write_row<D>(a.dq, std::int64_t{t.q_row} + r, head, dq, h, head_dim, a.shape.scale,
                         a.add_queries ? 1.0F : 0.0F);
        }
    }
}

/// The 64 queries of a part from `begin` on; those of all parts of a tile of keys, one after
/// another.
struct QueryStep {
    Tile part;
    int index, begin;

    __device__ __forceinline__ int count() const { return min(tile_rows, part.q_rows - begin); }
};
__device__ __forceinline__ bool skip_empty(BackwardArguments const& a, KeyTile const& tile,
                                           QueryStep& step) {
    while (step.index < tile.parts) {
        step.part = a.work.parts[tile.first_part + step.index];
        if (step.begin < step.part.q_rows) {
            return true;
        }
        ++step.index;
        step.begin = 0;
    }
    return false;
}

/// Adds what queries give to dk (not yet scaled) and dv of the keys of a warp: dv_j += sum_i p_ij
/// do_i, dk_j += sum_i ds_ij q_i. Scores are held with keys as rows.
template <int D>
__device__ __forceinline__ void add_queries(QueryStep const& step, int first_key,
                                            Room<D> const& room, int stage, float scale_log2,
                                            LeftRows<D> const& k, LeftRows<D> const& v,
                                            Sums (&dk)[D / chunk], Sums (&dv)[D / chunk]) {
    auto const [g, column] = lane();
    int const lowest = first_row_of_warp() - first_key;  // key of the part
#pragma unroll 1
    for (int first = 0; first < tile_rows; first += strip) {
        int const last = min(first + strip, step.count()) - 1;
        if (last < first || tiles::seen_from(step.part, 0, step.begin + last) <= lowest ||
            lowest + warp_rows <= 0) {
            continue;
        }
        Scores p;
        Scores ds;
        product_of_rows<D, strip>(p, k, room.first_of(stage), first);
        product_of_rows<D, strip>(ds, v, room.second_of(stage), first);
#pragma unroll
        for (int n = 0; n < strip / chunk; ++n) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                int const query = first + n * chunk + 2 * column + c;
                float const lse_log2 = room.lse_of(stage)[query] * log2_e;
                float const delta = room.delta_of(stage)[query];
                int const seen =
                    query <= last ? tiles::seen_from(step.part, 0, step.begin + query) : 0;
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    int const key = lowest + g + 8 * h;
                    bool const sees = key >= 0 && key < seen;
                    float& weight = p[n][2 * h + c];
                    float& slope = ds[n][2 * h + c];
                    weight = sees ? fast_exp2(fmaf(weight, scale_log2, -lse_log2)) : 0.0F;
                    slope = sees ? weight * (slope - delta) : 0.0F;
                }
            }
        }
        Fragment left[strip / 16];
        to_fragments<strip>(left, p);
        add_product<D, strip>(dv, left, room.second_of(stage), first);
        to_fragments<strip>(left, ds);
        add_product<D, strip>(dk, left, room.first_of(stage), first);
    }
}

/// dk and dv that one query head gives the keys of one tile: all parts.
template <int D>
__device__ __forceinline__ void keys_block(BackwardArguments const& a, Room<D> const& room,
                                           unsigned block) {
    int const head = static_cast<int>(block % static_cast<unsigned>(a.shape.heads));
    int const index = static_cast<int>(block / static_cast<unsigned>(a.shape.heads));
    KeyTile const tile = a.work.keys[index];
    int const head_dim = a.shape.head_dim;
    int const kv_head = a.shape.kv_head_of(head);
    auto const q = a.q.at(head, head_dim);
    auto const d_o = a.d_o.at(head, head_dim);
    auto const fetch = [&](QueryStep const& step, int stage) {
        std::int64_t const row = std::int64_t{step.part.q_row} + step.begin;
        copy_rows(room.first_of(stage), q, row, step.count(), head_dim);
        copy_rows(room.second_of(stage), d_o, row, step.count(), head_dim);
        int const i = static_cast<int>(threadIdx.x) % tile_rows;
        bool const inside = i < step.count();
        Matrix<float> const& from =
            static_cast<int>(threadIdx.x) < tile_rows ? a.lse : a.work.delta;
        float* const to =
            static_cast<int>(threadIdx.x) < tile_rows ? room.lse_of(stage) : room.delta_of(stage);
        copy_4(static_cast<std::uint32_t>(__cvta_generic_to_shared(to + i)),
               row_of(from, inside ? row + i : row) + head, inside);
    };
    int const count = min(tile_rows, a.key_rows - tile.row);
    copy_rows(room.tile(0), a.k.at(kv_head, head_dim), tile.row, count, head_dim);
    copy_rows(room.tile(1), a.v.at(kv_head, head_dim), tile.row, count, head_dim);
    QueryStep step{{}, 0, 0};
    bool more = skip_empty(a, tile, step);
    if (more) {
        fetch(step, 0);
    }
    await_copies();
    LeftRows<D> k{room.tile(0), first_row_of_warp(), {}};
    LeftRows<D> v{room.tile(1), first_row_of_warp(), {}};
    k.keep();
    v.keep();
    Sums dk[D / chunk] = {};
    Sums dv[D / chunk] = {};
    for (int stage = 0; more; stage ^= 1) {
        QueryStep const now = step;
        step.begin += tile_rows;
        more = skip_empty(a, tile, step);
        if (more) {
            fetch(step, stage ^ 1);
        }
        add_queries(now, now.part.kv_row - tile.row, room, stage, a.shape.scale * log2_e, k, v, dk,
                    dv);
        await_copies();
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        std::int64_t const row =
            std::int64_t{index} * tile_rows + first_row_of_warp() + lane().g + 8 * h;
        write_row<D>(a.dk_by_head, row, head, dk, h, head_dim, a.shape.scale, 0.0F);
        write_row<D>(a.dv_by_head, row, head, dv, h, head_dim, 1.0F, 0.0F);
    }
}

template <int D>
__global__ void __launch_bounds__(threads, D <= 64 ? 3 : 2)
    backward_kernel(BackwardArguments const a) {
    extern __shared__ float4 shared[];
    Room<D> const room(shared);
    auto const key_blocks =
        static_cast<unsigned>(a.work.key_tiles) * static_cast<unsigned>(a.shape.heads);
    if (blockIdx.x < key_blocks) {
        keys_block(a, room, blockIdx.x);
    } else {
        queries_block(a, room, blockIdx.x - key_blocks);
    }
}

}  // namespace

void mma_attention(Device const& d, AttentionBackward const& call,
                   std::span<Segment const> segments, Accumulate queries, Accumulate keys) {
    if (segments.empty()) {
        return;
    }
    if (!mma_suits(call.shape, {call.q, call.k, call.v, call.d_o})) {
        reference_attention(d, call, segments, queries, keys);
        return;
    }
    BackwardWork const work = begin_backward(d, call, segments);
    auto const heads = static_cast<std::size_t>(call.shape.heads);
    BackwardArguments const arguments(call, work, queries);
    mma::with_width(call.shape.head_dim, [&](auto width) {
        constexpr int D = width.value;
        tiles::launch(d, backward_kernel<D>, (work.key_tiles + work.query_tiles) * heads, threads,
                      Room<D>::bytes, arguments);
    });
    sum_heads(d, call, work, keys);
}

}  // namespace cpstep::device
