// Device memory: what buffers and scratch are made of, and pinned host memory on the way to it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/cuda_backend.hpp"
#include "cuda/free_ranges.hpp"

namespace cpstep {

EventHandle timing_event();

inline void free_pinned(void* pointer) noexcept {
    (void)cudaFreeHost(pointer);
}
using PinnedMemory = Handle<void*, free_pinned>;
/// Host memory that queued copies read and write.
PinnedMemory pinned_memory(std::size_t bytes);

/// Blocks that cudaMalloc gives, each alone in its 2 MiB pages, so that another process may open
/// it. A large piece is a block of its own; small ones share a slab, and are used again without
/// waiting: before that, both queues are made to wait for each other.
class DeviceMemory {
  public:
    /// The queues' device is the current one; they outlive this.
    explicit DeviceMemory(CudaQueues& queues);
    DeviceMemory(DeviceMemory const&) = delete;
    DeviceMemory& operator=(DeviceMemory const&) = delete;
    ~DeviceMemory();

    /// 256-byte aligned. Error(input_data) that names the piece when memory is short. In a Debug
    /// build it is filled with NaN.
    void* allocate(std::size_t bytes, std::string_view name);
    /// A large piece waits for both queues. While an exception unwinds nothing waits: the piece
    /// goes back with the next allocation.
    void release(void* pointer) noexcept;
    IpcBlock block_of(void const* pointer) const;
    std::size_t peak_bytes() const { return peak_; }
    /// The peak of what is allocated now and later.
    void restart_peak() { peak_ = taken_; }

  private:
    struct Block {
        std::size_t bytes = 0;
        std::uint64_t id = 0;
        std::optional<FreeRanges> ranges;  ///< of a slab
    };
    using Blocks = std::map<std::byte*, Block>;

    std::byte* new_block(std::size_t bytes, std::string_view name, bool slab);
    std::byte* from_slabs(std::size_t bytes);
    void reuse_small();
    void free_large();

    CudaQueues& queues_;
    EventHandle drained_;
    Blocks blocks_;
    std::map<std::byte*, std::size_t> small_;  ///< pieces of slabs that are in use
    std::vector<std::byte*> released_small_;   ///< work queued before may still use them
    std::vector<std::byte*> released_large_;   ///< while an exception unwound
    std::size_t total_ = 0;                    ///< of the device
    std::size_t taken_ = 0;
    std::size_t peak_ = 0;
    std::uint64_t last_id_ = 0;
};

/// Pieces by name that only grow, as long as the memory they come from lives.
class NamedScratch final : public Scratch {
  public:
    explicit NamedScratch(DeviceMemory& memory) : memory_(memory) {}
    void* at_least(std::size_t bytes, std::string_view name) override;

  private:
    struct Piece {
        void* data = nullptr;
        std::size_t bytes = 0;
    };
    DeviceMemory& memory_;
    std::map<std::string, Piece, std::less<>> pieces_;
};

/// Copies between pageable host memory and the device, ordered on the compute queue. Host arrays
/// go through pinned memory of our own: a copy from pageable memory would wait for all that is
/// queued, without a deadline (CUDA runtime, "API synchronization behavior").
class Staging {
  public:
    explicit Staging(CudaQueues& queues);

    /// `src` may be changed on return; the copy itself is queued.
    void upload(Tensor dst, void const* src);
    /// Waits for what the compute queue holds.
    void download(void* dst, Tensor src);

  private:
    static constexpr std::size_t half_bytes = std::size_t{4} << 20;

    /// Pinned memory that no queued copy uses.
    std::byte* claim(std::size_t bytes);

    CudaQueues& queues_;
    PinnedMemory pinned_;
    std::size_t half_ = 0;
    std::size_t used_ = 0;  ///< of the present half
    std::array<EventHandle, 2> last_use_;
    EventHandle arrived_;
};

}  // namespace cpstep
