// Products of bf16 tiles in shared memory on tensor cores (mma.sync, sm_80 and later): the inner
// loops of `mma` attention. A block of 4 warps works on 64 rows of the left operand, 16 a warp.
// Lane 4 g + t of a warp holds, of 16 x 8 sums, columns 2 t and 2 t + 1 of rows g and g + 8.
#pragma once

#include <cstdint>

#include "cuda/attention_tiles.cuh"
#include "cuda/kernel.cuh"

namespace cpstep::device::mma {

using tiles::HeadView;
using tiles::tile_rows;

inline constexpr int warps = 4;
inline constexpr int threads = warps * warp_lanes;
inline constexpr int warp_rows = tile_rows / warps;
inline constexpr int chunk = 8;  ///< bf16 of a 16-byte access, columns of the narrowest product

/// Left operand of one product, 16 x 16.
struct Fragment {
    std::uint32_t word[4];
};
/// Sums of 16 x 8: columns 2 t and 2 t + 1 of row g, then of row g + 8.
using Sums = float[4];

struct Lane {
    int g, t;
};
__device__ __forceinline__ Lane lane() {
    int const l = static_cast<int>(threadIdx.x) % warp_lanes;
    return {l / 4, l % 4};
}
__device__ __forceinline__ int first_row_of_warp() {
    return static_cast<int>(threadIdx.x) / warp_lanes * warp_rows;
}

/// The sum and the maximum over the four lanes of a row; the same bits in each.
__device__ __forceinline__ float row_sum(float value) {
    value += __shfl_xor_sync(0xffffffffU, value, 1);
    return value + __shfl_xor_sync(0xffffffffU, value, 2);
}
__device__ __forceinline__ float row_maximum(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffU, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffU, value, 2));
}

/// 2^x to 2 ulp; 0 for -inf.
__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/// 64 rows of D columns of bf16 in shared memory. The 16-byte chunks of a row are permuted by its
/// number, so that 8 rows of a column of chunks lie in different banks.
template <int D>
struct SharedTile {
    std::uint32_t base;
    static constexpr int bytes = tile_rows * D * static_cast<int>(sizeof(bf16));

    __device__ __forceinline__ std::uint32_t address(int row, int column_chunk) const {
        return base + static_cast<std::uint32_t>(row * D * static_cast<int>(sizeof(bf16)) +
                                                 ((column_chunk ^ (row & 7)) * access_bytes));
    }
};

/// Starts a copy of 16 or 4 bytes to shared memory, of zeros unless `inside`.
__device__ __forceinline__ void copy_16(std::uint32_t to, void const* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "r"(inside ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void copy_4(std::uint32_t to, void const* from, bool inside) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "r"(inside ? 4 : 0)
                 : "memory");
}
/// Copies that this thread has started are there; then those of all threads of the block.
__device__ __forceinline__ void await_copies() {
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
}

/// Starts a copy of rows [row, row + rows) of `from`; zeros in further rows and columns >=
/// head_dim, which is a multiple of 8. All threads call.
template <int D>
__device__ __forceinline__ void copy_rows(SharedTile<D> tile, HeadView<bf16> from, std::int64_t row,
                                          int rows, int head_dim) {
    constexpr int chunks = D / chunk;
#pragma unroll
    for (int n = 0; n < tile_rows * chunks / threads; ++n) {
        int const i = n * threads + static_cast<int>(threadIdx.x);
        int const r = i / chunks;
        int const c = i % chunks;
        bool const inside = r < rows && c * chunk < head_dim;
        copy_16(tile.address(r, c), from.data + (inside ? (row + r) * from.stride + c * chunk : 0),
                inside);
    }
}

/// Four 8 x 8 matrices, whose rows the lanes point at, 8 lanes a matrix.
__device__ __forceinline__ Fragment load_matrices(std::uint32_t row) {
    Fragment f;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f.word[0]), "=r"(f.word[1]), "=r"(f.word[2]), "=r"(f.word[3])
                 : "r"(row)
                 : "memory");
    return f;
}
__device__ __forceinline__ Fragment load_transposed(std::uint32_t row) {
    Fragment f;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f.word[0]), "=r"(f.word[1]), "=r"(f.word[2]), "=r"(f.word[3])
                 : "r"(row)
                 : "memory");
    return f;
}

/// sums (16 x 8) += left (16 x 16) right (16 x 8).
__device__ __forceinline__ void multiply(Sums& sums, Fragment const& left, std::uint32_t right_0,
                                         std::uint32_t right_8) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left.word[0]), "r"(left.word[1]), "r"(left.word[2]), "r"(left.word[3]), "r"(right_0),
          "r"(right_8));
}

