#include <algorithm>
#include <array>
#include <cmath>
#include <exception>
#include <limits>
#include <string_view>
#include <utility>

#include "cuda/clock.hpp"
#include "cuda/cuda_queues.hpp"
#include "cuda/poll.hpp"

namespace cpstep {
namespace {

/// After these every call fails: the process has to end.
constexpr std::array context_lost{
    cudaErrorIllegalAddress,      cudaErrorLaunchFailure,       cudaErrorLaunchTimeout,
    cudaErrorHardwareStackError,  cudaErrorIllegalInstruction,  cudaErrorMisalignedAddress,
    cudaErrorInvalidAddressSpace, cudaErrorInvalidPc,           cudaErrorAssert,
    cudaErrorECCUncorrectable,    cudaErrorNvlinkUncorrectable, cudaErrorContained,
    cudaErrorContextIsDestroyed,  cudaErrorExternalDevice,      cudaErrorTensorMemoryLeak,
    cudaErrorMpsClientTerminated};

/// No device, or one that this program cannot use.
constexpr std::array device_unusable{cudaErrorNoDevice,
                                     cudaErrorInvalidDevice,
                                     cudaErrorInsufficientDriver,
                                     cudaErrorStubLibrary,
                                     cudaErrorInitializationError,
                                     cudaErrorDevicesUnavailable,
                                     cudaErrorDeviceNotLicensed,
                                     cudaErrorStartupFailure,
                                     cudaErrorCallRequiresNewerDriver,
                                     cudaErrorSystemNotReady,
                                     cudaErrorSystemDriverMismatch,
                                     cudaErrorUnsupportedPtxVersion,
                                     cudaErrorMpsConnectionFailed,
                                     cudaErrorMpsRpcFailure,
                                     cudaErrorMpsServerNotReady,
                                     cudaErrorMpsMaxClientsReached,
                                     cudaErrorMpsMaxConnectionsReached,
                                     cudaErrorCompatNotSupportedOnDevice,
                                     cudaErrorDeviceUninitialized};

/// No code of this binary runs on the device.
constexpr std::array wrong_architecture{
    cudaErrorNoKernelImageForDevice, cudaErrorInvalidDeviceFunction, cudaErrorInvalidKernelImage,
    cudaErrorJitCompilationDisabled, cudaErrorJitCompilerNotFound};

bool is_in(auto const& list, cudaError_t rc) {
    return std::find(list.begin(), list.end(), rc) != list.end();
}

__global__ void write_all(float4* to, std::size_t count) {
    std::size_t const step = std::size_t{gridDim.x} * blockDim.x;
    for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
        to[i] = {};
    }
}

/// Neither stream waits for the default one.
StreamHandle make_stream(int priority) {
    cudaStream_t stream = nullptr;
    CUDA_CHECK(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, priority));
    return StreamHandle(stream);
}

struct Priorities {
    int least = 0;
    int greatest = 0;
};

Priorities priorities(int ordinal) {
    CUDA_CHECK(cudaSetDevice(ordinal));
    Priorities range;
    CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&range.least, &range.greatest));
    return range;
}

/// False while the device has not reached it.
bool reached(cudaEvent_t event) {
    cudaError_t const rc = cudaEventQuery(event);
    if (rc == cudaErrorNotReady) {
        (void)cudaGetLastError();  // else the next launch would be taken to have failed
        return false;
    }
    check_cuda(rc, "cudaEventQuery");
    return true;
}

}  // namespace

void check_cuda(cudaError_t rc, char const* call) {
    if (rc == cudaSuccess) {
        return;
    }
    (void)cudaGetLastError();  // told here, so that the next check does not tell it again
    std::string_view name(call);
    name = name.substr(0, name.find('('));
    char const* const text = cudaGetErrorString(rc);
    char const* const symbol = cudaGetErrorName(rc);
    if (is_in(context_lost, rc)) {
        fail(ExitCode::internal, "{}: {} ({}); the device context is lost", name, text, symbol);
    }
    if (is_in(wrong_architecture, rc)) {
        fail(ExitCode::environment,
             "{}: {} ({}); this binary holds code for " CPSTEP_CUDA_CODE
             " only; build with -DCMAKE_CUDA_ARCHITECTURES=NN, NN the device's compute capability",
             name, text, symbol);
    }
    ExitCode code = ExitCode::internal;
    if (is_in(device_unusable, rc)) {
        code = ExitCode::environment;
    } else if (rc == cudaErrorMemoryAllocation) {
        code = ExitCode::input_data;
    }
    fail(code, "{}: {} ({})", name, text, symbol);
}

