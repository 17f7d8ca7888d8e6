// What device wires and launchers know of a CUDA backend: its streams, events and checks. The one
// header with CUDA's.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/backend.hpp"
#include "cuda/cuda_device.hpp"
#include "cuda/handle.hpp"

namespace cpstep {

/// Throws Error unless rc is cudaSuccess: input_data for memory, environment for a missing or
/// unusable device, internal for the rest; a sticky error says that the device context is lost.
void check_cuda(cudaError_t rc, char const* call);
#define CUDA_CHECK(call) ::cpstep::check_cuda((call), #call)

inline void close_event(cudaEvent_t event) noexcept {
    (void)cudaEventDestroy(event);
}
using EventHandle = Handle<cudaEvent_t, close_event>;
/// An event that orders queues and keeps no time.
EventHandle ordering_event();

/// A wire that device work may wait for. Told of while the host waits for the device.
class QueueWatcher {
  public:
    QueueWatcher() = default;
    QueueWatcher(QueueWatcher const&) = delete;
    QueueWatcher& operator=(QueueWatcher const&) = delete;
    virtual ~QueueWatcher() = default;
    /// Throws Error(communication) on a failure the wire knows of.
    virtual void check() = 0;
    /// What has not arrived, as in "exchange 'cp.kv' with rank 1 (group of 2)"; "" if all has.
    virtual std::string pending() const = 0;
    /// Another thread may still put work on the wire: returns when it is there. Whoever uses the
    /// wire next calls this first.
    virtual void settle() {}
    /// The host gives up: ends what the device waits for, so that memory can be freed on the way
    /// out. Nothing the device holds can be trusted afterwards.
    virtual void give_up() noexcept {}
};

/// One allocation of the device's memory, alone in its 2 MiB pages, as another process may open it.
struct IpcBlock {
    void* base = nullptr;
    std::size_t bytes = 0;
    std::uint64_t id = 0;  ///< from 1; never reused, also where a later block has the same base
};

/// The two streams of a backend. All calls are of the thread that owns it.
class CudaQueues {
  public:
    CudaQueues() = default;
    CudaQueues(CudaQueues const&) = delete;
    CudaQueues& operator=(CudaQueues const&) = delete;
    virtual ~CudaQueues() = default;

    virtual int ordinal() const = 0;
    virtual cudaStream_t compute() const = 0;
    virtual cudaStream_t wire() const = 0;  ///< of higher priority
    /// What is queued on the wire from now on starts after what is queued on compute by now; and
    /// the reverse. Both settle() every watcher.
    virtual void wire_after_compute() = 0;
    virtual void compute_after_wire() = 0;
    /// Polls until the event is reached. Error(communication) past the deadline, naming what
    /// watchers have pending; whatever a watcher's check() throws. give_up() comes before both.
    virtual void wait(cudaEvent_t event) = 0;
    virtual void watch(QueueWatcher* watcher) = 0;
    virtual void unwatch(QueueWatcher* watcher) noexcept = 0;
    /// Tells every watcher to give up.
    virtual void give_up() noexcept = 0;
    /// The allocation that this memory of the backend lies in; Error(internal) if it is in none.
    virtual IpcBlock block_of(void const* pointer) const = 0;
};

}  // namespace cpstep
