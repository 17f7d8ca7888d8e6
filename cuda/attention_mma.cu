// Attention in bf16 on tensor cores over a list of segments as it is: any number of pieces, of any
// length and mask, in one launch, sums in fp32 (Milakov & Gimelshein 2018; Dao et al. 2022, 2023).
// No atomics: the same bits on each run.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "cuda/attention_device.hpp"
#include "cuda/attention_mma.cuh"
#include "cuda/kernel.cuh"
#include "cuda/softmax_merge.cuh"

namespace cpstep::device {
namespace {

using namespace mma;

using ForwardArguments = tiles::ForwardArguments<bf16>;

/// The 16 rows of a running softmax of a warp; a lane has a part of rows g and g + 8.
template <int D>
struct RunningSoftmax {
    Sums o[D / chunk] = {};  // not yet divided by `sum`
    float maximum[2] = {no_key, no_key};
    float sum[2] = {};  // of this lane's columns

    /// Takes in scores; scores of keys that a row does not see are -inf. Leaves exp(scale (s -
    /// maximum)) in s.
    __device__ __forceinline__ void take(Sums (&s)[tile_rows / chunk], float scale_log2) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float highest = no_key;
#pragma unroll
            for (auto const& x : s) {
                highest = fmaxf(highest, fmaxf(x[2 * h], x[2 * h + 1]));
            }
            float const next = fmaxf(maximum[h], row_maximum(highest));
            float const base = next == no_key ? 0.0F : next * scale_log2;
            float const shrink = fast_exp2(maximum[h] * scale_log2 - base);
            float terms = 0.0F;
#pragma unroll
            for (auto& x : s) {
                x[2 * h] = fast_exp2(fmaf(x[2 * h], scale_log2, -base));
                x[2 * h + 1] = fast_exp2(fmaf(x[2 * h + 1], scale_log2, -base));
                terms += x[2 * h] + x[2 * h + 1];
            }
            sum[h] = sum[h] * shrink + terms;
            maximum[h] = next;
#pragma unroll
            for (auto& x : o) {
                x[2 * h] *= shrink;
                x[2 * h + 1] *= shrink;
            }
        }
    }
};

/// Scores of keys from `key` on that the rows of this warp do not see become -inf.
__device__ __forceinline__ void hide(Sums (&s)[tile_rows / chunk], Tile const& t, int key) {
    auto const [g, column] = lane();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        int const seen = tiles::seen_from(t, key, first_row_of_warp() + g + 8 * h);
#pragma unroll
        for (int n = 0; n < tile_rows / chunk; ++n) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                float& x = s[n][2 * h + c];
                x = n * chunk + 2 * column + c < seen ? x : no_key;
            }
        }
    }
}

/// Puts the rows of a warp into o and lse, or merges them with what is there. The four lanes of a
/// row read its lse before one of them writes it.
template <int D>
__device__ __forceinline__ void store_rows(ForwardArguments const& a, Tile const& t, int head,
                                           RunningSoftmax<D> const& rows) {
    auto const [g, column] = lane();
    float before[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        int const r = first_row_of_warp() + g + 8 * h;
        before[h] =
            a.merge && r < t.q_rows ? row_of(a.lse, std::int64_t{t.q_row} + r)[head] : no_key;
    }
    __syncwarp();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        int const r = first_row_of_warp() + g + 8 * h;
        float const sum = row_sum(rows.sum[h]);
        bool const nothing = rows.maximum[h] == no_key;
        bool const first = before[h] == no_key;
        if (r >= t.q_rows || (nothing && !first)) {
            continue;
        }
        float lse = nothing ? no_key : rows.maximum[h] * a.shape.scale + logf(sum);
        float factor = nothing ? 0.0F : 1.0F / sum;
        float keep = 0.0F;
        if (!first) {
            MergeWeights const w = merge_weights(before[h], lse, a.fault);
            lse = w.lse;
            factor *= w.take;
            keep = w.keep;
        }
        std::int64_t const row = std::int64_t{t.q_row} + r;
        write_row<D>(a.o, row, head, rows.o, h, a.shape.head_dim, factor, keep);
        if (column == 0) {
            row_of(a.lse, row)[head] = lse;
        }
    }
}

