// A job on a machine where nothing is amiss, for tests to spoil.
#pragma once

#include <string>

#include "app/doctor/facts.hpp"
#include "cuda/error.hpp"

namespace cpstep::test {

using namespace cpstep::doctor;

/// A GPU of a rank on a machine where nothing is amiss.
inline GpuFacts good_gpu(int local_rank) {
    GpuFacts gpu;
    gpu.present = true;
    gpu.visible = 2;
    gpu.ordinal = local_rank;
    gpu.name = "NVIDIA H100";
    gpu.pci_bus_id = fmt::format("0000:{:02X}:00.0", 0x1B + local_rank);
    gpu.capability = 90;
    gpu.memory_bytes = std::int64_t{80} << 30;
    gpu.numa_node = known(0);
    gpu.backend = known(std::string("NVIDIA H100, bf16, attention cudnn 9.14.0, x"));
    gpu.nvml = {.uuid = known(std::string("GPU-1")),
                .mig = known(0),
                .compute_mode = known(0),
                .persistence = known(1),
                .processes = known(0),
                .ecc_uncorrected = known(std::int64_t{0}),
                .remap_pending = known(0),
                .remap_failed = known(0),
                .pages_pending = unknown<int>("Not Supported"),
                .sm_clock_mhz = known(1980),
                .max_sm_clock_mhz = known(1980),
                .clock_reasons = known(std::int64_t{0x1}),
                .power_w = known(120.0),
                .power_limit_w = known(700.0),
                .temperature_c = known(31),
                .max_pcie_generation = known(5),
                .pcie_width = known(16),
                .max_pcie_width = known(16),
                .nvlinks = known(18),
                .nvlink_version = known(6),
                .nvlink_switch = known(1)};
    return gpu;
}

inline GpuFacts no_gpu(std::string const& why) {
    GpuFacts gpu;
    gpu.why = why;
    gpu.backend = unknown<std::string>(why);
    return gpu;
}

inline PeerFacts good_peer(int from, int to) {
    return {.copy = {.from = from,
                     .to = to,
                     .readable = true,
                     .wrong_bytes = known(std::int64_t{0}),
                     .gb_per_s = unknown<double>("measured with --full")},
            .nvml_status = known(std::string("ok")),
            .ancestor = known(std::string("one PCIe switch"))};
}

inline RankFacts good_rank(int rank, int ranks_of_host) {
    int const local = rank % ranks_of_host;
    RankFacts facts{.rank = rank,
                    .local_rank = local,
                    .local_size = ranks_of_host,
                    .host = fmt::format("host{}", rank / ranks_of_host),
                    .version = "0.1.0 (git 1a2b3c4)"};
    facts.machine = {.cpus = {0, 1, 2, 3, 4, 5, 6, 7},
                     .numa_nodes = {0},
                     .shm_bytes = known(std::int64_t{64} << 30),
                     .memlock = -1,
                     .open_files = 1 << 20,
                     .stack = 8 << 20,
                     .ib = {{.name = "mlx5_0/1", .state = "4: ACTIVE", .rate = "400 Gb/sec"}},
                     .peer_memory_module = true,
                     .interfaces = {"eth0 (up)"},
                     .xids = known(0)};
    facts.mpi = {.library = "Open MPI v4.1.4, package: x",
                 .thread_level = "FUNNELED",
                 .cuda_aware = known(0),
                 .launcher = "mpirun (Open MPI)",
                 .local_rank = known(local)};
    facts.nccl = {.header = known(22809), .library = known(22809), .path = "/lib/libnccl.so.2"};
    facts.driver = known(std::string("550.54.15"));
    facts.cuda = {.runtime = known(12040), .driver = known(12040)};
    facts.gpu = good_gpu(local);
    if (local == 0) {
        facts.peers = {good_peer(0, 1), good_peer(1, 0)};
        facts.output = known(OutputFacts{.seconds = known(0.01),
                                         .free_bytes = known(std::int64_t{1} << 40),
                                         .file_system = "lustre",
                                         .sees_mark = true});
    } else {
        facts.output = unknown<OutputFacts>("tried by the host's first rank");
    }
    return facts;
}

/// Two hosts of two GPUs each.
inline JobFacts good_job() {
    JobFacts job;
    for (int rank = 0; rank < 4; ++rank) {
        job.ranks.push_back(good_rank(rank, 2));
        job.clocks.push_back({.bound_ns = rank == 0 ? 0 : 2'000});
    }
    job.wires = {{.name = "mpi", .description = "mpi (4 ranks)", .wrong = {0, 0, 0, 0}},
                 {.name = "nccl", .description = "nccl 2.28.9", .wrong = {0, 0, 0, 0}}};
    job.output = "out";
    return job;
}

}  // namespace cpstep::test
