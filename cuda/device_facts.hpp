// What the CUDA runtime says of the GPUs this process sees, for a look at a machine before a run.
// Nothing here throws; in a build without CUDA every fact is unknown.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/fact.hpp"

namespace cpstep {

struct CudaVersions {
    Fact<int> runtime = {};  ///< 12040 is 12.4
    Fact<int> driver = {};   ///< the newest CUDA that the driver knows
};
CudaVersions cuda_version_numbers();

/// The PCI addresses of visible devices, by ordinal; none without a usable device.
std::vector<std::string> visible_pci_bus_ids();

/// A copy between two visible devices.
struct PeerCopy {
    int from = 0;
    int to = 0;
    bool readable = false;                ///< cudaDeviceCanAccessPeer: no detour through the host
    Fact<std::int64_t> wrong_bytes = {};  ///< of 1 MiB of a known pattern
    Fact<double> gb_per_s = {};           ///< of 64 MiB, 1e9 bytes; measured where asked for
};
/// Every ordered pair of visible devices. This process must hold nothing on any of them: their
/// contexts are destroyed.
std::vector<PeerCopy> probe_peer_copies(bool timed);

/// Copies of 64 MiB between pinned host memory and a device, GB/s.
struct HostLink {
    Fact<double> to_device = {};
    Fact<double> to_host = {};
};
HostLink measure_host_link(int ordinal);

}  // namespace cpstep
