// Private to mpi/: what ranks of one host know of each other's device memory, and flags in it that
// order their streams.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cuda/cuda_backend.hpp"

namespace cpstep {

/// Where memory of a rank lies; travels as a message.
struct IpcAddress {
    cudaIpcMemHandle_t handle{};
    std::uint64_t block = 0;   ///< IpcBlock::id; 0: nothing is there
    std::uint64_t offset = 0;  ///< bytes from the block's begin
};

/// Blocks of peers, each opened when it is first named. A block that its owner frees stays mapped
/// until close().
class PeerMemory {
  public:
    explicit PeerMemory(CudaQueues const& queues) : queues_(queues) {}

    /// Of memory of this rank's backend; null lies nowhere.
    IpcAddress address_of(void const* pointer);
    /// In this process; null for nowhere. `peer` is a world rank.
    std::byte* at(int peer, IpcAddress const& address);
    /// Nothing queued may use any of it.
    void close() noexcept;

  private:
    CudaQueues const& queues_;
    std::map<std::uint64_t, cudaIpcMemHandle_t> exported_;        ///< by block
    std::map<std::pair<int, std::uint64_t>, std::byte*> opened_;  ///< by peer and block
};

/// Stream memory operations, queued together. A write comes after a fence of system scope for all
/// that the stream did before (cuda.h, CUstreamWriteValue_flags: __threadfence_system() "scoped to
/// the stream"), so who sees the flag sees the data. Addresses may be of mapped peer memory.
class FlagOps {
  public:
    void write(std::uint32_t* flag, std::uint32_t value);
    /// Until flag >= value in cyclic order, (int32_t)(flag - value) >= 0.
    void wait(std::uint32_t* flag, std::uint32_t value);
    /// Queues and forgets them; at most 255.
    void queue_on(cudaStream_t stream);

  private:
    std::vector<CUstreamBatchMemOpParams> ops_;
};

/// Loads the kernels of queue_sum(). The first launch of a kernel loads it, for which the host
/// may wait until the device is idle, without a deadline (CUDA Programming Guide, Lazy Loading).
void load_sums();
/// out[i] = sum over sources in their order, the same bits on every run; out may be a source.
/// Pointers may be of mapped peer memory.
void queue_sum(float* out, std::vector<float const*> const& sources, std::int64_t count,
               int multiprocessors, cudaStream_t stream);
constexpr int most_sum_sources = 64;

}  // namespace cpstep