/// 16 rows of a tile as left operands; kept in registers where heads are narrow.
template <int D>
struct LeftRows {
    static constexpr bool kept = D <= 64;
    SharedTile<D> tile;
    int row;
    Fragment fragment[kept ? D / 16 : 1];

    __device__ __forceinline__ Fragment read(int k) const {
        int const l = static_cast<int>(threadIdx.x) % warp_lanes;
        return load_matrices(tile.address(row + l % 16, 2 * k + l / 16));
    }
    /// Call when the tile is there.
    __device__ __forceinline__ void keep() {
        if constexpr (kept) {
#pragma unroll
            for (int k = 0; k < D / 16; ++k) {
                fragment[k] = read(k);
            }
        }
    }
    __device__ __forceinline__ Fragment at(int k) const {
        if constexpr (kept) {
            return fragment[k];
        } else {
            return read(k);
        }
    }
};

/// out (16 x N) = left b^T, b: rows [row, row + N) of a tile.
template <int D, int N>
__device__ __forceinline__ void product_of_rows(Sums (&out)[N / chunk], LeftRows<D> const& left,
                                                SharedTile<D> b, int row) {
    int const l = static_cast<int>(threadIdx.x) % warp_lanes;
#pragma unroll
    for (auto& sums : out) {
        sums[0] = sums[1] = sums[2] = sums[3] = 0.0F;
    }
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
        Fragment const a = left.at(k);
#pragma unroll
        for (int n = 0; n < N / 16; ++n) {
            Fragment const right =
                load_matrices(b.address(row + 16 * n + l % 8 + l / 16 * 8, 2 * k + l / 8 % 2));
            multiply(out[2 * n], a, right.word[0], right.word[1]);
            multiply(out[2 * n + 1], a, right.word[2], right.word[3]);
        }
    }
}

/// sums (16 x D) += weights (16 x K) b, b: rows [row, row + K) of a tile.
template <int D, int K>
__device__ __forceinline__ void add_product(Sums (&sums)[D / chunk],
                                            Fragment const (&weights)[K / 16], SharedTile<D> b,
                                            int row) {
    int const l = static_cast<int>(threadIdx.x) % warp_lanes;
#pragma unroll
    for (int k = 0; k < K / 16; ++k) {
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
            Fragment const right =
                load_transposed(b.address(row + 16 * k + l % 16, 2 * n + l / 16));
            multiply(sums[2 * n], weights[k], right.word[0], right.word[1]);
            multiply(sums[2 * n + 1], weights[k], right.word[2], right.word[3]);
        }
    }
}

__device__ __forceinline__ std::uint32_t pair_of(float low, float high) {
    __nv_bfloat162 const pair = __floats2bfloat162_rn(low, high);
    std::uint32_t word;
    memcpy(&word, &pair, sizeof(word));
    return word;
}
/// Sums of 16 x N, rounded to bf16, as left operands.
template <int N>
__device__ __forceinline__ void to_fragments(Fragment (&out)[N / 16], Sums const (&x)[N / chunk]) {
#pragma unroll
    for (int k = 0; k < N / 16; ++k) {
        out[k] = {{pair_of(x[2 * k][0], x[2 * k][1]), pair_of(x[2 * k][2], x[2 * k][3]),
                   pair_of(x[2 * k + 1][0], x[2 * k + 1][1]),
                   pair_of(x[2 * k + 1][2], x[2 * k + 1][3])}};
    }
}

/// Row g + 8 h of 16 x D sums to a row of `out`: factor * sums + keep * what it was; with keep 0
/// what it was is not read.
template <int D>
__device__ __forceinline__ void write_row(tiles::Output const& out, std::int64_t row,
                                          std::int64_t head, Sums const (&sums)[D / chunk], int h,
                                          int head_dim, float factor, float keep) {
#pragma unroll
    for (int n = 0; n < D / chunk; ++n) {
        int const c = n * chunk + 2 * lane().t;
        if (c < head_dim) {
            Pack<float, 2> values{{sums[n][2 * h] * factor, sums[n][2 * h + 1] * factor}};
            std::int64_t const col = head * head_dim + c;
            if (keep != 0.0F) {
                auto const old = out.read<2>(row, col);
                values = {{fmaf(keep, old.value[0], values.value[0]),
                           fmaf(keep, old.value[1], values.value[1])}};
            }
            out.write(row, col, values);
        }
    }
}

/// f(std::integral_constant) with the columns of a tile that holds a head.
template <class F>
void with_width(std::int64_t head_dim, F const& f) {
    if (head_dim <= 64) {
        f(std::integral_constant<int, 64>{});
    } else {
        f(std::integral_constant<int, 128>{});
    }
}
inline constexpr std::int64_t max_head_dim = 128;

inline constexpr float log2_e = 1.4426950408889634F;

}  // namespace cpstep::device::mma
