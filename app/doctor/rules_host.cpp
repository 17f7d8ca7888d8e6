// Checks of a host: network, limits, CPUs.
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>
#include <string_view>

#include "app/doctor/rule_kinds.hpp"
#include "app/estimate.hpp"

namespace cpstep::doctor {
namespace {

constexpr std::int64_t gibibyte = std::int64_t{1} << 30;
constexpr std::int64_t least_open_files = 65536;
constexpr int scale = 64;  // ranks; from here on NCCL's and MPI's connections count

bool active(IbPort const& port) {
    return port.state.find("ACTIVE") != std::string::npos;
}

bool has_active_port(HostFacts const& machine) {
    return std::ranges::any_of(machine.ib, active);
}

std::string ports_text(HostFacts const& machine) {
    std::vector<std::string> texts;
    for (IbPort const& port : machine.ib) {
        texts.push_back(fmt::format("{} {}", port.name, active(port) ? port.rate : port.state));
    }
    return fmt::format("{}", fmt::join(texts, ", "));
}

std::size_t host_count(JobFacts const& job) {
    std::set<std::string> hosts;
    for (RankFacts const& rank : job.ranks) {
        hosts.insert(rank.host);
    }
    return hosts.size();
}

Finding judge_network(JobFacts const& job) {
    std::size_t const hosts = host_count(job);
    HostFacts const& first = job.ranks.front().machine;
    if (hosts == 1) {
        return pass(
            fmt::format("one host; {}", first.ib.empty() ? "no InfiniBand" : ports_text(first)));
    }
    for (RankFacts const& rank : job.ranks) {
        if (!has_active_port(rank.machine)) {
            return warn(
                fmt::format("{} hosts over sockets: {} has {}, {}", hosts, rank.host,
                            rank.machine.ib.empty() ? "no InfiniBand" : ports_text(rank.machine),
                            fmt::join(rank.machine.interfaces, ", ")),
                "NCCL_SOCKET_IFNAME and OMPI_MCA_btl_tcp_if_include name the fast "
                "interface; NCCL_IB_DISABLE=1 keeps NCCL off ports that are down");
        }
    }
    std::string const direct = first.peer_memory_module
                                   ? ", nvidia_peermem"
                                   : ", no nvidia_peermem (dma-buf may do its work)";
    return pass(fmt::format("{} hosts; {}{}", hosts, ports_text(first), direct));
}

bool sets(RankFacts const& rank, std::string_view setting) {
    return std::ranges::find(rank.machine.nccl_settings, setting) !=
           rank.machine.nccl_settings.end();
}

/// Some pair of GPUs was tried, and all that were read each other's memory.
bool peers_are_direct(JobFacts const& job) {
    std::size_t pairs = 0;
    for (RankFacts const& rank : job.ranks) {
        pairs += rank.peers.size();
        for (PeerFacts const& peer : rank.peers) {
            if (!peer.copy.readable || peer.copy.wrong_bytes.value.value_or(1) > 0) {
                return false;
            }
        }
    }
    return pairs > 0;
}

Finding judge_nccl_settings(JobFacts const& job) {
    std::vector<std::string> by_rank;
    for (RankFacts const& rank : job.ranks) {
        std::vector<std::string> const& settings = rank.machine.nccl_settings;
        by_rank.push_back(settings.empty() ? "none" : fmt::format("{}", fmt::join(settings, " ")));
    }
    std::string listing;
    std::string const value = common_value(by_rank, listing);
    if (value.empty()) {
        return warn(listing, "give all ranks the same (mpirun -x NAME, srun --export)");
    }
    RankFacts const& first = job.ranks.front();
    if (sets(first, "NCCL_P2P_DISABLE=1") && peers_are_direct(job)) {
        return warn(value,
                    "GPUs here read each other directly, and NCCL_P2P_DISABLE=1 sends nccl "
                    "through the host: unset it");
    }
    bool const all_have_ports = std::ranges::all_of(
        job.ranks, [](RankFacts const& rank) { return has_active_port(rank.machine); });
    if (sets(first, "NCCL_IB_DISABLE=1") && host_count(job) > 1 && all_have_ports) {
        return warn(value,
                    "InfiniBand is up on all hosts, and NCCL_IB_DISABLE=1 makes nccl use "
                    "sockets: unset it");
    }
    return pass(value);
}

Finding judge_shm(RankFacts const& rank) {
    if (!rank.machine.shm_bytes.known()) {
        return warn(rank.machine.shm_bytes.why,
                    "mount /dev/shm: MPI and NCCL pass data through it");
    }
    std::int64_t const bytes = *rank.machine.shm_bytes.value;
    return bytes < gibibyte ? warn(human_bytes(bytes) + " free",
                                   "docker run --shm-size=1g, or --ipc=host; else NCCL and MPI "
                                   "stop with 'no space left'")
                            : pass(human_bytes(bytes) + " free");
}

std::string limit_text(std::int64_t limit) {
    return limit < 0 ? "unlimited" : human_bytes(limit);
}

Finding judge_memlock(RankFacts const& rank) {
    std::string const value = limit_text(rank.machine.memlock);
    if (rank.machine.memlock < 0) {
        return pass(value);
    }
    if (has_active_port(rank.machine)) {
        return fail(value,
                    "ulimit -l unlimited (docker: --ulimit memlock=-1; Slurm: "
                    "PropagateResourceLimitsExcept=MEMLOCK), or NCCL_IB_DISABLE=1 for "
                    "sockets");
    }
    return pass(value + ", no InfiniBand");
}

Finding judge_open_files(JobFacts const& job) {
    std::int64_t least = -1;
    for (RankFacts const& rank : job.ranks) {
        std::int64_t const limit = rank.machine.open_files;
        least = limit >= 0 && (least < 0 || limit < least) ? limit : least;
    }
    std::string const value = least < 0 ? "unlimited" : std::to_string(least);
    bool const few = least >= 0 && least < least_open_files;
    return few && std::ssize(job.ranks) >= scale
               ? warn(value, fmt::format("ulimit -n {}: sockets between {} ranks need it",
                                         least_open_files, job.ranks.size()))
               : pass(value);
}

Finding judge_stack(RankFacts const& rank) {
    std::string const value = limit_text(rank.machine.stack);
    return rank.machine.stack < 0
               ? warn(value,
                      "ulimit -s 8192: glibc gives threads 2 MB where the limit is "
                      "unlimited, which NCCL has overrun")
               : pass(value);
}

/// Ranks of a host against the CPUs that they may run on, all together.
Finding judge_cpus(JobFacts const& job) {
    std::map<std::string, std::pair<int, std::set<int>>> hosts;
    for (RankFacts const& rank : job.ranks) {
        auto& [ranks, cpus] = hosts[rank.host];
        ++ranks;
        cpus.insert(rank.machine.cpus.begin(), rank.machine.cpus.end());
    }
    Finding finding = skip("no CPU is known");
    for (auto const& [host, use] : hosts) {
        auto const& [ranks, cpus] = use;
        std::string const value = fmt::format("{}: {} rank{} on {} CPUs", host, ranks,
                                              ranks == 1 ? "" : "s", cpus.size());
        if (ranks > std::ssize(cpus)) {
            return warn(value,
                        "start fewer ranks, or --bind-to none: ranks that wait for a core "
                        "wait for each other, and times do not count");
        }
        finding = finding.status == Status::skip ? pass(value) : finding;
    }
    return finding;
}

constexpr Rule rules[] = {
    {"network", "InfiniBand between hosts", judge_network},
    {"NCCL settings", "equal, no path switched off", judge_nccl_settings},
    {"/dev/shm", ">= 1 GiB", over_ranks<judge_shm>},
    {"locked memory", "unlimited with InfiniBand", over_ranks<judge_memlock>},
    {"open files", ">= 65536 from 64 ranks on", judge_open_files},
    {"stack", "limited", over_ranks<judge_stack>},
    {"CPUs", "one a rank or more", judge_cpus},
};

}  // namespace

std::span<Rule const> host_rules() {
    return rules;
}

}  // namespace cpstep::doctor
