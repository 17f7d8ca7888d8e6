// What kernels share: element types, 16-byte access, sums over a warp or a block, grids over rows.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "cuda/cuda_backend.hpp"
#include "cuda/device_ops.hpp"
#include "cuda/operands.hpp"
#include "cuda/tensor.hpp"

namespace cpstep {

template <>
struct dtype_of<__nv_bfloat16> {
    static constexpr DType value = DType::bf16;
};

namespace device {

using bf16 = __nv_bfloat16;

inline constexpr int warp_lanes = 32;
/// Widest access of a thread.
inline constexpr int access_bytes = 16;
/// Elements of T in the widest access.
template <class T>
inline constexpr int wide = access_bytes / static_cast<int>(sizeof(T));

/// f(T{}) with T the type that dtype names, float or bf16.
template <class F>
void with_type(DType dtype, F const& f) {
    if (dtype == DType::bf16) {
        f(bf16{});
        return;
    }
    require(dtype == DType::f32, ExitCode::internal, "the device computes with f32 and bf16 only");
    f(float{});
}

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

/// Every row of t divides into accesses of `elements` elements, each aligned to its size (to 16
/// bytes if it is larger).
inline bool divides_into(Tensor t, std::int64_t elements) {
    std::size_t const bytes = std::min<std::size_t>(
        access_bytes, static_cast<std::size_t>(elements) * element_bytes(t.dtype));
    return t.cols % elements == 0 && reinterpret_cast<std::uintptr_t>(t.data) % bytes == 0 &&
           (t.rows <= 1 ||
            static_cast<std::size_t>(t.stride) * element_bytes(t.dtype) % bytes == 0);
}

/// f(std::integral_constant) with the elements of a pack: `Widest`, or 1 unless the rows of all
/// these divide into such packs (absent ones do).
template <int Widest, class F>
void with_lanes(std::initializer_list<Tensor> operands, F const& f) {
    if (std::all_of(operands.begin(), operands.end(),
                    [](Tensor t) { return divides_into(t, Widest); })) {
        f(std::integral_constant<int, Widest>{});
    } else {
        f(std::integral_constant<int, 1>{});
    }
}

template <class T>
__device__ __forceinline__ T* row_of(Matrix<T> m, std::int64_t i) {
    return m.data + i * m.stride;
}

__device__ __forceinline__ float to_float(float value) {
    return value;
}
__device__ __forceinline__ float to_float(bf16 value) {
    return __bfloat162float(value);
}
/// Nearest, ties to even.
template <class T>
__device__ __forceinline__ T from_float(float value) {
    if constexpr (std::is_same_v<T, float>) {
        return value;
    } else {
        return __float2bfloat16_rn(value);
    }
}

/// One access of this many bytes, 16 at most.
template <int Bytes>
using Access = std::conditional_t<
    (Bytes >= access_bytes), uint4,
    std::conditional_t<Bytes == 8, uint2,
                       std::conditional_t<Bytes == 4, std::uint32_t, std::uint16_t>>>;

/// N elements of T that lie side by side, moved in accesses of up to 16 bytes.
template <class T, int N>
struct Pack;
template <int N>
struct Pack<float, N> {
    float value[N];
};
/// Two elements a register; to_float() gives the values.
template <int N>
struct Pack<bf16, N> {
    using Word = std::conditional_t<N == 1, std::uint16_t, std::uint32_t>;
    Word word[N * sizeof(bf16) / sizeof(Word)];
};

template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_pack(T const* from) {
    using Word = Access<N* static_cast<int>(sizeof(T))>;
    constexpr int words = N * sizeof(T) / sizeof(Word);
    static_assert(words * sizeof(Word) == sizeof(Pack<T, N>));
    Word raw[words];
#pragma unroll
    for (int i = 0; i < words; ++i) {
        raw[i] = reinterpret_cast<Word const*>(from)[i];
    }
    Pack<T, N> pack;
    memcpy(&pack, raw, sizeof(pack));
    return pack;
}

// Stores by instruction: given an assignment, the compiler may split them into single words.
__device__ __forceinline__ void store_word(uint4* to, uint4 word) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
                 : "memory");
}
__device__ __forceinline__ void store_word(uint2* to, uint2 word) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)),
                 "r"(word.x), "r"(word.y)
                 : "memory");
}
template <class Word>
__device__ __forceinline__ void store_word(Word* to, Word word) {
    *to = word;
}

/// To global memory.
template <int N, class T>
__device__ __forceinline__ void store_pack(T* to, Pack<T, N> const& pack) {
    using Word = Access<N* static_cast<int>(sizeof(T))>;
    constexpr int words = N * sizeof(T) / sizeof(Word);
    static_assert(words * sizeof(Word) == sizeof(Pack<T, N>));
    Word raw[words];
    memcpy(raw, &pack, sizeof(pack));
#pragma unroll
    for (int i = 0; i < words; ++i) {
        store_word(reinterpret_cast<Word*>(to) + i, raw[i]);
    }
}

