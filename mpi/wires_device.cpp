// The choice of a wire for device memory.
#include <fmt/ranges.h>

#include <algorithm>
#include <fstream>
#include <map>

#include "cuda/cuda_backend.hpp"
#include "mpi/wire_bodies.hpp"

namespace cpstep {
namespace {

#ifdef CPSTEP_NCCL
constexpr bool has_nccl = true;
#else
constexpr bool has_nccl = false;
#endif

/// The GPU of each rank, by world rank.
struct Cards {
    std::vector<std::string> machines;  ///< tell hosts apart that have one name
    std::vector<std::string> pci_bus_ids;
};

std::string machine_id(World const& world) {
    std::string boot;
    std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
    return world.host() + " " + boot;
}

Cards gather_cards(World& world, CudaDeviceInfo const& own) {
    return {.machines = world.gather(machine_id(world)),
            .pci_bus_ids = world.gather(own.pci_bus_id)};
}

/// Whether any GPU has several ranks, which must have been allowed. All ranks see the same.
bool shared_gpus(World& world, Cards const& cards, CudaDeviceInfo const& own, bool allowed) {
    std::vector<std::string> const hosts = world.gather(world.host());
    std::vector<std::string> const names = world.gather(own.name);
    std::map<std::pair<std::string, std::string>, std::vector<int>> ranks_of;
    for (std::size_t r = 0; r < cards.machines.size(); ++r) {
        ranks_of[{cards.machines[r], cards.pci_bus_ids[r]}].push_back(static_cast<int>(r));
    }
    auto const first =
        std::ranges::find_if(ranks_of, [](auto const& card) { return card.second.size() > 1; });
    if (first == ranks_of.end()) {
        return false;
    }
    if (!allowed) {
        auto const rank = static_cast<std::size_t>(first->second.front());
        throw AgreedError(
            ExitCode::usage,
            fmt::format(
                "ranks {} use one GPU, {} ({}) of host {}; start at most one rank a GPU, or "
                "let them share it with --allow-gpu-sharing",
                fmt::join(first->second, " and "), cards.pci_bus_ids[rank], names[rank],
                hosts[rank]));
    }
    return true;
}

/// Why this rank cannot read the memory of every other over CUDA IPC; "" if it can.
std::string obstacle_of_rank(World const& world, Cards const& cards, int ordinal) {
    auto const own = static_cast<std::size_t>(world.rank());
    for (std::size_t r = 0; r < cards.pci_bus_ids.size(); ++r) {
        if (cards.machines[r] != cards.machines[own]) {
            return fmt::format("rank {} is on another host than rank {}", r, own);
        }
        if (cards.pci_bus_ids[r] == cards.pci_bus_ids[own]) {
            continue;
        }
        int peer = 0;
        if (cudaDeviceGetByPCIBusId(&peer, cards.pci_bus_ids[r].c_str()) != cudaSuccess) {
            (void)cudaGetLastError();
            return fmt::format(
                "GPU {} of rank {} is not visible to rank {} (give all GPUs of a host to all of "
                "its "
                "ranks: --gpus-per-node, not --gpus-per-task)",
                cards.pci_bus_ids[r], r, own);
        }
        int can = 0;
        CUDA_CHECK(cudaDeviceCanAccessPeer(&can, ordinal, peer));
        if (can == 0) {
            return fmt::format("GPU {} of rank {} cannot read the memory of GPU {} of rank {}",
                               cards.pci_bus_ids[own], own, cards.pci_bus_ids[r], r);
        }
    }
    return "";
}

/// The first rank's; the same on all.
std::string ipc_obstacle(World& world, Cards const& cards, int ordinal) {
    std::string mine;
    world.collectively([&] { mine = obstacle_of_rank(world, cards, ordinal); });
    for (std::string const& obstacle : world.gather(mine)) {
        if (!obstacle.empty()) {
            return obstacle;
        }
    }
    return "";
}

Transport chosen(World& world, Cards const& cards, int ordinal, Transport wanted) {
    if (wanted == Transport::automatic || wanted == Transport::ipc) {
        std::string const obstacle = ipc_obstacle(world, cards, ordinal);
        if (obstacle.empty()) {
            return Transport::ipc;
        }
        if (wanted == Transport::ipc) {
            throw AgreedError(
                ExitCode::environment,
                fmt::format("--transport ipc: {}; use --transport nccl or mpi", obstacle));
        }
        return has_nccl ? Transport::nccl : Transport::mpi;
    }
    if (wanted == Transport::nccl && !has_nccl) {
        throw AgreedError(ExitCode::environment,
                          "--transport nccl: this build has no NCCL; install it (nccl.h, libnccl) "
                          "and build again, or use --transport ipc or mpi");
    }
    return wanted;
}

}  // namespace

std::unique_ptr<Wires> make_device_wires(World& world, Backend& backend,
                                         WireOptions const& options) {
    int const ordinal = backend.queues()->ordinal();
    CudaDeviceInfo own;
    world.collectively([&] { own = cuda_device_info(ordinal); });
    Cards const cards = gather_cards(world, own);
    [[maybe_unused]] bool const shared = shared_gpus(world, cards, own, options.allow_gpu_sharing);
    switch (chosen(world, cards, ordinal, options.transport)) {
        case Transport::ipc:
            return make_ipc_wires(world, backend);
        case Transport::nccl:
#ifdef CPSTEP_NCCL
            return make_nccl_wires(world, backend, shared, options.nccl_max_ctas);
#endif
        case Transport::mpi:
        case Transport::automatic:
            break;
    }
    return make_staged_wires(world, backend);
}

}  // namespace cpstep
