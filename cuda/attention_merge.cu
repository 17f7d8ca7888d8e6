// What the attention backends do to rows between their own kernels: merging a partial softmax,
// putting or adding partial gradients, rows without keys.
#include <algorithm>
#include <cstdint>

#include "cuda/attention_device.hpp"
#include "cuda/kernel.cuh"
#include "cuda/softmax_merge.cuh"

namespace cpstep::device {
namespace {

/// Row ranges as an argument of a kernel; one grid.z each. 1 KiB, so that launching stays cheap.
struct RangeList {
    static constexpr int capacity = 64;
    struct Range {
        std::int64_t begin, count;
    };
    Range range[capacity];
};

/// f(list, ranges in it, rows of the longest) for all ranges, `capacity` at a time.
template <class F>
void each_list(std::span<RowRange const> ranges, F const& f) {
    for (std::size_t first = 0; first < ranges.size(); first += RangeList::capacity) {
        auto const some = ranges.subspan(
            first, std::min<std::size_t>(RangeList::capacity, ranges.size() - first));
        RangeList list{};
        std::int64_t longest = 0;
        for (std::size_t i = 0; i < some.size(); ++i) {
            list.range[i] = {some[i].begin, some[i].count};
            longest = std::max(longest, some[i].count);
        }
        if (longest > 0) {
            f(list, static_cast<unsigned>(some.size()), longest);
        }
    }
}

/// dst = part or dst += part. A thread a pack of columns.
template <class To, class From, int Lanes>
__global__ void __launch_bounds__(pack_threads)
    put_rows_kernel(Matrix<To> const dst, Matrix<From> const part, RangeList const list,
                    bool const add) {
    auto const range = list.range[blockIdx.z];
    std::int64_t const col = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * Lanes;
    if (col >= dst.cols) {
        return;
    }
    std::int64_t const rows_at_once = std::int64_t{gridDim.y} * blockDim.y;
    for (std::int64_t i = std::int64_t{blockIdx.y} * blockDim.y + threadIdx.y; i < range.count;
         i += rows_at_once) {
        std::int64_t const row = range.begin + i;
        Pack<float, Lanes> values = to_float(load_pack<Lanes>(row_of(part, row) + col));
        To* const to = row_of(dst, row) + col;
        if (add) {
            add_to(values, to_float(load_pack<Lanes>(to)));
        }
        store_pack(to, from_float<To>(values));
    }
}

/// Warps of a block in kernels where a warp takes one head of one row.
constexpr int row_warps = 8;

/// The head of a row that a warp takes: rows of a range, then heads.
struct RowHead {
    std::int64_t row;
    int head;
    bool inside;
};
__device__ __forceinline__ RowHead row_head_of_warp(RangeList const& list, int heads) {
    auto const range = list.range[blockIdx.z];
    std::int64_t const item =
        std::int64_t{blockIdx.x} * row_warps + static_cast<int>(threadIdx.x) / warp_lanes;
    return {range.begin + item / heads, static_cast<int>(item % heads), item < range.count * heads};
}
dim3 row_head_grid(std::int64_t rows, std::int64_t heads, unsigned ranges) {
    return {static_cast<unsigned>(ceil_div(rows * heads, row_warps)), 1, ranges};
}

/// A warp reads lse before its lanes change o, and lane 0 writes it after.
template <class From, int Lanes>
__global__ void __launch_bounds__(row_warps* warp_lanes)
    merge_kernel(Matrix<float> const o, Matrix<float> const lse, Matrix<From> const part_o,
                 Matrix<float> const part_lse, RangeList const list, MergeFault const fault) {
    auto const [row, head, inside] = row_head_of_warp(list, static_cast<int>(lse.cols));
    if (!inside) {
        return;
    }
    int const lane = static_cast<int>(threadIdx.x) % warp_lanes;
    int const head_dim = static_cast<int>(o.cols / lse.cols);
    float* const to_lse = row_of(lse, row) + head;
    float const before = *to_lse;
    float const part = row_of(part_lse, row)[head];
    __syncwarp();
    bool const first = before == no_key;
    bool const nothing = part == no_key;
    MergeWeights const w = first || nothing ? MergeWeights{} : merge_weights(before, part, fault);
    float* const to = row_of(o, row) + std::int64_t{head} * head_dim;
    From const* const from = row_of(part_o, row) + std::int64_t{head} * head_dim;
    for (int c = lane * Lanes; c < head_dim; c += warp_lanes * Lanes) {
        // What stands under lse = -inf is selected away: it may be NaN.
        Pack<float, Lanes> values = to_float(load_pack<Lanes>(from + c));
        Pack<float, Lanes> const old = load_pack<Lanes>(to + c);
#pragma unroll
        for (int i = 0; i < Lanes; ++i) {
            float const merged = w.keep * old.value[i] + w.take * values.value[i];
            float const alone = nothing ? (first ? 0.0F : old.value[i]) : values.value[i];
            values.value[i] = first || nothing ? alone : merged;
        }
        store_pack(to + c, values);
    }
    if (lane == 0) {
        *to_lse = nothing ? before : (first ? part : w.lse);
    }
}

template <class T>
__global__ void __launch_bounds__(row_warps* warp_lanes)
    no_keys_kernel(Matrix<T> const o, Matrix<float> const lse, RangeList const list,
                   bool const overwrite) {
    auto const [row, head, inside] = row_head_of_warp(list, static_cast<int>(lse.cols));
    if (!inside) {
        return;
    }
    int const lane = static_cast<int>(threadIdx.x) % warp_lanes;
    int const head_dim = static_cast<int>(o.cols / lse.cols);
    float* const to_lse = row_of(lse, row) + head;
    if (!overwrite && *to_lse != no_key) {
        return;
    }
    T* const to = row_of(o, row) + std::int64_t{head} * head_dim;
    for (int c = lane; c < head_dim; c += warp_lanes) {
        to[c] = from_float<T>(0.0F);
    }
    if (lane == 0) {
        *to_lse = no_key;
    }
}

__global__ void __launch_bounds__(pack_threads)
    transpose_kernel(Matrix<float> const dst, Matrix<float> const src) {
    std::int64_t const i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i < dst.rows * dst.cols) {
        row_of(dst, i / dst.cols)[i % dst.cols] = row_of(src, i % dst.cols)[i / dst.cols];
    }
}

}  // namespace