DeviceQueues::DeviceQueues(int ordinal, std::chrono::milliseconds deadline)
    : ordinal_(ordinal),
      deadline_(deadline),
      compute_(make_stream(priorities(ordinal).least)),
      wire_(make_stream(priorities(ordinal).greatest)),
      compute_reached_(ordering_event()),
      wire_reached_(ordering_event()),
      all_reached_(ordering_event()),
      memory_(*this) {}

void DeviceQueues::record_compute() {
    CUDA_CHECK(cudaEventRecord(compute_reached_.get(), compute()));
}

void DeviceQueues::settle_watchers() {
    for (QueueWatcher* const watcher : watchers_) {
        watcher->settle();
    }
}

void DeviceQueues::wire_after_compute() {
    settle_watchers();
    record_compute();
    CUDA_CHECK(cudaStreamWaitEvent(wire(), compute_reached_.get(), 0));
}

void DeviceQueues::compute_after_wire() {
    settle_watchers();
    CUDA_CHECK(cudaEventRecord(wire_reached_.get(), wire()));
    CUDA_CHECK(cudaStreamWaitEvent(compute(), wire_reached_.get(), 0));
}

void DeviceQueues::wait(cudaEvent_t event) {
    bool const in_time =
        poll_until([&] { return reached(event); }, deadline_, [&] { check_watchers(); });
    if (!in_time) {
        Error const late = lateness();  // what is pending is known only before it is given up
        give_up();
        throw late;
    }
}

void DeviceQueues::check_watchers() {
    try {
        for (QueueWatcher* const watcher : watchers_) {
            watcher->check();
        }
    } catch (...) {
        give_up();
        throw;
    }
}

void DeviceQueues::give_up() noexcept {
    given_up_ = true;
    for (QueueWatcher* const watcher : watchers_) {
        watcher->give_up();
    }
}

Error DeviceQueues::lateness() const {
    std::string pending;
    for (QueueWatcher const* const watcher : watchers_) {
        std::string const text = watcher->pending();
        if (!text.empty()) {
            pending += (pending.empty() ? "" : ", ") + text;
        }
    }
    return {ExitCode::communication,
            fmt::format("timed out after {:g} s waiting for device {}, {}; a peer has died, "
                        "skipped this call or needs longer (--comm-timeout)",
                        std::chrono::duration<double>(deadline_).count(), ordinal_,
                        pending.empty() ? "with no transfer open" : "which waits for " + pending)};
}

void DeviceQueues::synchronize() {
    compute_after_wire();
    CUDA_CHECK(cudaEventRecord(all_reached_.get(), compute()));
    wait(all_reached_.get());
}

EventMarks::EventMarks(DeviceQueues& queues)
    : queues_(queues),
      aside_(make_stream(priorities(queues.ordinal()).greatest)),
      aside_reached_(ordering_event()),
      base_(timing_event()),
      candidate_(timing_event()) {
    move_aside_to_copy_engine();
    begin();
    measure_lag();
}

/// The engine of a stream's last work takes the times of its events. The compute engine, which is
/// the first, holds up kernels of other streams for a microsecond each time, and for nine once the
/// stream has run a kernel; the one that copies to the host holds up nothing (H100, driver 580).
void EventMarks::move_aside_to_copy_engine() {
    constexpr std::size_t bytes = 8;
    void* const device = queues_.memory().allocate(bytes, "a copy to the host");
    PinnedMemory const host = pinned_memory(bytes);
    CUDA_CHECK(cudaMemsetAsync(device, 0, bytes, queues_.compute()));
    queues_.record_compute();
    CUDA_CHECK(cudaStreamWaitEvent(aside_.get(), queues_.compute_reached(), 0));
    CUDA_CHECK(cudaMemcpyAsync(host.get(), device, bytes, cudaMemcpyDeviceToHost, aside_.get()));
    join_aside();
    queues_.synchronize();
    queues_.memory().release(device);
}

