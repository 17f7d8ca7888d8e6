// y = x w^T + b by the library's products; the bias gradient by two kernels of ours.
#include <algorithm>
#include <cstdint>

#include "cuda/kernel.cuh"
#include "cuda/layers.hpp"

namespace cpstep::device {
namespace {

/// A block of sums: a warp a row, `row_lanes` rows at once.
constexpr int row_lanes = 8;
constexpr int block_threads = warp_lanes * row_lanes;

/// Rows are shared among blocks, however many the card has, so that any card gives the same bits.
constexpr std::int64_t most_chunks = 256;
constexpr std::int64_t least_chunk_rows = 64;

std::int64_t rows_of_chunk(std::int64_t rows) {
    return std::max(least_chunk_rows, ceil_div(rows, most_chunks));
}

/// The sum over the rows of a block, lane by lane; valid in row 0.
template <int Lanes>
__device__ Pack<float, Lanes> sum_over_rows(Pack<float, Lanes> const& own) {
    __shared__ Pack<float, Lanes> room[row_lanes][warp_lanes];
    room[threadIdx.y][threadIdx.x] = own;
    __syncthreads();
    Pack<float, Lanes> total{};
    if (threadIdx.y == 0) {
        for (int row = 0; row < row_lanes; ++row) {
            add_to(total, room[row][threadIdx.x]);
        }
    }
    return total;
}

/// partial (chunks, cols): of chunk blockIdx.y the sum of its rows of dy.
template <class T, int Lanes>
__global__ void __launch_bounds__(block_threads)
    sum_chunks(float* partial, Matrix<T> const dy, std::int64_t chunk_rows) {
    std::int64_t const col = (std::int64_t{blockIdx.x} * warp_lanes + threadIdx.x) * Lanes;
    std::int64_t const begin = std::int64_t{blockIdx.y} * chunk_rows;
    std::int64_t const end = begin + chunk_rows < dy.rows ? begin + chunk_rows : dy.rows;
    Pack<float, Lanes> own{};
    if (col < dy.cols) {
#pragma unroll 4
        for (std::int64_t row = begin + threadIdx.y; row < end; row += row_lanes) {
            add_to(own, to_float(load_pack<Lanes>(row_of(dy, row) + col)));
        }
    }
    Pack<float, Lanes> const total = sum_over_rows(own);
    if (threadIdx.y == 0 && col < dy.cols) {
        store_pack(partial + blockIdx.y * dy.cols + col, total);
    }
}

/// db_c += the sum of partial_c over chunks.
__global__ void __launch_bounds__(block_threads)
    add_chunks(float* db, float const* partial, std::int64_t chunks, std::int64_t cols) {
    std::int64_t const col = std::int64_t{blockIdx.x} * warp_lanes + threadIdx.x;
    Pack<float, 1> own{};
    if (col < cols) {
#pragma unroll 4
        for (std::int64_t chunk = threadIdx.y; chunk < chunks; chunk += row_lanes) {
            own.value[0] += partial[chunk * cols + col];
        }
    }
    Pack<float, 1> const total = sum_over_rows(own);
    if (threadIdx.y == 0 && col < cols) {
        db[col] += total.value[0];
    }
}

template <class T, int Lanes>
void launch_sums(Device const& d, float* partial, Matrix<T> dy, std::int64_t chunks) {
    dim3 const grid(static_cast<unsigned>(ceil_div(dy.cols, warp_lanes * Lanes)),
                    static_cast<unsigned>(chunks));
    sum_chunks<T, Lanes>
        <<<grid, dim3(warp_lanes, row_lanes), 0, d.stream>>>(partial, dy, rows_of_chunk(dy.rows));
    CUDA_CHECK(cudaGetLastError());
}

/// db += the column sums of dy: of chunks of rows, then over chunks, in a fixed order.
void add_column_sums(Device const& d, Tensor db, Tensor dy) {
    constexpr int lanes = 4;
    std::int64_t const chunks = ceil_div(dy.rows, rows_of_chunk(dy.rows));
    auto* const partial = static_cast<float*>(d.scratch->at_least(
        static_cast<std::size_t>(chunks * dy.cols) * sizeof(float), "bias gradient sums"));
    with_type(dy.dtype, [&](auto type) {
        using T = decltype(type);
        if (divides_into(dy, lanes)) {
            launch_sums<T, lanes>(d, partial, dy.as<T>(), chunks);
        } else {
            launch_sums<T, 1>(d, partial, dy.as<T>(), chunks);
        }
    });
    add_chunks<<<static_cast<unsigned>(ceil_div(dy.cols, warp_lanes)), dim3(warp_lanes, row_lanes),
                 0, d.stream>>>(db.as<float>().data, partial, chunks, dy.cols);
    CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void linear_forward(Device const& d, Tensor y, Tensor x, Tensor w, Tensor b) {
    check_linear_forward(y, x, w, b);
    if (x.rows == 0) {
        return;
    }
    d.products->multiply(y, x, false, w, true, false, b);
}

void linear_backward(Device const& d, Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x,
                     Tensor w, bool add_dx) {
    check_linear_backward(dx, dw, db, dy, x, w);
    if (x.rows == 0) {
        return;
    }
    if (!dx.absent()) {
        d.products->multiply(dx, dy, false, w, false, add_dx, {});
    }
    d.products->multiply(dw, dy, true, x, false, true, {});
    if (!db.absent()) {
        add_column_sums(d, db, dy);
    }
}

}  // namespace cpstep::device
