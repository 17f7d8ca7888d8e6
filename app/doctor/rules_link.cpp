// Checks of what joins GPUs with each other, with their host and with its CPUs.
#include <algorithm>
#include <array>

#include "app/doctor/rule_kinds.hpp"

namespace cpstep::doctor {
namespace {

/// Below this share of what a link carries by its specification something is wrong with it.
constexpr double least_share = 0.7;

/// GB/s of a lane, one way, after encoding, by PCIe generation from 1 (PCI Express Base
/// Specification 6.0, table 1-2).
constexpr std::array<double, 6> lane_gb_per_s{0.25, 0.5, 0.985, 1.969, 3.938, 7.563};

/// GB/s of a link, one way, by NVML_NVLINK_VERSION_*: 1.0 is 1, 3.0 is 4, 4.0 is 6, 5.0 is 7.
double nvlink_gb_per_s(int version) {
    return version <= 1 ? 20 : version < 7 ? 25 : 50;
}

Finding judge_pcie(RankFacts const& rank) {
    NvmlFacts const& nvml = rank.gpu.nvml;
    HostLink const& link = rank.gpu.host_link;
    if (!nvml.pcie_width.known() || !nvml.max_pcie_width.known() ||
        !nvml.max_pcie_generation.known()) {
        return skip_gpu(rank, nvml.pcie_width.why);
    }
    int const width = *nvml.pcie_width.value;
    // An idle link falls back to a lower generation; a copy brings it up again.
    int const generation = std::clamp(*nvml.max_pcie_generation.value, 1, 6);
    std::string value = fmt::format("generation {} x{}", generation, width);
    double const expected = width * lane_gb_per_s[static_cast<std::size_t>(generation - 1)];
    if (link.to_device.known() && link.to_host.known()) {
        double const down = *link.to_device.value;
        double const up = *link.to_host.value;
        value += fmt::format(", {:.1f} GB/s to the GPU, {:.1f} back, {:.1f} by specification", down,
                             up, expected);
        if (std::min(down, up) < least_share * expected) {
            return warn(value, "a slow slot, a far CPU (see NUMA) or a busy host");
        }
    }
    if (width < *nvml.max_pcie_width.value) {
        return warn(fmt::format("{} of x{}", value, *nvml.max_pcie_width.value),
                    "the slot is narrower than the card, or lanes have failed: reseat it");
    }
    return pass(value);
}

/// GB/s that a copy between two GPUs should reach over NVLink; 0 without.
double expected_nvlink(RankFacts const& rank) {
    NvmlFacts const& nvml = rank.gpu.nvml;
    int const links = nvml.nvlinks.value.value_or(0);
    double const all = links * nvlink_gb_per_s(nvml.nvlink_version.value.value_or(1));
    bool const to_switch = nvml.nvlink_switch.value.value_or(0) == 1;
    return to_switch ? all : all / std::max(rank.gpu.visible - 1, 1);
}

Finding judge_nvlink(RankFacts const& rank) {
    NvmlFacts const& nvml = rank.gpu.nvml;
    if (!nvml.nvlinks.known()) {
        return skip_gpu(rank, nvml.nvlinks.why);
    }
    if (*nvml.nvlinks.value == 0) {
        return rank.gpu.visible > 1
                   ? warn("no link is active", "GPUs talk over PCIe; nvidia-smi nvlink -s")
                   : pass("no link is active (one GPU)");
    }
    std::string value =
        fmt::format("{} links, {:.0f} GB/s", *nvml.nvlinks.value,
                    *nvml.nvlinks.value * nvlink_gb_per_s(nvml.nvlink_version.value.value_or(1)));
    double slowest = 0;
    for (PeerFacts const& peer : rank.peers) {
        double const rate = peer.copy.gb_per_s.value.value_or(0);
        slowest = slowest == 0 ? rate : std::min(slowest, rate);
    }
    if (slowest > 0) {
        value += fmt::format(", slowest copy {:.1f} GB/s", slowest);
        if (slowest < least_share * expected_nvlink(rank)) {
            return warn(value, fmt::format("{:.0f} GB/s are expected of a pair: nvidia-smi nvlink "
                                           "-e shows links with errors",
                                           expected_nvlink(rank)));
        }
    }
    return pass(value);
}

Finding judge_peers(RankFacts const& rank) {
    if (rank.peers.empty()) {
        return skip(rank.gpu.present && rank.gpu.visible > 1 ? "tried by the host's first rank"
                    : rank.gpu.present                       ? "one GPU is visible"
                                                             : rank.gpu.why);
    }
    std::string unreachable;
    for (PeerFacts const& peer : rank.peers) {
        PeerCopy const& copy = peer.copy;
        std::string const pair = fmt::format("{} to {}", copy.from, copy.to);
        if (copy.wrong_bytes.value.value_or(0) > 0) {
            return fail(
                fmt::format("{}: {} bytes of 1 MiB arrived wrong", pair, *copy.wrong_bytes.value),
                "NCCL_P2P_DISABLE=1 and --transport nccl go round it; turn off ACS and the IOMMU "
                "(or use pass-through mode) to have it back");
        }
        if (!copy.wrong_bytes.known()) {
            return fail(fmt::format("{}: {}", pair, copy.wrong_bytes.why),
                        "NCCL_P2P_DISABLE=1 and --transport nccl go round it");
        }
        if (!copy.readable && unreachable.empty()) {
            std::string const& status = peer.nvml_status.value.value_or(peer.nvml_status.why);
            unreachable = fmt::format("{} ({}; {})", pair, status,
                                      peer.ancestor.value.value_or("topology not known"));
        }
    }
    if (!unreachable.empty()) {
        return warn("not direct: " + unreachable,
                    "--transport ipc needs it, nccl goes through the host; NCCL_P2P_DISABLE=1 if "
                    "NCCL tries all the same");
    }
    return pass(fmt::format("{} pairs, data right", rank.peers.size()));
}

Finding judge_numa(RankFacts const& rank) {
    if (!rank.gpu.present || !rank.gpu.numa_node.known()) {
        return skip(rank.gpu.present ? rank.gpu.numa_node.why : rank.gpu.why);
    }
    int const node = *rank.gpu.numa_node.value;
    std::vector<int> const& own = rank.machine.numa_nodes;
    if (node < 0 || own.empty()) {
        return pass("one node");
    }
    bool const near = std::ranges::find(own, node) != own.end();
    std::string const value = fmt::format("GPU at node {}", node);
    return near ? pass(value)
                : warn(fmt::format("{}, CPUs of node {}", value, own.front()),
                       "bind ranks to the CPUs of their GPU (mpirun --bind-to numa, srun "
                       "--cpu-bind), or not at all (--bind-to none)");
}

constexpr Rule rules[] = {
    {"PCIe", "full width, >= 70 % of its rate", over_ranks<judge_pcie>},
    {"NVLink", "active, >= 70 % of its rate", over_ranks<judge_nvlink>},
    {"peer access", "direct, data right", over_ranks<judge_peers>},
    {"NUMA", "CPUs beside the GPU", over_ranks<judge_numa>},
};

}  // namespace

std::span<Rule const> link_rules() {
    return rules;
}

}  // namespace cpstep::doctor
