// Products of fp32 tiles in shared memory, the inner loops of the reference attention, and how its
// kernels are launched. A block of
// 256 threads works on 64 x 64 scores; thread (ty, tx) of 16 x 16 holds 4 x 4 of them: rows
// ty + 16 i, columns tx + 16 j.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cuda/attention_device.hpp"
#include "cuda/kernel.cuh"
#include "cuda/softmax_merge.cuh"

namespace cpstep::device::tiles {

inline constexpr int tile_rows = 64;
inline constexpr int side = 16;  ///< threads along rows and along columns
inline constexpr int threads = side * side;
inline constexpr int each = tile_rows / side;  ///< rows, and columns, of a thread

/// Words between rows of a shared tile with D columns. The 4 words that pad it let eight threads
/// that read one float4 each, of neighbouring rows, meet all 32 banks.
template <int D>
inline constexpr int pitch = D + 4;
template <int D>
inline constexpr int tile_floats = tile_rows * pitch<D>;
inline constexpr int score_pitch = pitch<tile_rows>;
inline constexpr int score_floats = tile_floats<tile_rows>;

struct Place {
    int ty, tx;
};
__device__ __forceinline__ Place place() {
    return {static_cast<int>(threadIdx.x) / side, static_cast<int>(threadIdx.x) % side};
}

/// The sum and the maximum over the 16 threads of a row; the same bits in each.
__device__ __forceinline__ float row_sum(float value) {
#pragma unroll
    for (int distance = side / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffU, value, distance);
    }
    return value;
}
__device__ __forceinline__ float row_maximum(float value) {
#pragma unroll
    for (int distance = side / 2; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffU, value, distance));
    }
    return value;
}

/// A matrix that is read, from some head on; packs: its rows divide into aligned packs of 4.
template <class T>
struct HeadView {
    T const* data;
    std::int64_t stride;
    bool packs;

    __device__ __forceinline__ HeadView at(std::int64_t head, int head_dim) const {
        return {data + head * head_dim, stride, packs};
    }
};

/// tile = scale * rows [row, row + rows) of `from`; zero in further rows and columns >= head_dim,
/// which is a multiple of 4. All threads call.
template <int D, class T>
__device__ __forceinline__ void load_tile(float* tile, HeadView<T> from, std::int64_t row, int rows,
                                          int head_dim, float scale = 1.0F) {
    constexpr int packs = D / 4;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < tile_rows * packs; i += threads) {
        int const r = i / packs;
        int const c = i % packs * 4;
        float4 values{};
        if (r < rows && c < head_dim) {
            T const* const at = from.data + (row + r) * from.stride + c;
            if (from.packs) {
                auto const pack = to_float(load_pack<4>(at));
                values = {pack.value[0], pack.value[1], pack.value[2], pack.value[3]};
            } else {
                values = {to_float(at[0]), to_float(at[1]), to_float(at[2]), to_float(at[3])};
            }
        }
        values.x *= scale;
        values.y *= scale;
        values.z *= scale;
        values.w *= scale;
        *reinterpret_cast<float4*>(tile + r * pitch<D> + c) = values;
    }
}

/// A thread's 4 x 4 of a b^T: a and b are shared tiles of 64 rows and D columns.
template <int D>
__device__ __forceinline__ void product_of_rows(float (&out)[each][each], float const* a,
                                                float const* b) {
    auto const [ty, tx] = place();
#pragma unroll
    for (int i = 0; i < each; ++i) {
#pragma unroll
        for (int j = 0; j < each; ++j) {
            out[i][j] = 0.0F;
        }
    }
#pragma unroll 4
    for (int d = 0; d < D; d += 4) {
        float4 left[each];
        float4 right[each];
#pragma unroll
        for (int i = 0; i < each; ++i) {
            left[i] = *reinterpret_cast<float4 const*>(a + (ty + side * i) * pitch<D> + d);
            right[i] = *reinterpret_cast<float4 const*>(b + (tx + side * i) * pitch<D> + d);
        }
#pragma unroll
        for (int i = 0; i < each; ++i) {
#pragma unroll
            for (int j = 0; j < each; ++j) {
                out[i][j] = fmaf(left[i].x, right[j].x, out[i][j]);
                out[i][j] = fmaf(left[i].y, right[j].y, out[i][j]);
                out[i][j] = fmaf(left[i].z, right[j].z, out[i][j]);
                out[i][j] = fmaf(left[i].w, right[j].w, out[i][j]);
            }
        }
    }
}