/// A block: one head of the queries of one tile, all their keys. The next keys and values are on
/// their way while those before are worked on.
template <int D>
__global__ void __launch_bounds__(threads) forward_kernel(ForwardArguments const a) {
    extern __shared__ float4 shared[];
    auto const base = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
    auto const tile = [&](int n) { return SharedTile<D>{base + n * SharedTile<D>::bytes}; };
    int const head = static_cast<int>(blockIdx.x % static_cast<unsigned>(a.shape.heads));
    Tile const t = a.work[blockIdx.x / static_cast<unsigned>(a.shape.heads)];
    int const head_dim = a.shape.head_dim;
    auto const keys = a.k.at(a.shape.kv_head_of(head), head_dim);
    auto const values = a.v.at(a.shape.kv_head_of(head), head_dim);
    auto const fetch = [&](int key, int stage) {
        int const count = min(tile_rows, t.kv_rows - key);
        copy_rows(tile(1 + 2 * stage), keys, std::int64_t{t.kv_row} + key, count, head_dim);
        copy_rows(tile(2 + 2 * stage), values, std::int64_t{t.kv_row} + key, count, head_dim);
    };

    copy_rows(tile(0), a.q.at(head, head_dim), t.q_row, t.q_rows, head_dim);
    fetch(0, 0);
    await_copies();
    LeftRows<D> q{tile(0), first_row_of_warp(), {}};
    q.keep();
    RunningSoftmax<D> rows;
    float const scale_log2 = a.shape.scale * log2_e;
    for (int key = 0, stage = 0; key < t.kv_rows; key += tile_rows, stage ^= 1) {
        if (key > 0) {
            await_copies();
        }
        if (key + tile_rows < t.kv_rows) {
            fetch(key + tile_rows, stage ^ 1);
        }
        Sums s[tile_rows / chunk];
        product_of_rows<D, tile_rows>(s, q, tile(1 + 2 * stage), 0);
        if (tiles::seen_from(t, key, first_row_of_warp()) < tile_rows) {
            hide(s, t, key);
        }
        rows.take(s, scale_log2);
        Fragment weights[tile_rows / 16];
        to_fragments<tile_rows>(weights, s);
        add_product<D, tile_rows>(rows.o, weights, tile(2 + 2 * stage), 0);
    }
    store_rows(a, t, head, rows);
}

/// Rows of 16-byte chunks.
bool of_chunks(Tensor t) {
    return t.dtype == DType::bf16 && divides_into(t, chunk);
}

}  // namespace

bool mma_suits(HeadShape shape, std::initializer_list<Tensor> inputs) {
    return shape.head_dim % chunk == 0 && shape.head_dim <= mma::max_head_dim &&
           std::all_of(inputs.begin(), inputs.end(), of_chunks);
}

void mma_attention(Device const& d, AttentionForward const& call, std::span<Segment const> segments,
                   Accumulate mode) {
    if (!mma_suits(call.shape, {call.q, call.k, call.v})) {
        reference_attention(d, call, segments, mode);
        return;
    }
    std::vector<Tile> const work = query_tiles(segments, tile_rows);
    if (work.empty()) {
        return;
    }
    ForwardArguments const arguments(d, call, work, mode);
    mma::with_width(call.shape.head_dim, [&](auto width) {
        constexpr int D = width.value;
        tiles::launch(d, forward_kernel<D>,
                      work.size() * static_cast<std::size_t>(call.shape.heads), threads,
                      5 * SharedTile<D>::bytes, arguments);
    });
}

}  // namespace cpstep::device
