// What the backward passes of our attention kernels share: tables of work, delta before, and after
// them the sum of what the query heads of a group give to dk and dv, in their order: no atomics.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/attention_device.hpp"
#include "cuda/attention_tiles.cuh"
#include "cuda/kernel.cuh"

namespace cpstep::device {
namespace {

using namespace tiles;

template <class T>
struct DeltaArguments {
    Heads shape;
    HeadView<T> o, d_o;
    Matrix<float> delta;
    Tile const* queries;
};

template <class T>
__device__ __forceinline__ Pack<float, 4> four_of(HeadView<T> from, std::int64_t row, int c) {
    T const* const at = from.data + row * from.stride + c;
    if (from.packs) {
        return to_float(load_pack<4>(at));
    }
    return {{to_float(at[0]), to_float(at[1]), to_float(at[2]), to_float(at[3])}};
}

/// delta of one head of the queries of one tile. 16 threads a row.
template <class T>
__global__ void __launch_bounds__(threads) delta_kernel(DeltaArguments<T> const a) {
    int const head = static_cast<int>(blockIdx.x % static_cast<unsigned>(a.shape.heads));
    Tile const t = a.queries[blockIdx.x / static_cast<unsigned>(a.shape.heads)];
    auto const o = a.o.at(head, a.shape.head_dim);
    auto const d_o = a.d_o.at(head, a.shape.head_dim);
    auto const [ty, tx] = place();
#pragma unroll
    for (int i = 0; i < each; ++i) {
        int const r = ty + side * i;
        std::int64_t const row = std::int64_t{t.q_row} + r;
        float sum = 0.0F;
        for (int c = 4 * tx; r < t.q_rows && c < a.shape.head_dim; c += 4 * side) {
            auto const left = four_of(o, row, c);
            auto const right = four_of(d_o, row, c);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                sum = fmaf(left.value[j], right.value[j], sum);
            }
        }
        sum = row_sum(sum);
        if (tx == 0 && r < t.q_rows) {
            row_of(a.delta, row)[head] = sum;
        }
    }
}

struct SumArguments {
    Heads shape;
    BackwardWork work;
    Output dk, dv, dk_by_head, dv_by_head;
    bool add;
};

/// Four columns of a row of `to`: the sum of those of `heads` heads of `by_head`, from `from_col`
/// on, and of what `to` was if `add`.
__device__ __forceinline__ void put_sum_of_heads(Output const& to, std::int64_t row,
                                                 std::int64_t col, Output const& by_head,
                                                 std::int64_t from_row, std::int64_t from_col,
                                                 int heads, int head_dim, bool add) {
    auto sum = add ? to.read<4>(row, col) : Pack<float, 4>{};
    for (int h = 0; h < heads; ++h) {
        add_to(sum, by_head.read<4>(from_row, from_col + std::int64_t{h} * head_dim));
    }
    to.write(row, col, sum);
}

/// dk and dv of one key head of those of 16 keys of one tile that a part names.
__global__ void __launch_bounds__(threads) sum_heads_kernel(SumArguments const a) {
    int const first_key = static_cast<int>(blockIdx.x % each) * side;
    int const kv_head =
        static_cast<int>(blockIdx.x / each % static_cast<unsigned>(a.shape.kv_heads));
    int const index = static_cast<int>(blockIdx.x / each / static_cast<unsigned>(a.shape.kv_heads));
    KeyTile const tile = a.work.keys[index];
    int const head_dim = a.shape.head_dim;
    int const group = a.shape.heads / a.shape.kv_heads;
    int const packs = head_dim / 4;
    for (int i = static_cast<int>(threadIdx.x); i < side * packs; i += threads) {
        int const key = first_key + i / packs;
        bool named = false;
        for (int n = 0; n < tile.parts; ++n) {
            Tile const t = a.work.parts[tile.first_part + n];
            int const first = t.kv_row - tile.row;
            named = named || (key >= first && key < first + t.kv_rows);
        }
        if (!named) {
            continue;
        }
        std::int64_t const row = std::int64_t{tile.row} + key;
        std::int64_t const col = std::int64_t{kv_head} * head_dim + i % packs * 4;
        std::int64_t const from_row = std::int64_t{index} * tile_rows + key;
        std::int64_t const from_col = std::int64_t{kv_head} * group * head_dim + i % packs * 4;
        put_sum_of_heads(a.dk, row, col, a.dk_by_head, from_row, from_col, group, head_dim, a.add);
        put_sum_of_heads(a.dv, row, col, a.dv_by_head, from_row, from_col, group, head_dim, a.add);
    }
}

}  // namespace

BackwardWork begin_backward(Device const& d, AttentionBackward const& call,
                            std::span<Segment const> segments) {
    Heads const shape = heads_of(call.shape);
    std::vector<Tile> const queries = query_tiles(segments, tile_rows);
    KeyTiles const keys = key_tiles(segments, tile_rows);
    std::vector<std::int32_t> words;
    append(words, queries);
    std::size_t const tiles_at = append(words, keys.tiles);
    std::size_t const parts_at = append(words, keys.parts);
    std::int32_t const* const table = d.tables->put(words);
    auto const heads = static_cast<std::size_t>(shape.heads);
    auto* const delta = static_cast<float*>(d.scratch->at_least(
        std::max<std::size_t>(static_cast<std::size_t>(call.q.rows) * heads, 1) * sizeof(float),
        "attention delta"));
    std::int64_t const width = call.q.cols;
    auto const by_head_rows = static_cast<std::int64_t>(keys.tiles.size()) * tile_rows;
    Tensor by_head{nullptr, DType::f32, 2 * by_head_rows, width, width};
    by_head.data = d.scratch->at_least(std::max<std::size_t>(by_head.bytes(), 1),
                                       "attention key gradients by head");
    BackwardWork const work{queries.size(),
                            keys.tiles.size(),
                            reinterpret_cast<Tile const*>(table),
                            reinterpret_cast<KeyTile const*>(table + tiles_at),
                            reinterpret_cast<Tile const*>(table + parts_at),
                            {delta, call.q.rows, shape.heads, shape.heads},
                            by_head.row_range(0, by_head_rows),
                            by_head.row_range(by_head_rows, by_head_rows)};
    with_type(call.q.dtype, [&](auto type) {
        using T = decltype(type);
        launch(d, delta_kernel<T>, work.query_tiles * heads, threads, 0,
               DeltaArguments<T>{shape, view_of<T>(call.o), view_of<T>(call.d_o), work.delta,
                                 work.queries});
    });
    return work;
}

void sum_heads(Device const& d, AttentionBackward const& call, BackwardWork const& work,
               Accumulate mode) {
    launch(d, sum_heads_kernel,
           work.key_tiles * static_cast<std::size_t>(call.shape.kv_heads) * each, threads, 0,
           SumArguments{heads_of(call.shape), work, output_of(call.dk), output_of(call.dv),
                        output_of(work.dk_by_head), output_of(work.dv_by_head),
                        mode == Accumulate::merge});
}

std::size_t own_scratch_bytes(HeadShape shape, std::int64_t q_rows, std::int64_t kv_rows) {
    // Tables: tiles of full length, one part each. dk and dv of every query head.
    std::int64_t const key_tiles = ceil_div(kv_rows, tile_rows);
    std::int64_t const words = ceil_div(q_rows, tile_rows) * 5 + key_tiles * 8;
    std::int64_t const by_head = 2 * key_tiles * tile_rows * shape.heads * shape.head_dim;
    return static_cast<std::size_t>(4 * (q_rows * shape.heads + words + by_head));
}

}  // namespace cpstep::device
