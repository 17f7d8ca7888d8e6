// The CUDA devices of this machine and the backend on one of them; no CUDA header is needed to
// include this. In a build without CUDA there are no devices.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "cuda/backend.hpp"
#include "cuda/device_ops.hpp"

namespace cpstep {

/// fp32: every value float, no TF32. bf16: weights and activations bf16, sums, LSE, losses and
/// moments fp32.
enum class Precision : std::uint8_t { fp32, bf16 };

struct CudaDeviceInfo {
    int ordinal = 0;
    std::string name;        ///< "NVIDIA H200"
    std::string pci_bus_id;  ///< tells devices of one host apart
    int capability = 0;      ///< 90 for 9.0
    std::int64_t memory_bytes = 0;
    std::int64_t free_bytes = 0;
};

/// Devices this process may use; 0 sets `why` ("no driver", "this build has no CUDA; make cuda").
int cuda_device_count(std::string& why);
/// Error(environment) for a device that does not answer.
CudaDeviceInfo cuda_device_info(int ordinal);
/// "CUDA 13.0, driver 13.0, cuBLASLt 13.0.2, cuDNN 9.14.0"; "" in a build without CUDA.
std::string cuda_versions();

struct CudaBackendOptions {
    int ordinal = 0;
    Precision precision = Precision::bf16;
    AttentionBackend attention = AttentionBackend::automatic;
    std::chrono::milliseconds deadline{120'000};  ///< of every wait for the device
};
/// Errors: environment (no device, an architecture this binary holds no code for, a card before
/// sm_80).
std::unique_ptr<Backend> make_cuda_backend(CudaBackendOptions const& options);

}  // namespace cpstep
