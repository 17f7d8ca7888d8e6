// A build without CUDA: nothing is known.
#include "cuda/device_facts.hpp"

namespace cpstep {
namespace {

constexpr char const* no_cuda = "this build has no CUDA";

}  // namespace

CudaVersions cuda_version_numbers() {
    return {.runtime = unknown<int>(no_cuda), .driver = unknown<int>(no_cuda)};
}

std::vector<std::string> visible_pci_bus_ids() {
    return {};
}

std::vector<PeerCopy> probe_peer_copies(bool /*timed*/) {
    return {};
}

HostLink measure_host_link(int /*ordinal*/) {
    return {.to_device = unknown<double>(no_cuda), .to_host = unknown<double>(no_cuda)};
}

}  // namespace cpstep