void merge_softmax(Device const& d, Tensor o, Tensor lse, Tensor part_o, Tensor part_lse,
                   std::span<RowRange const> ranges) {
    require(same_shape(o, part_o) && same_shape(lse, part_lse) && lse.cols > 0 &&
                o.cols % (2 * lse.cols) == 0,
            ExitCode::internal, "merge of softmax parts: o ({},{}) and ({},{}), {} heads", o.rows,
            o.cols, part_o.rows, part_o.cols, lse.cols);
    MergeFault const fault = planted_merge_fault();
    each_list(ranges, [&](RangeList const& list, unsigned count, std::int64_t longest) {
        with_type(part_o.dtype, [&](auto type) {
            using From = decltype(type);
            with_lanes<2>({o, part_o}, [&](auto lanes) {
                merge_kernel<From, lanes.value>
                    <<<row_head_grid(longest, lse.cols, count), row_warps * warp_lanes, 0,
                       d.stream>>>(o.as<float>(), lse.as<float>(), part_o.as<From>(),
                                   part_lse.as<float>(), list, fault);
                CUDA_CHECK(cudaGetLastError());
            });
        });
    });
}

void put_rows(Device const& d, Tensor dst, Tensor part, std::span<RowRange const> ranges,
              Accumulate mode) {
    require(same_shape(dst, part), ExitCode::internal, "partial rows ({},{}) for ({},{})",
            part.rows, part.cols, dst.rows, dst.cols);
    each_list(ranges, [&](RangeList const& list, unsigned count, std::int64_t longest) {
        with_type(dst.dtype, [&](auto to) {
            with_type(part.dtype, [&](auto from) {
                using To = decltype(to);
                using From = decltype(from);
                with_lanes<4>({dst, part}, [&](auto lanes) {
                    Tiles tiles = tiles_over(longest, dst.cols / lanes.value, 1);
                    tiles.grid.z = count;
                    put_rows_kernel<To, From, lanes.value>
                        <<<tiles.grid, tiles.block, 0, d.stream>>>(dst.as<To>(), part.as<From>(),
                                                                   list, mode == Accumulate::merge);
                    CUDA_CHECK(cudaGetLastError());
                });
            });
        });
    });
}

void put_no_keys(Device const& d, Tensor o, Tensor lse, std::span<RowRange const> ranges,
                 Accumulate mode) {
    each_list(ranges, [&](RangeList const& list, unsigned count, std::int64_t longest) {
        with_type(o.dtype, [&](auto type) {
            using T = decltype(type);
            no_keys_kernel<T>
                <<<row_head_grid(longest, lse.cols, count), row_warps * warp_lanes, 0, d.stream>>>(
                    o.as<T>(), lse.as<float>(), list, mode == Accumulate::overwrite);
            CUDA_CHECK(cudaGetLastError());
        });
    });
}

void zero_rows(Device const& d, Tensor dst, std::span<RowRange const> ranges) {
    for (RowRange const range : ranges) {
        zero(d, dst.row_range(range.begin, range.count));
    }
}

void transpose(Device const& d, Tensor dst, Tensor src) {
    require(dst.rows == src.cols && dst.cols == src.rows, ExitCode::internal,
            "transpose of ({},{}) to ({},{})", src.rows, src.cols, dst.rows, dst.cols);
    if (dst.elements() == 0) {
        return;
    }
    auto const blocks = static_cast<unsigned>(ceil_div(dst.elements(), pack_threads));
    transpose_kernel<<<blocks, pack_threads, 0, d.stream>>>(dst.as<float>(), src.as<float>());
    CUDA_CHECK(cudaGetLastError());
}

}  // namespace cpstep::device
