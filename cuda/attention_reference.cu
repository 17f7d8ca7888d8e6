// Attention in fp32 arithmetic: the verification path for f32, the judge of faster backends and
// the path of pieces too small for them. Tiles of 64 x 64 scores with a running maximum (Milakov &
// Gimelshein 2018; Dao et al. 2022); each output element is summed by one thread in a fixed order.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/attention_device.hpp"
#include "cuda/attention_tiles.cuh"
#include "cuda/kernel.cuh"
#include "cuda/softmax_merge.cuh"

namespace cpstep {
namespace device {
namespace {

using namespace tiles;

/// The rows of a running softmax that a thread shares with 15 others.
template <int D>
struct RunningSoftmax {
    RowSums<D> o;  // not yet divided by `sum`
    float maximum[each];
    float sum[each];

    /// Takes in the scores x of 64 keys, of which row i sees the first seen[i]; leaves exp(x -
    /// maximum) in the shared tile `weights`.
    __device__ __forceinline__ void take(float (&x)[each][each], int const (&seen)[each],
                                         float* weights) {
        auto const [ty, tx] = place();
#pragma unroll
        for (int i = 0; i < each; ++i) {
            float highest = no_key;
#pragma unroll
            for (int j = 0; j < each; ++j) {
                x[i][j] = tx + side * j < seen[i] ? x[i][j] : no_key;
                highest = fmaxf(highest, x[i][j]);
            }
            float const next = fmaxf(maximum[i], row_maximum(highest));
            float const base = next == no_key ? 0.0F : next;  // exp(-inf - 0) = 0, not NaN
            float terms = 0.0F;
#pragma unroll
            for (int j = 0; j < each; ++j) {
                float const weight = expf(x[i][j] - base);
                weights[(ty + side * i) * score_pitch + tx + side * j] = weight;
                terms += weight;
            }
            float const shrink = expf(maximum[i] - base);
            sum[i] = sum[i] * shrink + row_sum(terms);
            maximum[i] = next;
            o.scale_row(i, shrink);
        }
    }
};

/// Puts the rows of a tile into o and lse, or merges them with what is there. The 16 threads of a
/// row read its lse before one of them writes it.
template <int D, class T>
__device__ __forceinline__ void store_rows(ForwardArguments<T> const& a, Tile const& t, int head,
                                           RunningSoftmax<D>& rows) {
    auto const [ty, tx] = place();
    float before[each];
#pragma unroll
    for (int i = 0; i < each; ++i) {
        bool const inside = ty + side * i < t.q_rows;
        before[i] = a.merge && inside ? row_of(a.lse, t.q_row + ty + side * i)[head] : no_key;
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < each; ++i) {
        bool const nothing = rows.maximum[i] == no_key;
        bool const first = before[i] == no_key;
        if (ty + side * i >= t.q_rows || (nothing && !first)) {
            continue;
        }
        float lse = nothing ? no_key : rows.maximum[i] + logf(rows.sum[i]);
        float factor = nothing ? 0.0F : 1.0F / rows.sum[i];
        float keep = 0.0F;
        if (!first) {
            MergeWeights const w = merge_weights(before[i], lse, a.fault);
            lse = w.lse;
            factor *= w.take;
            keep = w.keep;
        }
        std::int64_t const row = std::int64_t{t.q_row} + ty + side * i;
        write_row(a.o, row, head, rows.o, i, a.shape.head_dim, factor, keep);
        if (tx == 0) {
            row_of(a.lse, row)[head] = lse;
        }
    }
}

/// A block: one head of the queries of one tile, all their keys.
template <int D, class T>
__global__ void __launch_bounds__(threads, D == tile_rows ? 2 : 1)
    forward_kernel(ForwardArguments<T> const a) {
    extern __shared__ float4 shared[];
    float* const q = reinterpret_cast<float*>(shared);
    float* const kv = q + tile_floats<D>;  // keys, then the values of the same rows
    float* const weights = kv + tile_floats<D>;
    auto const [ty, tx] = place();
    int const head = static_cast<int>(blockIdx.x % static_cast<unsigned>(a.shape.heads));
    Tile const t = a.work[blockIdx.x / static_cast<unsigned>(a.shape.heads)];
    int const head_dim = a.shape.head_dim;
    auto const keys = a.k.at(a.shape.kv_head_of(head), head_dim);
    auto const values = a.v.at(a.shape.kv_head_of(head), head_dim);

    load_tile<D>(q, a.q.at(head, head_dim), t.q_row, t.q_rows, head_dim, a.shape.scale);
    RunningSoftmax<D> rows;
#pragma unroll
    for (int i = 0; i < each; ++i) {
        rows.maximum[i] = no_key;
        rows.sum[i] = 0.0F;
    }
    for (int key = 0; key < t.kv_rows; key += tile_rows) {
        int const count = min(tile_rows, t.kv_rows - key);
        std::int64_t const row = std::int64_t{t.kv_row} + key;
        __syncthreads();  // the products of the tile before are done
        load_tile<D>(kv, keys, row, count, head_dim);
        __syncthreads();
        float x[each][each];
        product_of_rows<D>(x, q, kv);
        int seen[each];
#pragma unroll
        for (int i = 0; i < each; ++i) {
            seen[i] = seen_from(t, key, ty + side * i);
        }
        rows.take(x, seen, weights);
        __syncthreads();  // keys are read, weights written
        load_tile<D>(kv, values, row, count, head_dim);
        __syncthreads();
        add_product(rows.o, weights, kv);
    }
    store_rows(a, t, head, rows);
}

}  // namespace

void reference_attention(Device const& d, AttentionForward const& call,
                         std::span<Segment const> segments, Accumulate mode) {
    Heads const shape = heads_of(call.shape);
    std::vector<Tile> const work = query_tiles(segments, tile_rows);
    if (work.empty()) {
        return;
    }
    with_type(call.q.dtype, [&](auto type) {
        using T = decltype(type);
        ForwardArguments<T> const arguments(d, call, work, mode);
        with_width(shape.head_dim, [&](auto width) {
            constexpr int D = width.value;
            launch(d, forward_kernel<D, T>, work.size() * static_cast<std::size_t>(shape.heads),
                   threads, (2 * tile_floats<D> + score_floats) * sizeof(float), arguments);
        });
    });
}

}  // namespace device

}  // namespace cpstep
