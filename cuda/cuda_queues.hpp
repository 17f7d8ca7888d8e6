// The streams of a CUDA backend and the host's waits for them.
#pragma once

#include <chrono>
#include <vector>

#include "cuda/cuda_backend.hpp"
#include "cuda/device_memory.hpp"

namespace cpstep {

inline void close_stream(cudaStream_t stream) noexcept {
    (void)cudaStreamDestroy(stream);
}
using StreamHandle = Handle<cudaStream_t, close_stream>;

/// Makes `ordinal` the current device of this thread. Owns the memory that its streams work on.
class DeviceQueues final : public CudaQueues {
  public:
    DeviceQueues(int ordinal, std::chrono::milliseconds deadline);

    int ordinal() const override { return ordinal_; }
    cudaStream_t compute() const override { return compute_.get(); }
    cudaStream_t wire() const override { return wire_.get(); }
    void wire_after_compute() override;
    void compute_after_wire() override;
    void wait(cudaEvent_t event) override;
    void watch(QueueWatcher* watcher) override { watchers_.push_back(watcher); }
    void unwatch(QueueWatcher* watcher) noexcept override { std::erase(watchers_, watcher); }
    void give_up() noexcept override;
    IpcBlock block_of(void const* pointer) const override { return memory_.block_of(pointer); }

    /// The event that wire_after_compute() records on compute, recorded anew.
    void record_compute();
    cudaEvent_t compute_reached() const { return compute_reached_.get(); }

    DeviceMemory& memory() { return memory_; }
    DeviceMemory const& memory() const { return memory_; }
    /// Waits for both.
    void synchronize();
    void set_deadline(std::chrono::milliseconds deadline) { deadline_ = deadline; }
    /// A wait was given up: whatever waits for the device may never return.
    bool given_up() const { return given_up_; }

  private:
    void settle_watchers();
    void check_watchers();
    Error lateness() const;

    int ordinal_;
    std::chrono::milliseconds deadline_;
    StreamHandle compute_, wire_;
    EventHandle compute_reached_, wire_reached_, all_reached_;
    std::vector<QueueWatcher*> watchers_;
    bool given_up_ = false;
    DeviceMemory memory_;
};

/// Moments on the device's clock, set beside the host's.
class EventMarks {
  public:
    explicit EventMarks(DeviceQueues& queues);
    /// Forgets all marks, waits for the device and aligns the clocks.
    void begin();
    /// -1 - i for event i, so that no mark is taken for a host time.
    Mark mark(cudaStream_t stream) { return take(stream, false); }
    /// Of the moment at which compute reaches DeviceQueues::compute_reached(), by a third stream
    /// that does not hold it up. Exact to 6 us, on average to 1.5.
    Mark mark_aside();
    /// Compute comes after what is queued aside.
    void join_aside();
    std::int64_t ns(Mark mark) const;

  private:
    struct Moment {
        EventHandle event;
        bool aside = false;
    };

    Mark take(cudaStream_t stream, bool aside);
    void move_aside_to_copy_engine();
    void measure_lag();

    DeviceQueues& queues_;
    StreamHandle aside_;
    EventHandle aside_reached_;
    std::vector<Moment> moments_;  ///< grows; events are used again after begin()
    std::size_t used_ = 0;
    EventHandle base_, candidate_;
    std::int64_t base_ns_ = 0;  ///< steady clock when the device reached base_
    std::int64_t lag_ns_ = 0;   ///< by which marks aside are late
};

}  // namespace cpstep