/// A thread's part of a 64 x D sum: rows ty + 16 i, columns 64 n + 4 tx .. + 3.
template <int D>
struct RowSums {
    static constexpr int chunks = D / tile_rows;
    float4 value[each][chunks] = {};

    __device__ __forceinline__ void scale_row(int i, float factor) {
#pragma unroll
        for (int n = 0; n < chunks; ++n) {
            value[i][n].x *= factor;
            value[i][n].y *= factor;
            value[i][n].z *= factor;
            value[i][n].w *= factor;
        }
    }
};

/// sums += scores b: scores are a shared 64 x 64 tile, b a shared tile of 64 rows and D columns.
template <int D>
__device__ __forceinline__ void add_product(RowSums<D>& sums, float const* scores, float const* b) {
    auto const [ty, tx] = place();
#pragma unroll 2
    for (int k = 0; k < tile_rows; k += 4) {
        float weight[each][4];
#pragma unroll
        for (int i = 0; i < each; ++i) {
            auto const w =
                *reinterpret_cast<float4 const*>(scores + (ty + side * i) * score_pitch + k);
            weight[i][0] = w.x;
            weight[i][1] = w.y;
            weight[i][2] = w.z;
            weight[i][3] = w.w;
        }
#pragma unroll
        for (int n = 0; n < RowSums<D>::chunks; ++n) {
#pragma unroll
            for (int m = 0; m < 4; ++m) {
                auto const row = *reinterpret_cast<float4 const*>(b + (k + m) * pitch<D> +
                                                                  tile_rows * n + 4 * tx);
#pragma unroll
                for (int i = 0; i < each; ++i) {
                    float4& sum = sums.value[i][n];
                    sum.x = fmaf(weight[i][m], row.x, sum.x);
                    sum.y = fmaf(weight[i][m], row.y, sum.y);
                    sum.z = fmaf(weight[i][m], row.z, sum.z);
                    sum.w = fmaf(weight[i][m], row.w, sum.w);
                }
            }
        }
    }
}

/// What a kernel writes: f32, or else bf16.
struct Output {
    void* data;
    std::int64_t stride;
    bool f32;
    bool packs;

    __device__ __forceinline__ float* floats(std::int64_t row, std::int64_t col) const {
        return static_cast<float*>(data) + row * stride + col;
    }
    /// N columns from `col` on, a multiple of N; N is 2 or 4.
    template <int N>
    __device__ __forceinline__ Pack<float, N> read(std::int64_t row, std::int64_t col) const {
        float const* const at = floats(row, col);
        if (packs) {
            return load_pack<N>(at);
        }
        Pack<float, N> values;
#pragma unroll
        for (int c = 0; c < N; ++c) {
            values.value[c] = at[c];
        }
        return values;
    }
    template <int N>
    __device__ __forceinline__ void write(std::int64_t row, std::int64_t col,
                                          Pack<float, N> const& values) const {
        if (f32) {
            put(floats(row, col), values);
        } else {
            put(static_cast<bf16*>(data) + row * stride + col, values);
        }
    }

  private:
    template <class T, int N>
    __device__ __forceinline__ void put(T* at, Pack<float, N> const& values) const {
        if (packs) {
            store_pack(at, from_float<T>(values));
            return;
        }
#pragma unroll
        for (int c = 0; c < N; ++c) {
            at[c] = from_float<T>(values.value[c]);
        }
    }
};

/// A row of `out` becomes factor * sums + keep * what it was, or factor * sums alone where `keep`
/// is 0; then what it was is not read.
template <int D>
__device__ __forceinline__ void write_row(Output const& out, std::int64_t row, std::int64_t head,
                                          RowSums<D> const& sums, int i, int head_dim, float factor,
                                          float keep) {
    auto const [ty, tx] = place();
#pragma unroll
    for (int n = 0; n < RowSums<D>::chunks; ++n) {
        int const c = tile_rows * n + 4 * tx;
        if (c >= head_dim) {
            continue;
        }
        float4 const v = sums.value[i][n];
        Pack<float, 4> values{{v.x * factor, v.y * factor, v.z * factor, v.w * factor}};
        std::int64_t const col = head * head_dim + c;
        if (keep != 0.0F) {
            auto const old = out.read<4>(row, col);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                values.value[j] = fmaf(keep, old.value[j], values.value[j]);
            }
        }
        out.write(row, col, values);
    }
}

/// Heads of a call and 1 / sqrt(D).
struct Heads {
    int heads, kv_heads, head_dim;
    float scale;

    __device__ __forceinline__ int kv_head_of(int head) const { return head / (heads / kv_heads); }
};

