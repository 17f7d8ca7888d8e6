// Token embedding. dtable[ids_s] += dx_s without atomics: the rows are sorted by id, each chunk of
// the sorted rows is summed by one block, and a run of equal ids that began in an earlier chunk is
// kept apart and added by a second pass. Every sum has one order, that of the rows.
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cub/device/device_radix_sort.cuh>
#include <limits>

#include "cuda/kernel.cuh"

namespace cpstep::device {
namespace {

/// Few enough that a short batch fills the device, enough that long runs leave few parts.
constexpr int chunk_rows = 16;
/// Rows or parts that a thread has in flight.
constexpr int loads_at_once = 8;

/// ids ascending; rows of equal ids ascending.
struct SortedRows {
    std::uint32_t const* id = nullptr;
    std::int32_t const* row = nullptr;
    std::int64_t count = 0;
};

/// First column of the thread.
template <int Lanes>
__device__ __forceinline__ std::int64_t own_column() {
    return (std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * Lanes;
}

/// to += sum, by the one thread that has these elements.
template <int Lanes>
__device__ __forceinline__ void add_at(float* to, Pack<float, Lanes> const& sum) {
    Pack<float, Lanes> total = load_pack<Lanes>(to);
    add_to(total, sum);
    store_pack(to, total);
}

/// id_s = ids_s, row_s = s.
__global__ void __launch_bounds__(pack_threads)
    number_rows_kernel(std::uint32_t* id, std::int32_t* row, Matrix<std::int32_t> ids) {
    std::int64_t const s = std::int64_t{blockIdx.x} * pack_threads + threadIdx.x;
    if (s < ids.rows) {
        id[s] = static_cast<std::uint32_t>(*row_of(ids, s));
        row[s] = static_cast<std::int32_t>(s);
    }
}

/// Block b adds the runs that begin in chunk b to dtable; what it finds of an earlier run becomes
/// continued_b.
template <class T, int Lanes>
__global__ void __launch_bounds__(pack_threads)
    add_chunks_kernel(Matrix<float> dtable, float* continued, Matrix<T> dx, SortedRows sorted) {
    __shared__ std::uint32_t id[chunk_rows];
    __shared__ std::int32_t row[chunk_rows];
    std::int64_t const begin = std::int64_t{blockIdx.x} * chunk_rows;
    auto const count = static_cast<int>(min(std::int64_t{chunk_rows}, sorted.count - begin));
    if (static_cast<int>(threadIdx.x) < count) {
        id[threadIdx.x] = sorted.id[begin + threadIdx.x];
        row[threadIdx.x] = sorted.row[begin + threadIdx.x];
    }
    __syncthreads();
    std::int64_t const col = own_column<Lanes>();
    if (col >= dx.cols) {
        return;
    }
    bool continues = begin > 0 && sorted.id[begin - 1] == id[0];
    Pack<float, Lanes> sum{};
    for (int i = 0; i < count; i += loads_at_once) {
        Pack<T, Lanes> terms[loads_at_once];
#pragma unroll
        for (int u = 0; u < loads_at_once; ++u) {
            if (i + u < count) {
                terms[u] = load_pack<Lanes>(row_of(dx, row[i + u]) + col);
            }
        }
#pragma unroll
        for (int u = 0; u < loads_at_once; ++u) {
            if (i + u < count) {
                add_to(sum, to_float(terms[u]));
                if (i + u + 1 == count || id[i + u + 1] != id[i + u]) {
                    if (continues) {
                        store_pack(continued + blockIdx.x * dx.cols + col, sum);
                    } else {
                        add_at(row_of(dtable, id[i + u]) + col, sum);
                    }
                    continues = false;
                    sum = {};
                }
            }
        }
    }
}

/// Block b adds what later chunks hold of the run that begins in chunk b, if there is such a run.
template <int Lanes>
__global__ void __launch_bounds__(pack_threads)
    add_continued_kernel(Matrix<float> dtable, float const* continued, SortedRows sorted) {
    std::int64_t const chunks = gridDim.x;
    std::int64_t const begin = std::int64_t{blockIdx.x} * chunk_rows;
    std::int64_t chunk = std::int64_t{blockIdx.x} + 1;
    std::int64_t const col = own_column<Lanes>();
    if (chunk == chunks || col >= dtable.cols) {
        return;
    }
    std::uint32_t const id = sorted.id[chunk * chunk_rows - 1];
    if (sorted.id[chunk * chunk_rows] != id || (begin > 0 && sorted.id[begin - 1] == id)) {
        return;
    }
    Pack<float, Lanes> sum{};
    bool more = true;
    for (; more; chunk += loads_at_once) {
        Pack<float, Lanes> parts[loads_at_once];
        bool of_run[loads_at_once];
#pragma unroll
        for (int u = 0; u < loads_at_once; ++u) {
            of_run[u] = chunk + u < chunks && sorted.id[(chunk + u) * chunk_rows] == id;
            if (of_run[u]) {
                parts[u] = load_pack<Lanes>(continued + (chunk + u) * dtable.cols + col);
            }
        }
#pragma unroll
        for (int u = 0; u < loads_at_once; ++u) {
            if (of_run[u]) {
                add_to(sum, parts[u]);
            }
        }
        more = of_run[loads_at_once - 1];
    }
    add_at(row_of(dtable, id) + col, sum);
}

/// Bytes of a part of a scratch block; the next part begins aligned to 256.
std::size_t part_bytes(std::int64_t elements) {
    return static_cast<std::size_t>(ceil_div(elements * 4, 256) * 256);
}

/// Scratch memory of a call: 4-byte elements, then the room of the sort.
struct Workspace {
    std::uint32_t *id = nullptr, *sorted_id = nullptr;
    std::int32_t *row = nullptr, *sorted_row = nullptr;
    float* continued = nullptr;
    void* sort_room = nullptr;
    std::size_t sort_bytes = 0;
};

/// Sorts by bits [0, bits) of the id, and keeps the order of equal ones; without a room, only says
/// how many bytes that takes.
void sort_rows(Device const& d, Workspace& work, std::int64_t count, int bits) {
    CUDA_CHECK(cub::DeviceRadixSort::SortPairs(work.sort_room, work.sort_bytes, work.id,
                                               work.sorted_id, work.row, work.sorted_row,
                                               static_cast<int>(count), 0, bits, d.stream));
}

Workspace workspace(Device const& d, std::int64_t count, std::int64_t cols, int bits) {
    Workspace work;
    sort_rows(d, work, count, bits);
    std::size_t const column = part_bytes(count);
    std::size_t const parts = part_bytes(ceil_div(count, chunk_rows) * cols);
    auto* next = static_cast<std::byte*>(
        d.scratch->at_least(4 * column + parts + work.sort_bytes, "embedding_backward"));
    auto const take = [&next](std::size_t bytes) {
        std::byte* const part = next;
        next += bytes;
        return static_cast<void*>(part);
    };
    work.id = static_cast<std::uint32_t*>(take(column));
    work.sorted_id = static_cast<std::uint32_t*>(take(column));
    work.row = static_cast<std::int32_t*>(take(column));
    work.sorted_row = static_cast<std::int32_t*>(take(column));
    work.continued = static_cast<float*>(take(parts));
    work.sort_room = take(work.sort_bytes);
    return work;
}

template <class T, int Lanes>
void launch_sums(Device const& d, Matrix<float> dtable, Matrix<T> dx, Workspace const& work) {
    std::int64_t const packs = dx.cols / Lanes;
    std::int64_t const threads =
        std::min<std::int64_t>(pack_threads, ceil_div(packs, warp_lanes) * warp_lanes);
    dim3 const grid(static_cast<unsigned>(ceil_div(dx.rows, chunk_rows)),
                    static_cast<unsigned>(ceil_div(packs, threads)));
    auto const block = static_cast<unsigned>(threads);
    SortedRows const sorted{work.sorted_id, work.sorted_row, dx.rows};
    add_chunks_kernel<T, Lanes><<<grid, block, 0, d.stream>>>(dtable, work.continued, dx, sorted);
    CUDA_CHECK(cudaGetLastError());
    add_continued_kernel<Lanes><<<grid, block, 0, d.stream>>>(dtable, work.continued, sorted);
    CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void embedding_forward(Device const& d, Tensor x, Tensor table, Tensor ids) {
    check_embedding_forward(x, table, ids);
    gather_rows(d, x, table, ids);
}

void embedding_backward(Device const& d, Tensor dtable, Tensor dx, Tensor ids) {
    check_embedding_backward(dtable, dx, ids);
    require(dx.rows <= std::numeric_limits<std::int32_t>::max(), ExitCode::internal,
            "embedding_backward: {} rows are more than 32 bits number", dx.rows);
    if (dx.elements() == 0) {
        return;
    }
    int const bits = std::bit_width(static_cast<std::uint64_t>(dtable.rows));
    Workspace work = workspace(d, dx.rows, dx.cols, bits);
    number_rows_kernel<<<static_cast<unsigned>(ceil_div(dx.rows, pack_threads)), pack_threads, 0,
                         d.stream>>>(work.id, work.row, ids.as<std::int32_t>());
    CUDA_CHECK(cudaGetLastError());
    sort_rows(d, work, dx.rows, bits);
    with_type(dx.dtype, [&](auto type) {
        using T = decltype(type);
        with_lanes<wide<T>>({dtable, dx}, [&](auto lanes) {
            launch_sums<T, lanes.value>(d, dtable.as<float>(), dx.as<T>(), work);
        });
    });
}

}  // namespace cpstep::device
