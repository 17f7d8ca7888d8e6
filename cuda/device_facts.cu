#include <array>
#include <chrono>
#include <cstddef>

#include "cuda/cuda_queues.hpp"
#include "cuda/device_facts.hpp"
#include "cuda/poll.hpp"

namespace cpstep {
namespace {

constexpr std::size_t checked_bytes = std::size_t{1} << 20;
constexpr std::size_t timed_bytes = std::size_t{64} << 20;
constexpr int timed_copies = 8;
constexpr std::chrono::milliseconds copy_deadline{10'000};

void free_device(void* pointer) noexcept {
    (void)cudaFree(pointer);
}
using DeviceBlock = Handle<void*, free_device>;

/// The value of `probe`, or the text of the Error that it throws.
template <class T, class Probe>
Fact<T> probed(Probe const& probe) {
    try {
        return known<T>(probe());
    } catch (Error const& error) {
        return unknown<T>(error.what());
    }
}

DeviceBlock device_block(int ordinal, std::size_t bytes) {
    void* pointer = nullptr;
    CUDA_CHECK(cudaSetDevice(ordinal));
    CUDA_CHECK(cudaMalloc(&pointer, bytes));
    return DeviceBlock(pointer);
}

StreamHandle new_stream(int ordinal) {
    cudaStream_t stream = nullptr;
    CUDA_CHECK(cudaSetDevice(ordinal));
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return StreamHandle(stream);
}

/// A copy that an IOMMU swallowed never ends.
void wait_for_copies(cudaStream_t stream) {
    auto const done = [&] {
        cudaError_t const rc = cudaStreamQuery(stream);
        if (rc == cudaErrorNotReady) {
            (void)cudaGetLastError();
            return false;
        }
        check_cuda(rc, "cudaStreamQuery");
        return true;
    };
    require(poll_until(done, copy_deadline), ExitCode::environment,
            "a copy did not end within {:g} s",
            std::chrono::duration<double>(copy_deadline).count());
}

/// GB/s of copy(stream), which queues one copy of timed_bytes.
template <class Copy>
double rate_of(cudaStream_t stream, Copy const& copy) {
    EventHandle const begin = timing_event();
    EventHandle const end = timing_event();
    copy(stream);  // mapping of the memory is not timed
    wait_for_copies(stream);
    CUDA_CHECK(cudaEventRecord(begin.get(), stream));
    for (int i = 0; i < timed_copies; ++i) {
        copy(stream);
    }
    CUDA_CHECK(cudaEventRecord(end.get(), stream));
    wait_for_copies(stream);
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()));
    return 1e-6 * static_cast<double>(timed_bytes) * timed_copies /
           static_cast<double>(milliseconds);
}

std::int64_t wrong_bytes_of(int from, int to) {
    DeviceBlock const source = device_block(from, checked_bytes);
    DeviceBlock const target = device_block(to, checked_bytes);
    std::vector<unsigned char> sent(checked_bytes);
    for (std::size_t i = 0; i < sent.size(); ++i) {
        sent[i] = static_cast<unsigned char>(31 * from + 17 * to + i * 7 + (i >> 8));
    }
    std::vector<unsigned char> received(checked_bytes, 0);
    CUDA_CHECK(cudaMemcpy(source.get(), sent.data(), sent.size(), cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaMemset(target.get(), 0xff, checked_bytes));
    CUDA_CHECK(cudaDeviceSynchronize());
    StreamHandle const stream = new_stream(from);
    CUDA_CHECK(
        cudaMemcpyPeerAsync(target.get(), to, source.get(), from, checked_bytes, stream.get()));
    wait_for_copies(stream.get());
    CUDA_CHECK(cudaMemcpy(received.data(), target.get(), sent.size(), cudaMemcpyDeviceToHost));
    std::int64_t wrong = 0;
    for (std::size_t i = 0; i < sent.size(); ++i) {
        wrong += sent[i] == received[i] ? 0 : 1;
    }
    return wrong;
}

double peer_rate(int from, int to) {
    DeviceBlock const source = device_block(from, timed_bytes);
    DeviceBlock const target = device_block(to, timed_bytes);
    StreamHandle const stream = new_stream(from);
    return rate_of(stream.get(), [&](cudaStream_t queue) {
        CUDA_CHECK(cudaMemcpyPeerAsync(target.get(), to, source.get(), from, timed_bytes, queue));
    });
}

/// Copies go directly between devices that can reach each other; to be allowed twice is no error.
bool allow_direct(int from, int to) {
    int can = 0;
    if (cudaDeviceCanAccessPeer(&can, from, to) != cudaSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    if (can != 0 && cudaSetDevice(from) == cudaSuccess) {
        (void)cudaDeviceEnablePeerAccess(to, 0);
    }
    (void)cudaGetLastError();
    return can != 0;
}

int device_count() {
    int count = 0;
    cudaError_t const rc = cudaGetDeviceCount(&count);
    (void)cudaGetLastError();
    return rc == cudaSuccess ? count : 0;
}

double host_rate(int ordinal, cudaMemcpyKind direction) {
    DeviceBlock const device = device_block(ordinal, timed_bytes);
    PinnedMemory const host = pinned_memory(timed_bytes);
    StreamHandle const stream = new_stream(ordinal);
    bool const down = direction == cudaMemcpyDeviceToHost;
    return rate_of(stream.get(), [&](cudaStream_t queue) {
        CUDA_CHECK(cudaMemcpyAsync(down ? host.get() : device.get(),
                                   down ? device.get() : host.get(), timed_bytes, direction,
                                   queue));
    });
}

}  // namespace

CudaVersions cuda_version_numbers() {
    CudaVersions versions;
    versions.runtime = probed<int>([] {
        int version = 0;
        CUDA_CHECK(cudaRuntimeGetVersion(&version));
        return version;
    });
    versions.driver = probed<int>([] {
        int version = 0;
        CUDA_CHECK(cudaDriverGetVersion(&version));
        require(version > 0, ExitCode::environment, "no NVIDIA driver is loaded");
        return version;
    });
    return versions;
}

std::vector<std::string> visible_pci_bus_ids() {
    std::vector<std::string> ids;
    for (int device = 0; device < device_count(); ++device) {
        std::array<char, 32> bus{};
        if (cudaDeviceGetPCIBusId(bus.data(), static_cast<int>(bus.size()), device) !=
            cudaSuccess) {
            (void)cudaGetLastError();
        }
        ids.emplace_back(bus.data());
    }
    return ids;
}

std::vector<PeerCopy> probe_peer_copies(bool timed) {
    std::vector<PeerCopy> copies;
    int const count = device_count();
    for (int from = 0; from < count; ++from) {
        for (int to = 0; to < count; ++to) {
            if (from == to) {
                continue;
            }
            PeerCopy& copy = copies.emplace_back(PeerCopy{.from = from, .to = to});
            copy.readable = allow_direct(from, to);
            copy.wrong_bytes = probed<std::int64_t>([&] { return wrong_bytes_of(from, to); });
            copy.gb_per_s = timed ? probed<double>([&] { return peer_rate(from, to); })
                                  : unknown<double>("measured with --full");
        }
    }
    for (int device = 0; count > 1 && device < count; ++device) {
        if (cudaSetDevice(device) == cudaSuccess) {
            (void)cudaDeviceReset();
        }
    }
    (void)cudaGetLastError();
    return copies;
}

HostLink measure_host_link(int ordinal) {
    return {.to_device = probed<double>([&] { return host_rate(ordinal, cudaMemcpyHostToDevice); }),
            .to_host = probed<double>([&] { return host_rate(ordinal, cudaMemcpyDeviceToHost); })};
}

}  // namespace cpstep
