#include <array>
#include <string>

#include "cuda/cuda_backend.hpp"
#include "cuda/products.hpp"
#if CPSTEP_CUDNN
#include <cudnn.h>
#endif

namespace cpstep {
namespace {

int attribute(cudaDeviceAttr which, int ordinal) {
    int value = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&value, which, ordinal));
    return value;
}

/// Whether this process holds a context on the device. The driver is asked through the runtime:
/// linking to it would keep the program from starting where there is none.
bool has_context(int ordinal) {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &entry, 7000,
                                                cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) {
        return false;
    }
    unsigned flags = 0;
    int active = 0;
    auto* const get_state = reinterpret_cast<int (*)(int, unsigned*, int*)>(entry);
    return get_state(ordinal, &flags, &active) == 0 && active != 0;
}

/// Makes a device the current one. The one before comes back only if it was in use: choosing a
/// device takes some of its memory.
class CurrentDevice {
  public:
    explicit CurrentDevice(int ordinal) {
        CUDA_CHECK(cudaGetDevice(&before_));
        comes_back_ = before_ != ordinal && has_context(before_);
        CUDA_CHECK(cudaSetDevice(ordinal));
    }
    CurrentDevice(CurrentDevice const&) = delete;
    CurrentDevice& operator=(CurrentDevice const&) = delete;
    ~CurrentDevice() {
        if (comes_back_) {
            (void)cudaSetDevice(before_);
        }
    }

  private:
    int before_ = 0;
    bool comes_back_ = false;
};

CudaDeviceInfo read_info(int ordinal) {
    CurrentDevice const current(ordinal);
    cudaDeviceProp properties{};
    CUDA_CHECK(cudaGetDeviceProperties(&properties, ordinal));
    std::array<char, 32> bus{};
    CUDA_CHECK(cudaDeviceGetPCIBusId(bus.data(), static_cast<int>(bus.size()), ordinal));
    std::size_t free = 0;
    std::size_t total = 0;
    CUDA_CHECK(cudaMemGetInfo(&free, &total));
    return {.ordinal = ordinal,
            .name = properties.name,
            .pci_bus_id = bus.data(),
            .capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, ordinal) +
                          attribute(cudaDevAttrComputeCapabilityMinor, ordinal),
            .memory_bytes = static_cast<std::int64_t>(total),
            .free_bytes = static_cast<std::int64_t>(free)};
}

}  // namespace

int cuda_device_count(std::string& why) {
    why.clear();
    int count = 0;
    cudaError_t const rc = cudaGetDeviceCount(&count);
    if (rc == cudaSuccess && count > 0) {
        return count;
    }
    (void)cudaGetLastError();
    int driver = 0;
    (void)cudaDriverGetVersion(&driver);
    if (driver == 0) {
        why = "no NVIDIA driver is loaded";
    } else if (rc != cudaSuccess) {
        why = cudaGetErrorString(rc);
    } else {
        why = "none is visible (CUDA_VISIBLE_DEVICES)";
    }
    return 0;
}

CudaDeviceInfo cuda_device_info(int ordinal) {
    std::string why;
    int const count = cuda_device_count(why);
    require(count > 0, ExitCode::environment, "no CUDA device: {}", why);
    require(ordinal >= 0 && ordinal < count, ExitCode::environment,
            "there is no CUDA device {}; {} visible, counted from 0", ordinal, count);
    try {
        return read_info(ordinal);
    } catch (Error const& error) {
        fail(ExitCode::environment, "CUDA device {} does not answer: {}", ordinal, error.what());
    }
}

std::string cuda_versions() {
    int runtime = 0;
    int driver = 0;
    CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
    CUDA_CHECK(cudaDriverGetVersion(&driver));
    std::string text =
        fmt::format("CUDA {}.{}, driver {}.{}, {}", runtime / 1000, runtime % 1000 / 10,
                    driver / 1000, driver % 1000 / 10, products_version());
#if CPSTEP_CUDNN
    std::size_t const cudnn = cudnnGetVersion();
    text += fmt::format(", cuDNN {}.{}.{}", cudnn / 10000, cudnn / 100 % 100, cudnn % 100);
#endif
    return text;
}

}  // namespace cpstep
