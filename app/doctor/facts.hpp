// Everything that the checks of `cpstep doctor` judge. Plain values: they travel between ranks as
// JSON, and tests make them up.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "cuda/device_facts.hpp"
#include "cuda/fact.hpp"
#include "cuda/nvml.hpp"
#include "io/output_probe.hpp"
#include "mpi/clock_sync.hpp"
#include "mpi/mpi_facts.hpp"
#include "mpi/nccl_facts.hpp"
#include "mpi/wire_probe.hpp"

namespace cpstep::doctor {

/// A port of an InfiniBand or RoCE adapter.
struct IbPort {
    std::string name = {};   ///< "mlx5_0/1"
    std::string state = {};  ///< "4: ACTIVE"
    std::string rate = {};   ///< "400 Gb/sec (4X NDR)"
};

/// Limits in bytes or files; -1: unlimited.
struct HostFacts {
    std::vector<int> cpus = {};         ///< that this rank may run on
    std::vector<int> numa_nodes = {};   ///< of those
    Fact<std::int64_t> shm_bytes = {};  ///< free in /dev/shm
    std::int64_t memlock = -1;
    std::int64_t open_files = -1;
    std::int64_t stack = -1;
    std::vector<IbPort> ib = {};
    bool peer_memory_module = false;              ///< nvidia_peermem: adapters read GPUs directly
    std::vector<std::string> interfaces = {};     ///< "eth0 (up)"
    std::vector<std::string> nccl_settings = {};  ///< of the environment: "NCCL_P2P_DISABLE=1"
    Fact<int> xids = {};                          ///< "NVRM: Xid" lines of the kernel's log
};

/// The device that a run would give this rank.
struct GpuFacts {
    bool present = false;
    std::string why = {};  ///< there is none
    int visible = 0;       ///< devices this rank sees
    int ordinal = 0;
    std::string name = {};
    std::string pci_bus_id = {};
    int capability = 0;  ///< 90 for 9.0
    std::int64_t memory_bytes = 0;
    Fact<int> numa_node = {};
    Fact<std::string> backend = {};  ///< description of the backend that was made on it
    NvmlFacts nvml = {};
    HostLink host_link = {};
};

/// Two devices that one host's first rank sees.
struct PeerFacts {
    PeerCopy copy = {};
    Fact<std::string> nvml_status = {};  ///< "ok" or why not
    Fact<std::string> ancestor = {};     ///< "one PCIe switch"
};

struct RankFacts {
    int rank = 0;
    int local_rank = 0;
    int local_size = 1;
    std::string host = {};
    std::string version = {};
    HostFacts machine = {};
    MpiFacts mpi = {};
    NcclFacts nccl = {};
    Fact<std::string> driver = {};  ///< "550.54.15"
    CudaVersions cuda = {};
    GpuFacts gpu = {};
    std::vector<PeerFacts> peers = {};  ///< first rank of each host
    Fact<OutputFacts> output = {};      ///< the same
};

/// A wire tried between all ranks.
struct WireFacts {
    std::string name = {};                 ///< "mpi"
    std::string description = {};          ///< Wires::description()
    std::string refused = {};              ///< why it cannot be had here; "" if it can
    std::string failed = {};               ///< how it broke; "" if it did not
    std::vector<std::int64_t> wrong = {};  ///< values, by rank
    double seconds = 0;                    ///< to connect and to test
    bool timing_valid = true;
    std::vector<WireRate> rates = {};  ///< with --full
};

struct JobFacts {
    std::vector<RankFacts> ranks = {};
    std::vector<ClockReading> clocks = {};
    std::vector<WireFacts> wires = {};
    std::string output = {};  ///< the folder
};

std::string to_text(RankFacts const& facts);
RankFacts rank_facts_of(std::string const& text);
nlohmann::json wires_json(std::vector<WireFacts> const& wires);

}  // namespace cpstep::doctor
