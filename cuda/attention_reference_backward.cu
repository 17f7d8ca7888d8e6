// Backward of the reference attention: dq by tiles of queries, dk and dv of each query head by
// tiles of keys.
#include <cstddef>
#include <cstdint>

#include "cuda/attention_device.hpp"
#include "cuda/attention_tiles.cuh"
#include "cuda/kernel.cuh"

namespace cpstep::device {
namespace {

using namespace tiles;

/// dq of one head of the queries of one tile: ds_ij = p_ij (do_i . v_j - delta_i), dq_i = scale
/// sum_j ds_ij k_j.
template <int D, class T>
__global__ void __launch_bounds__(threads, D == tile_rows ? 2 : 1)
    dq_kernel(BackwardArguments<T> const a) {
    extern __shared__ float4 shared[];
    float* const q = reinterpret_cast<float*>(shared);
    float* const d_o = q + tile_floats<D>;
    float* const kv = d_o + tile_floats<D>;  // values, then the keys of the same rows
    float* const ds = kv + tile_floats<D>;
    auto const [ty, tx] = place();
    int const head = static_cast<int>(blockIdx.x % static_cast<unsigned>(a.shape.heads));
    Tile const t = a.work.queries[blockIdx.x / static_cast<unsigned>(a.shape.heads)];
    int const head_dim = a.shape.head_dim;
    auto const keys = a.k.at(a.shape.kv_head_of(head), head_dim);
    auto const values = a.v.at(a.shape.kv_head_of(head), head_dim);

    load_tile<D>(q, a.q.at(head, head_dim), t.q_row, t.q_rows, head_dim, a.shape.scale);
    load_tile<D>(d_o, a.d_o.at(head, head_dim), t.q_row, t.q_rows, head_dim);
    float lse[each];
    float delta[each];
#pragma unroll
    for (int i = 0; i < each; ++i) {
        std::int64_t const row = std::int64_t{t.q_row} + ty + side * i;
        bool const inside = ty + side * i < t.q_rows;
        lse[i] = inside ? row_of(a.lse, row)[head] : 0.0F;
        delta[i] = inside ? row_of(a.work.delta, row)[head] : 0.0F;
    }
    RowSums<D> dq;
    for (int key = 0; key < t.kv_rows; key += tile_rows) {
        int const count = min(tile_rows, t.kv_rows - key);
        std::int64_t const row = std::int64_t{t.kv_row} + key;
        __syncthreads();  // the products of the tile before are done
        load_tile<D>(kv, values, row, count, head_dim);
        __syncthreads();
        float dp[each][each];
        product_of_rows<D>(dp, d_o, kv);
        __syncthreads();  // values are read
        load_tile<D>(kv, keys, row, count, head_dim);
        __syncthreads();
        float x[each][each];
        product_of_rows<D>(x, q, kv);
#pragma unroll
        for (int i = 0; i < each; ++i) {
            int const seen = seen_from(t, key, ty + side * i);
#pragma unroll
            for (int j = 0; j < each; ++j) {
                ds[(ty + side * i) * score_pitch + tx + side * j] =
                    tx + side * j < seen ? expf(x[i][j] - lse[i]) * (dp[i][j] - delta[i]) : 0.0F;
            }
        }
        __syncthreads();
        add_product(dq, ds, kv);
    }
#pragma unroll
    for (int i = 0; i < each; ++i) {
        if (ty + side * i < t.q_rows) {
            write_row(a.dq, std::int64_t{t.q_row} + ty + side * i, head, dq, i, head_dim,
                      a.shape.scale, a.add_queries ? 1.0F : 0.0F);
        }
    }
}

/// Shared tiles of a block of the kernel below.
template <int D>
struct KeyTileRoom {
    float *k, *v, *rows, *scores, *lse, *delta;