/// The device reaches the base between two readings of the host's clock; of several tries the one
/// with the closest readings counts.
void EventMarks::begin() {
    constexpr int tries = 8;
    join_aside();
    queues_.synchronize();
    used_ = 0;
    std::int64_t closest = std::numeric_limits<std::int64_t>::max();
    for (int i = 0; i < tries; ++i) {
        std::int64_t const before = now_ns();
        CUDA_CHECK(cudaEventRecord(candidate_.get(), queues_.compute()));
        queues_.wait(candidate_.get());
        std::int64_t const bracket = now_ns() - before;
        if (bracket < closest) {
            closest = bracket;
            base_ns_ = before + bracket / 2;
            std::swap(base_, candidate_);
        }
    }
}

/// The copy engine looks at what its stream waits for every 7 us; a mark is 2 to 12 us late. The
/// lag is the median of many, each behind work on compute as under way. The work is of unequal
/// length, since with equal ones all marks can be late by much the same. It writes memory, since a
/// mark is later beside such work: by 5.3 us beside none, 6.2 beside writes and 7.6 beside reads
/// (H200). These are a backend's first kernels: without code for the device it ends here.
void EventMarks::measure_lag() {
    constexpr std::size_t most = (std::size_t{256} << 20) / sizeof(float4);
    void* const written =
        queues_.memory().allocate(most * sizeof(float4), "a measurement of marks");
    std::array<std::pair<Mark, Mark>, 256> marks;
    std::size_t turn = 0;
    for (auto& [here, aside] : marks) {  // of half to all: longer than a mark aside takes
        write_all<<<1024, 256, 0, queues_.compute()>>>(static_cast<float4*>(written),
                                                       most / 128 * (64 + turn++ % 64));
        check_cuda(cudaGetLastError(), "a first kernel");
        here = mark(queues_.compute());
        queues_.record_compute();
        aside = mark_aside();
    }
    join_aside();
    queues_.synchronize();
    std::array<std::int64_t, marks.size()> late{};
    std::ranges::transform(marks, late.begin(),
                           [&](auto const& pair) { return ns(pair.second) - ns(pair.first); });
    auto const middle = late.begin() + late.size() / 2;
    std::ranges::nth_element(late, middle);
    lag_ns_ = *middle;
    used_ = 0;
    queues_.memory().release(written);
    queues_.memory().restart_peak();
}

Mark EventMarks::take(cudaStream_t stream, bool aside) {
    if (used_ == moments_.size()) {
        moments_.push_back({.event = timing_event()});
    }
    Moment& moment = moments_[used_];
    moment.aside = aside;
    CUDA_CHECK(cudaEventRecord(moment.event.get(), stream));
    ++used_;
    return -static_cast<Mark>(used_);
}

Mark EventMarks::mark_aside() {
    CUDA_CHECK(cudaStreamWaitEvent(aside_.get(), queues_.compute_reached(), 0));
    return take(aside_.get(), true);
}

void EventMarks::join_aside() {
    CUDA_CHECK(cudaEventRecord(aside_reached_.get(), aside_.get()));
    CUDA_CHECK(cudaStreamWaitEvent(queues_.compute(), aside_reached_.get(), 0));
}

std::int64_t EventMarks::ns(Mark mark) const {
    if (mark >= 0) {
        return mark;
    }
    auto const index = static_cast<std::size_t>(-(mark + 1));
    require(index < used_, ExitCode::internal, "mark {} is from before begin_marks()", mark);
    Moment const& moment = moments_[index];
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, base_.get(), moment.event.get()));
    return base_ns_ + std::llround(static_cast<double>(milliseconds) * 1e6) -
           (moment.aside ? lag_ns_ : 0);
}

}  // namespace cpstep