/// Keys of the 64 from `key` on that query r of the tile sees; may be negative or beyond 64.
__device__ __forceinline__ int seen_from(Tile const& t, int key, int r) {
    return min(t.kv_rows, t.diagonal + r + 1) - key;
}

inline constexpr std::int64_t max_head_dim = 256;

template <class T>
HeadView<T> view_of(Tensor t) {
    return {static_cast<T const*>(t.data), t.stride, divides_into(t, 4)};
}
inline Output output_of(Tensor t) {
    return {t.data, t.stride, t.dtype == DType::f32, divides_into(t, 4)};
}
inline Heads heads_of(HeadShape shape) {
    require(shape.head_dim % 8 == 0 && shape.head_dim <= max_head_dim, ExitCode::input_data,
            "attention on a device takes heads of a multiple of 8 up to {} values, not {}",
            max_head_dim, shape.head_dim);
    return {static_cast<int>(shape.heads), static_cast<int>(shape.kv_heads),
            static_cast<int>(shape.head_dim),
            static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)))};
}

/// Adds items made of 32-bit words only; where they begin.
template <class Item>
std::size_t append(std::vector<std::int32_t>& words, std::vector<Item> const& items) {
    static_assert(sizeof(Item) % sizeof(std::int32_t) == 0);
    std::size_t const begin = words.size();
    words.resize(begin + items.size() * sizeof(Item) / sizeof(std::int32_t));
    if (!items.empty()) {
        std::memcpy(words.data() + begin, items.data(), items.size() * sizeof(Item));
    }
    return begin;
}
template <class Item>
std::vector<std::int32_t> words_of(std::vector<Item> const& items) {
    std::vector<std::int32_t> words;
    append(words, items);
    return words;
}

/// What a forward kernel is given.
template <class T>
struct ForwardArguments {
    Heads shape;
    HeadView<T> q, k, v;
    Output o;
    Matrix<float> lse;
    Tile const* work;
    bool merge;
    MergeFault fault;

    ForwardArguments(Device const& d, AttentionForward const& call, std::vector<Tile> const& tiles,
                     Accumulate mode)
        : shape(heads_of(call.shape)),
          q(view_of<T>(call.q)),
          k(view_of<T>(call.k)),
          v(view_of<T>(call.v)),
          o(output_of(call.o)),
          lse(call.lse.as<float>()),
          work(reinterpret_cast<Tile const*>(d.tables->put(words_of(tiles)))),
          merge(mode == Accumulate::merge),
          fault(planted_merge_fault()) {}
};

/// What the backward kernels are given.
template <class T>
struct BackwardArguments {
    Heads shape;
    HeadView<T> q, k, v, d_o;
    Matrix<float> lse;
    BackwardWork work;
    Output dq, dk_by_head, dv_by_head;
    int key_rows;
    bool add_queries;

    BackwardArguments(AttentionBackward const& call, BackwardWork const& w, Accumulate queries)
        : shape(heads_of(call.shape)),
          q(view_of<T>(call.q)),
          k(view_of<T>(call.k)),
          v(view_of<T>(call.v)),
          d_o(view_of<T>(call.d_o)),
          lse(call.lse.as<float>()),
          work(w),
          dq(output_of(call.dq)),
          dk_by_head(output_of(w.dk_by_head)),
          dv_by_head(output_of(w.dv_by_head)),
          key_rows(static_cast<int>(call.k.rows)),
          add_queries(queries == Accumulate::merge) {}
};

/// f(std::integral_constant) with the columns of a tile that holds a head.
template <class F>
void with_width(std::int64_t head_dim, F const& f) {
    if (head_dim <= 64) {
        f(std::integral_constant<int, 64>{});
    } else if (head_dim <= 128) {
        f(std::integral_constant<int, 128>{});
    } else {
        f(std::integral_constant<int, 256>{});
    }
}

/// Nothing for no blocks.
template <class Arguments>
void launch(Device const& d, void (*kernel)(Arguments), std::size_t blocks, int block_threads,
            std::size_t shared_bytes, Arguments const& arguments) {
    if (blocks == 0) {
        return;
    }
    int device = 0;
    int most = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    require(shared_bytes <= static_cast<std::size_t>(most), ExitCode::environment,
            "attention with heads of {} values takes {} bytes of shared memory a block, this "
            "device has {}",
            arguments.shape.head_dim, shared_bytes, most);
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)));
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(block_threads), shared_bytes,
             d.stream>>>(arguments);
    CUDA_CHECK(cudaGetLastError());
}

}  // namespace cpstep::device::tiles
