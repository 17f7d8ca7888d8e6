// RMS norm in one pass over memory: a warp or a block holds a row in registers between the sum over
// it and the use of that sum. y_c = x_c r w_c, r = 1/sqrt(mean_c x_c^2 + eps); formulas: norm.cpp
#include <cmath>
#include <cstdint>

#include "cuda/kernel.cuh"

namespace cpstep::device {
namespace {

/// Of a block that shares one row; at 128 registers a multiprocessor holds 512 threads.
constexpr int most_threads = 512;
/// Rows of a block whose rows are a warp each.
constexpr int rows_of_warps = 8;
/// Packs of a row that a thread holds: 64 bytes of each operand, or 16 elements one by one.
template <int Lanes>
constexpr int held_packs = Lanes > 1 ? 4 : 16;

/// x threads share a row, y rows make a block; y is 1 unless a row is a single warp's.
template <int Lanes>
dim3 block_for(std::int64_t cols) {
    std::int64_t const warps = ceil_div(cols, std::int64_t{warp_lanes} * held_packs<Lanes> * Lanes);
    require(warps * warp_lanes <= most_threads, ExitCode::input_data,
            "a hidden size of {} is more than the {} that the norm on a device takes", cols,
            most_threads * held_packs<Lanes> * Lanes);
    return dim3(static_cast<unsigned>(warps * warp_lanes), warps == 1 ? rows_of_warps : 1);
}

/// The sum over the threads of a row.
__device__ __forceinline__ float row_sum(float value, float* room) {
    return blockDim.x == warp_lanes ? warp_sum(value) : block_sum(value, room);
}

/// First column of the thread's pack p.
template <int Lanes>
__device__ __forceinline__ int column_of(int p) {
    return (static_cast<int>(threadIdx.x) + p * static_cast<int>(blockDim.x)) * Lanes;
}

/// The thread's packs of a row; those past the row keep what they were.
template <class T, int Lanes, int Packs>
__device__ __forceinline__ void load_row(Pack<T, Lanes> (&held)[Packs], T const* row,
                                         std::int64_t cols) {
#pragma unroll
    for (int p = 0; p < Packs; ++p) {
        if (column_of<Lanes>(p) < cols) {
            held[p] = load_pack<Lanes>(row + column_of<Lanes>(p));
        }
    }
}

/// held += delta, rounded to T, which x becomes.
template <class T, int Lanes, int Packs>
__device__ __forceinline__ void add_delta(Pack<T, Lanes> (&held)[Packs], T* x, T const* delta,
                                          std::int64_t cols) {
    Pack<T, Lanes> terms[Packs];
    load_row(terms, delta, cols);
#pragma unroll
    for (int p = 0; p < Packs; ++p) {
        if (column_of<Lanes>(p) < cols) {
            Pack<float, Lanes> sum = to_float(held[p]);
            add_to(sum, to_float(terms[p]));
            held[p] = from_float<T>(sum);
            store_pack(x + column_of<Lanes>(p), held[p]);
        }
    }
}

/// A row for each threadIdx.y. Each element is read before its own thread writes it, so x may be
/// `from`.
template <class T, int Lanes>
__global__ void __launch_bounds__(most_threads)
    forward_kernel(Matrix<T> y, Matrix<float> rstd, Matrix<T> x, Matrix<T> from, Matrix<T> delta,
                   T const* w, float eps) {
    constexpr int packs = held_packs<Lanes>;
    __shared__ float room[warp_lanes];
    std::int64_t const row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
    if (row >= x.rows) {
        return;  // a whole warp, and only where no row takes more than one
    }
    Pack<T, Lanes> held[packs];
    load_row(held, row_of(from, row), x.cols);
    if (delta.data != nullptr) {
        add_delta(held, row_of(x, row), row_of(delta, row), x.cols);
    }
    float square = 0.0F;
#pragma unroll
    for (int p = 0; p < packs; ++p) {
        if (column_of<Lanes>(p) < x.cols) {
            Pack<float, Lanes> const value = to_float(held[p]);
#pragma unroll
            for (int i = 0; i < Lanes; ++i) {
                square = fmaf(value.value[i], value.value[i], square);
            }
        }
    }
    float const mean = row_sum(square, room) / static_cast<float>(x.cols);
    float const r = 1.0F / sqrtf(mean + eps);
    if (threadIdx.x == 0) {
        *row_of(rstd, row) = r;
    }
#pragma unroll
    for (int p = 0; p < packs; ++p) {
        if (column_of<Lanes>(p) < x.cols) {
            Pack<float, Lanes> result = to_float(held[p]);
            Pack<float, Lanes> const weight = to_float(load_pack<Lanes>(w + column_of<Lanes>(p)));
#pragma unroll
            for (int i = 0; i < Lanes; ++i) {
                result.value[i] = result.value[i] * r * weight.value[i];
            }
            store_pack(row_of(y, row) + column_of<Lanes>(p), from_float<T>(result));
        }
    }
}

/// partial_b = the sum over the rows of block b of what each of its threads has summed, row by row
/// of the block. All threads call.
template <int Lanes, int Packs>
__device__ void store_partial(float* partial, float const (&sum)[Packs][Lanes], std::int64_t cols) {
    __shared__ float total[warp_lanes * Packs * Lanes];  // used where a row is a single warp's
    for (unsigned y = 0; y < blockDim.y; ++y) {
        bool const last = y + 1 == blockDim.y;
#pragma unroll
        for (int p = 0; p < Packs; ++p) {
            int const c = column_of<Lanes>(p);
            if (threadIdx.y == y && c < cols) {
#pragma unroll
                for (int i = 0; i < Lanes; ++i) {
                    float const value = sum[p][i] + (y == 0 ? 0.0F : total[c + i]);
                    if (last) {
                        partial[blockIdx.x * cols + c + i] = value;
                    } else {
                        total[c + i] = value;
                    }
                }
            }
        }
        __syncthreads();
    }
}

/// With g = dy w and n = x r: dx += r (g - n mean(g n)), and the block's share of dw = sum_s dy n.
template <class T, int Lanes>
__global__ void __launch_bounds__(most_threads)
    backward_kernel(Matrix<T> dx, float* partial, Matrix<T> dy, Matrix<T> x, T const* w,
                    Matrix<float> rstd) {
    constexpr int packs = held_packs<Lanes>;
    __shared__ float room[warp_lanes];
    float dw[packs][Lanes] = {};
    std::int64_t const rows_at_once = std::int64_t{gridDim.x} * blockDim.y;
    for (std::int64_t row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y; row < x.rows;
         row += rows_at_once) {
        Pack<T, Lanes> dys[packs], xs[packs], dxs[packs];
        load_row(dys, row_of(dy, row), x.cols);
        load_row(xs, row_of(x, row), x.cols);
        load_row(dxs, row_of(dx, row), x.cols);
        float const r = *row_of(rstd, row);
        float dot = 0.0F;
#pragma unroll
        for (int p = 0; p < packs; ++p) {
            if (column_of<Lanes>(p) < x.cols) {
                Pack<float, Lanes> const dy_c = to_float(dys[p]);
                Pack<float, Lanes> const x_c = to_float(xs[p]);
                Pack<float, Lanes> const w_c = to_float(load_pack<Lanes>(w + column_of<Lanes>(p)));
#pragma unroll
                for (int i = 0; i < Lanes; ++i) {
                    dot = fmaf(dy_c.value[i] * w_c.value[i], x_c.value[i], dot);
                    dw[p][i] = fmaf(dy_c.value[i], x_c.value[i] * r, dw[p][i]);
                }
            }
        }
        float const mean = row_sum(dot, room) * r / static_cast<float>(x.cols);
#pragma unroll
        for (int p = 0; p < packs; ++p) {
            if (column_of<Lanes>(p) < x.cols) {
                Pack<float, Lanes> sum = to_float(dxs[p]);
                Pack<float, Lanes> const dy_c = to_float(dys[p]);
                Pack<float, Lanes> const x_c = to_float(xs[p]);
                Pack<float, Lanes> const w_c = to_float(load_pack<Lanes>(w + column_of<Lanes>(p)));
#pragma unroll
                for (int i = 0; i < Lanes; ++i) {
                    float const g = dy_c.value[i] * w_c.value[i];
                    sum.value[i] += r * (g - x_c.value[i] * r * mean);
                }
                store_pack(row_of(dx, row) + column_of<Lanes>(p), from_float<T>(sum));
            }
        }
    }
    store_partial(partial, dw, x.cols);
}

/// dw_c += sum_b partial_bc, by 32 threads a column, in an order that the count of blocks fixes.
__global__ void __launch_bounds__(warp_lanes* warp_lanes)
    add_partials_kernel(float* dw, float const* partial, int blocks, std::int64_t cols) {
    __shared__ float sums[warp_lanes][warp_lanes];
    std::int64_t const c = std::int64_t{blockIdx.x} * warp_lanes + threadIdx.x;
    float sum = 0.0F;
    if (c < cols) {
#pragma unroll 8
        for (int b = static_cast<int>(threadIdx.y); b < blocks; b += warp_lanes) {
            sum += partial[b * cols + c];
        }
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < cols) {
        float total = 0.0F;
#pragma unroll
        for (int y = 0; y < warp_lanes; ++y) {
            total += sums[y][threadIdx.x];
        }
        dw[c] += total;
    }
}

template <class T, int Lanes>
void launch_forward(Device const& d, Matrix<T> y, Matrix<float> rstd, Matrix<T> x, Matrix<T> from,
                    Matrix<T> delta, T const* w, float eps) {
    dim3 const block = block_for<Lanes>(x.cols);
    auto const blocks = static_cast<unsigned>(ceil_div(x.rows, block.y));
    forward_kernel<T, Lanes><<<blocks, block, 0, d.stream>>>(y, rstd, x, from, delta, w, eps);
    CUDA_CHECK(cudaGetLastError());
}

template <class T, int Lanes>
void launch_backward(Device const& d, Matrix<T> dx, float* dw, Matrix<T> dy, Matrix<T> x,
                     T const* w, Matrix<float> rstd) {
    dim3 const block = block_for<Lanes>(x.cols);
    std::int64_t const resident = d.multiprocessors * (most_threads / (block.x * block.y));
    auto const blocks = static_cast<int>(std::min(resident, ceil_div(x.rows, block.y)));
    auto* const partial = static_cast<float*>(d.scratch->at_least(
        static_cast<std::size_t>(blocks * x.cols) * sizeof(float), "rmsnorm_backward"));
    backward_kernel<T, Lanes><<<blocks, block, 0, d.stream>>>(dx, partial, dy, x, w, rstd);
    CUDA_CHECK(cudaGetLastError());
    add_partials_kernel<<<static_cast<unsigned>(ceil_div(x.cols, warp_lanes)),
                          dim3(warp_lanes, warp_lanes), 0, d.stream>>>(dw, partial, blocks, x.cols);
    CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void rmsnorm_forward(Device const& d, Tensor y, Tensor rstd, Tensor x, Tensor from, Tensor delta,
                     Tensor w, double eps) {
    check_rmsnorm_forward(y, rstd, x, delta, w);
    require(delta.absent() || same_shape(from, x), ExitCode::internal,
            "rmsnorm_forward: the residual sum before is {} x {}, x {} x {}", from.rows, from.cols,
            x.rows, x.cols);
    if (x.elements() == 0) {
        return;
    }
    if (delta.absent()) {
        from = x;
    }
    with_type(x.dtype, [&](auto type) {
        using T = decltype(type);
        auto const launch = [&](auto lanes) {
            launch_forward<T, lanes.value>(d, y.as<T>(), rstd.as<float>(), x.as<T>(), from.as<T>(),
                                           delta.as<T>(), w.as<T>().data, static_cast<float>(eps));
        };
        with_lanes<wide<T>>({y, x, from, delta, w}, launch);
    });
}

void rmsnorm_backward(Device const& d, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w,
                      Tensor rstd) {
    check_rmsnorm_backward(dx, dw, dy, x, w, rstd);
    if (x.elements() == 0) {
        return;
    }
    with_type(x.dtype, [&](auto type) {
        using T = decltype(type);
        auto const launch = [&](auto lanes) {
            launch_backward<T, lanes.value>(d, dx.as<T>(), dw.as<float>().data, dy.as<T>(),
                                            x.as<T>(), w.as<T>().data, rstd.as<float>());
        };
        with_lanes<wide<T>>({dx, dy, x, w}, launch);
    });
}

}  // namespace cpstep::device