template <int N>
__device__ __forceinline__ Pack<float, N> to_float(Pack<float, N> const& pack) {
    return pack;
}
template <int N>
__device__ __forceinline__ Pack<float, N> to_float(Pack<bf16, N> const& pack) {
    Pack<float, N> result;
    if constexpr (N == 1) {
        result.value[0] = __uint_as_float(std::uint32_t{pack.word[0]} << 16U);
    } else {
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            result.value[2 * i] = __uint_as_float(pack.word[i] << 16U);
            result.value[2 * i + 1] = __uint_as_float(pack.word[i] & 0xffff0000U);
        }
    }
    return result;
}

/// Each nearest, ties to even.
template <class T, int N>
__device__ __forceinline__ Pack<T, N> from_float(Pack<float, N> const& values) {
    if constexpr (std::is_same_v<T, float>) {
        return values;
    } else if constexpr (N == 1) {
        return {__bfloat16_as_ushort(__float2bfloat16_rn(values.value[0]))};
    } else {
        Pack<bf16, N> pack;
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            __nv_bfloat162 const pair =
                __floats2bfloat162_rn(values.value[2 * i], values.value[2 * i + 1]);
            memcpy(&pack.word[i], &pair, sizeof(pair));
        }
        return pack;
    }
}

/// values += terms.
template <int N>
__device__ __forceinline__ void add_to(Pack<float, N>& values, Pack<float, N> const& terms) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        values.value[i] += terms.value[i];
    }
}

/// The sum over a warp, the same bits in every lane. All 32 lanes call.
template <class S>
__device__ __forceinline__ S warp_sum(S value) {
#pragma unroll
    for (int distance = warp_lanes / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffU, value, distance);
    }
    return value;
}

/// The sum over a block, the same bits in every thread. All threads call; their count is a multiple
/// of 32, x alone counts them; `room` is shared memory for 32 values.
template <class S>
__device__ __forceinline__ S block_sum(S value, S* room) {
    int const lane = static_cast<int>(threadIdx.x) % warp_lanes;
    int const warp = static_cast<int>(threadIdx.x) / warp_lanes;
    value = warp_sum(value);
    if (lane == 0) {
        room[warp] = value;
    }
    __syncthreads();
    value = warp_sum(lane < static_cast<int>(blockDim.x) / warp_lanes ? room[lane] : S{0});
    __syncthreads();  // the room may be used again
    return value;
}

/// Threads of a block that works on single packs: enough blocks fit a multiprocessor to fill it.
inline constexpr int pack_threads = 256;

/// Blocks of x threads along a row and y rows.
struct Tiles {
    dim3 grid, block;
};

/// Tiles over rows x packs whose threads take `unroll` packs of a row each. Few threads idle: 608
/// packs, 2 a thread, make two tiles of 160 threads.
inline Tiles tiles_over(std::int64_t rows, std::int64_t packs, int unroll) {
    std::int64_t const least = ceil_div(packs, std::int64_t{pack_threads} * unroll);
    std::int64_t const wanted = ceil_div(packs, least * unroll);
    std::int64_t width = 1;
    if (wanted >= warp_lanes) {
        width = ceil_div(wanted, warp_lanes) * warp_lanes;
    } else {
        while (width < wanted) {
            width *= 2;
        }
    }
    std::int64_t const height = std::max<std::int64_t>(1, pack_threads / width);
    std::int64_t const across = ceil_div(packs, width * unroll);
    std::int64_t const down = std::min<std::int64_t>(ceil_div(rows, height), 65535);
    return {dim3(static_cast<unsigned>(across), static_cast<unsigned>(down)),
            dim3(static_cast<unsigned>(width), static_cast<unsigned>(height))};
}

/// op.store(row, column, op.load(row, column)) for each pack of Op::lanes columns. A thread loads
/// Op::unroll packs before it stores any, so that their latencies overlap.
template <class Op>
__global__ void __launch_bounds__(pack_threads)
    each_pack_kernel(Op const op, std::int64_t rows, std::int64_t cols) {
    std::int64_t const step = std::int64_t{blockDim.x} * Op::lanes;
    std::int64_t const first =
        std::int64_t{blockIdx.x} * Op::unroll * step + std::int64_t{threadIdx.x} * Op::lanes;
    std::int64_t const rows_at_once = std::int64_t{gridDim.y} * blockDim.y;
    for (std::int64_t row = std::int64_t{blockIdx.y} * blockDim.y + threadIdx.y; row < rows;
         row += rows_at_once) {
        typename Op::Loaded loaded[Op::unroll];
#pragma unroll
        for (int i = 0; i < Op::unroll; ++i) {
            if (first + i * step < cols) {
                loaded[i] = op.load(row, first + i * step);
            }
        }
#pragma unroll
        for (int i = 0; i < Op::unroll; ++i) {
            if (first + i * step < cols) {
                op.store(row, first + i * step, loaded[i]);
            }
        }
    }
}

/// Columns are a multiple of Op::lanes.
template <class Op>
void each_pack(Device const& d, std::int64_t rows, std::int64_t cols, Op const& op) {
    if (rows == 0 || cols == 0) {
        return;
    }
    Tiles const tiles = tiles_over(rows, cols / Op::lanes, Op::unroll);
    each_pack_kernel<<<tiles.grid, tiles.block, 0, d.stream>>>(op, rows, cols);
    CUDA_CHECK(cudaGetLastError());
}

}  // namespace device
}  // namespace cpstep
