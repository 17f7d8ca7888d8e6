#include <cudaTypedefs.h>

#include <algorithm>

#include "mpi/ipc_memory.cuh"

namespace cpstep {
namespace {

/// Asked of the loaded driver, so that a machine without one can still start the program.
PFN_cuStreamBatchMemOp_v11070 find_batch_mem_op() {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status{};
#if CUDART_VERSION >= 12050
    CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuStreamBatchMemOp", &found, 12000,
                                                cudaEnableDefault, &status));
#else
    CUDA_CHECK(cudaGetDriverEntryPoint("cuStreamBatchMemOp", &found, cudaEnableDefault, &status));
#endif
    require(status == cudaDriverEntryPointSuccess && found != nullptr, ExitCode::environment,
            "this driver has no stream memory operations (CUDA 12); use --transport nccl or mpi");
    return reinterpret_cast<PFN_cuStreamBatchMemOp_v11070>(found);
}

struct Sources {
    float const* at[most_sum_sources];
};

__device__ float plus(float a, float b) {
    return a + b;
}
__device__ float4 plus(float4 a, float4 b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

/// out[i] = ((s_0[i] + s_1[i]) + s_2[i]) + ...
template <class T>
__global__ void sum_sources(T* out, Sources sources, int ranks, std::int64_t count) {
    std::int64_t const stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
    std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; i < count; i += stride) {
        T sum = reinterpret_cast<T const*>(sources.at[0])[i];
#pragma unroll 4
        for (int r = 1; r < ranks; ++r) {
            sum = plus(sum, reinterpret_cast<T const*>(sources.at[r])[i]);
        }
        out[i] = sum;
    }
}

template <class T>
void launch_sum(T* out, Sources const& sources, int ranks, std::int64_t count, int multiprocessors,
                cudaStream_t stream) {
    if (count == 0) {
        return;
    }
    // Reads of a peer take about a microsecond: 2048 threads a multiprocessor keep enough of them
    // on their way.
    constexpr int threads = 256;
    std::int64_t const needed = (count + threads - 1) / threads;
    auto const blocks =
        static_cast<unsigned>(std::min<std::int64_t>(needed, std::int64_t{8} * multiprocessors));
    sum_sources<T><<<blocks, threads, 0, stream>>>(out, sources, ranks, count);
    CUDA_CHECK(cudaGetLastError());
}

bool vector_aligned(void const* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % sizeof(float4) == 0;
}

}  // namespace

IpcAddress PeerMemory::address_of(void const* pointer) {
    if (pointer == nullptr) {
        return {};
    }
    IpcBlock const block = queues_.block_of(pointer);
    auto at = exported_.find(block.id);
    if (at == exported_.end()) {
        cudaIpcMemHandle_t handle{};
        CUDA_CHECK(cudaIpcGetMemHandle(&handle, block.base));
        at = exported_.emplace(block.id, handle).first;
    }
    auto const offset =
        static_cast<std::byte const*>(pointer) - static_cast<std::byte*>(block.base);
    return {.handle = at->second, .block = block.id, .offset = static_cast<std::uint64_t>(offset)};
}

std::byte* PeerMemory::at(int peer, IpcAddress const& address) {
    if (address.block == 0) {
        return nullptr;
    }
    std::pair const key{peer, address.block};
    auto at = opened_.find(key);
    if (at == opened_.end()) {
        void* mapped = nullptr;
        cudaError_t const rc =
            cudaIpcOpenMemHandle(&mapped, address.handle, cudaIpcMemLazyEnablePeerAccess);
        if (rc != cudaSuccess) {
            (void)cudaGetLastError();
            fail(ExitCode::environment,
                 "cannot open the device memory of rank {}: {} ({}); CUDA IPC needs ranks of one "
                 "container whose GPUs can read each other: use --transport nccl or mpi",
                 peer, cudaGetErrorString(rc), cudaGetErrorName(rc));
        }
        at = opened_.emplace(key, static_cast<std::byte*>(mapped)).first;
    }
    return at->second + address.offset;
}

void PeerMemory::close() noexcept {
    for (auto const& [key, mapped] : opened_) {
        (void)cudaIpcCloseMemHandle(mapped);
    }
    opened_.clear();
}

void FlagOps::write(std::uint32_t* flag, std::uint32_t value) {
    CUstreamBatchMemOpParams& op = ops_.emplace_back(CUstreamBatchMemOpParams{});
    op.writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
    op.writeValue.address = reinterpret_cast<CUdeviceptr>(flag);
    op.writeValue.value = value;
    op.writeValue.flags = CU_STREAM_WRITE_VALUE_DEFAULT;
}

void FlagOps::wait(std::uint32_t* flag, std::uint32_t value) {
    CUstreamBatchMemOpParams& op = ops_.emplace_back(CUstreamBatchMemOpParams{});
    op.waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32;
    op.waitValue.address = reinterpret_cast<CUdeviceptr>(flag);
    op.waitValue.value = value;
    op.waitValue.flags = CU_STREAM_WAIT_VALUE_GEQ;
}

void FlagOps::queue_on(cudaStream_t stream) {
    if (ops_.empty()) {
        return;
    }
    static PFN_cuStreamBatchMemOp_v11070 const batch_mem_op = find_batch_mem_op();
    // The runtime's error codes are the driver's.
    auto const rc = static_cast<cudaError_t>(
        batch_mem_op(stream, static_cast<unsigned>(ops_.size()), ops_.data(), 0));
    require(rc != cudaErrorNotSupported, ExitCode::environment,
            "this device has no stream memory operations; use --transport nccl or mpi");
    check_cuda(rc, "cuStreamBatchMemOp");
    ops_.clear();
}

void load_sums() {
    cudaFuncAttributes attributes{};
    CUDA_CHECK(cudaFuncGetAttributes(&attributes, sum_sources<float4>));
    CUDA_CHECK(cudaFuncGetAttributes(&attributes, sum_sources<float>));
}

void queue_sum(float* out, std::vector<float const*> const& sources, std::int64_t count,
               int multiprocessors, cudaStream_t stream) {
    auto const ranks = static_cast<int>(sources.size());
    require(ranks >= 1 && ranks <= most_sum_sources, ExitCode::internal, "a sum of {} arrays",
            ranks);
    Sources all{};
    std::ranges::copy(sources, all.at);
    bool const aligned =
        vector_aligned(out) &&
        std::ranges::all_of(sources, [](auto const* source) { return vector_aligned(source); });
    std::int64_t const vectors = aligned ? count / 4 : 0;
    launch_sum(reinterpret_cast<float4*>(out), all, ranks, vectors, multiprocessors, stream);
    std::int64_t const done = 4 * vectors;
    for (int r = 0; r < ranks; ++r) {
        all.at[r] += done;
    }
    launch_sum(out + done, all, ranks, count - done, multiprocessors, stream);
}

}  // namespace cpstep
