// A build without CUDA: no devices.
#include "cuda/cuda_device.hpp"

namespace cpstep {
namespace {

constexpr char const* no_cuda = "this build has no CUDA support; build it with `make cuda`";

}  // namespace

int cuda_device_count(std::string& why) {
    why = no_cuda;
    return 0;
}

CudaDeviceInfo cuda_device_info(int /*ordinal*/) {
    fail(ExitCode::environment, "no CUDA device: {}", no_cuda);
}

std::string cuda_versions() {
    return "";
}

std::unique_ptr<Backend> make_cuda_backend(CudaBackendOptions const& /*options*/) {
    fail(ExitCode::environment, "no CUDA device: {}", no_cuda);
}

}  // namespace cpstep