    __device__ __forceinline__ explicit KeyTileRoom(float* at)
        : k(at),
          v(k + tile_floats<D>),
          rows(v + tile_floats<D>),
          scores(rows + tile_floats<D>),
          lse(scores + score_floats),
          delta(lse + tile_rows) {}
};

/// Adds what 64 queries of a part, from query `begin` on, give to dk and dv of the keys of a tile:
/// dv_j += sum_i p_ij do_i, dk_j += sum_i ds_ij scale q_i. Scores are held with keys as rows.
template <int D, class T>
__device__ __forceinline__ void add_queries(BackwardArguments<T> const& a, KeyTileRoom<D> room,
                                            Tile const& t, int first_key, int head, int begin,
                                            RowSums<D>& dk, RowSums<D>& dv) {
    auto const [ty, tx] = place();
    int const head_dim = a.shape.head_dim;
    int const count = min(tile_rows, t.q_rows - begin);
    std::int64_t const row = std::int64_t{t.q_row} + begin;
    auto const q = a.q.at(head, head_dim);
    __syncthreads();  // the products of the queries before are done
    load_tile<D>(room.rows, q, row, count, head_dim, a.shape.scale);
    if (threadIdx.x < tile_rows) {
        int const i = static_cast<int>(threadIdx.x);
        room.lse[i] = i < count ? row_of(a.lse, row + i)[head] : 0.0F;
        room.delta[i] = i < count ? row_of(a.work.delta, row + i)[head] : 0.0F;
    }
    __syncthreads();
    float p[each][each];
    product_of_rows<D>(p, room.k, room.rows);
    __syncthreads();  // q is read
    load_tile<D>(room.rows, a.d_o.at(head, head_dim), row, count, head_dim);
    unsigned seen = 0;  // bit 4 i + j
#pragma unroll
    for (int i = 0; i < each; ++i) {
        int const key = ty + side * i - first_key;
#pragma unroll
        for (int j = 0; j < each; ++j) {
            int const query = tx + side * j;
            bool const sees = query < count && key >= 0 && key < seen_from(t, 0, begin + query);
            seen |= static_cast<unsigned>(sees) << (each * i + j);
            p[i][j] = sees ? expf(p[i][j] - room.lse[query]) : 0.0F;
            room.scores[(ty + side * i) * score_pitch + query] = p[i][j];
        }
    }
    __syncthreads();
    float dp[each][each];
    product_of_rows<D>(dp, room.v, room.rows);
    add_product(dv, room.scores, room.rows);
    __syncthreads();  // do and p are read
    load_tile<D>(room.rows, q, row, count, head_dim, a.shape.scale);
#pragma unroll
    for (int i = 0; i < each; ++i) {
#pragma unroll
        for (int j = 0; j < each; ++j) {
            int const query = tx + side * j;
            room.scores[(ty + side * i) * score_pitch + query] =
                (seen >> (each * i + j) & 1U) != 0 ? p[i][j] * (dp[i][j] - room.delta[query])
                                                   : 0.0F;
        }
    }
    __syncthreads();
    add_product(dk, room.scores, room.rows);
}

/// dk and dv that one query head gives the keys of one tile: all parts.
template <int D, class T>
__global__ void __launch_bounds__(threads, D == tile_rows ? 2 : 1)
    dkv_kernel(BackwardArguments<T> const a) {
    extern __shared__ float4 shared[];
    KeyTileRoom<D> const room(reinterpret_cast<float*>(shared));
    auto const [ty, tx] = place();
    int const head = static_cast<int>(blockIdx.x % static_cast<unsigned>(a.shape.heads));
    int const index = static_cast<int>(blockIdx.x / static_cast<unsigned>(a.shape.heads));
    KeyTile const tile = a.work.keys[index];
    int const kv_head = a.shape.kv_head_of(head);
    int const head_dim = a.shape.head_dim;
    int const count = min(tile_rows, a.key_rows - tile.row);
    load_tile<D>(room.k, a.k.at(kv_head, head_dim), tile.row, count, head_dim);
    load_tile<D>(room.v, a.v.at(kv_head, head_dim), tile.row, count, head_dim);
    RowSums<D> dk;
    RowSums<D> dv;
    for (int n = 0; n < tile.parts; ++n) {
        Tile const t = a.work.parts[tile.first_part + n];
        for (int begin = 0; begin < t.q_rows; begin += tile_rows) {
            add_queries(a, room, t, t.kv_row - tile.row, head, begin, dk, dv);
        }
    }
#pragma unroll
    for (int i = 0; i < each; ++i) {
        std::int64_t const row = std::int64_t{index} * tile_rows + ty + side * i;
        write_row(a.dk_by_head, row, head, dk, i, head_dim, 1.0F, 0.0F);
        write_row(a.dv_by_head, row, head, dv, i, head_dim, 1.0F, 0.0F);
    }
}

}  // namespace

void reference_attention(Device const& d, AttentionBackward const& call,
                         std::span<Segment const> segments, Accumulate queries, Accumulate keys) {
    if (segments.empty()) {
        return;
    }
    Heads const shape = heads_of(call.shape);
    BackwardWork const work = begin_backward(d, call, segments);
    auto const heads = static_cast<std::size_t>(shape.heads);
    with_type(call.q.dtype, [&](auto type) {
        using T = decltype(type);
        BackwardArguments<T> const arguments(call, work, queries);
        with_width(shape.head_dim, [&](auto width) {
            constexpr int D = width.value;
            constexpr std::size_t floats = 3 * tile_floats<D> + score_floats;
            launch(d, dq_kernel<D, T>, work.query_tiles * heads, threads, floats * sizeof(float),
                   arguments);
            launch(d, dkv_kernel<D, T>, work.key_tiles * heads, threads,
                   (floats + 2 * tile_rows) * sizeof(float), arguments);
        });
    });
    sum_heads(d, call, work, keys);
}

}  // namespace cpstep::device
