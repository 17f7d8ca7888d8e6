// Checks of GPUs, their driver and their state.
#include <algorithm>
#include <cstdlib>
#include <map>

#include "app/doctor/rule_kinds.hpp"

namespace cpstep::doctor {
namespace {

constexpr int least_driver = 550;
constexpr int least_cuda = 12010;
constexpr int least_capability = 80;

std::string cuda_text(int version) {
    return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

bool any_gpu(JobFacts const& job) {
    return std::any_of(job.ranks.begin(), job.ranks.end(),
                       [](RankFacts const& rank) { return rank.gpu.present; });
}

/// Ranks with one GPU, by host and PCI address.
std::map<std::pair<std::string, std::string>, std::vector<int>> ranks_of_gpus(JobFacts const& job) {
    std::map<std::pair<std::string, std::string>, std::vector<int>> ranks_of;
    for (RankFacts const& rank : job.ranks) {
        if (rank.gpu.present) {
            ranks_of[{rank.host, rank.gpu.pci_bus_id}].push_back(rank.rank);
        }
    }
    return ranks_of;
}

Finding judge_devices(JobFacts const& job) {
    if (!any_gpu(job)) {
        return skip(job.ranks.front().gpu.why);
    }
    std::vector<int> without;
    for (RankFacts const& rank : job.ranks) {
        if (!rank.gpu.present) {
            without.push_back(rank.rank);
        }
    }
    if (!without.empty()) {
        RankFacts const& first = job.ranks[static_cast<std::size_t>(without.front())];
        return fail(fmt::format("{} without: {}", ranks_text(without), first.gpu.why),
                    "let every rank see a GPU (--gpus-per-node, CUDA_VISIBLE_DEVICES), or run all "
                    "with --device cpu");
    }
    auto const ranks_of = ranks_of_gpus(job);
    for (auto const& [gpu, ranks] : ranks_of) {
        if (ranks.size() > 1) {
            return warn(fmt::format("{} share {} of {}", ranks_text(ranks), gpu.second, gpu.first),
                        "start at most one rank a GPU, or give --allow-gpu-sharing: results count, "
                        "times do not");
        }
    }
    return pass(fmt::format("{} GPU{}", ranks_of.size(), ranks_of.size() == 1 ? "" : "s"));
}

Finding judge_driver(JobFacts const& job) {
    std::vector<std::string> versions;
    std::vector<int> without;
    for (RankFacts const& rank : job.ranks) {
        versions.push_back(rank.driver.value.value_or(""));
        if (!rank.driver.known()) {
            without.push_back(rank.rank);
        }
    }
    if (!without.empty()) {
        std::string const& why = job.ranks[static_cast<std::size_t>(without.front())].driver.why;
        return without.size() == job.ranks.size()
                   ? skip(why)
                   : fail(fmt::format("{}: {}", ranks_text(without), why),
                          "install the same driver on every host");
    }
    for (std::size_t rank = 0; rank < versions.size(); ++rank) {
        if (std::atoi(versions[rank].c_str()) < least_driver) {
            return fail(fmt::format("{} on rank {}", versions[rank], rank),
                        fmt::format("install driver {} or later", least_driver));
        }
    }
    std::string listing;
    std::string const common = common_value(versions, listing);
    return common.empty() ? fail(listing, "install the same driver on every host") : pass(common);
}

Finding judge_cuda(RankFacts const& rank) {
    CudaVersions const& cuda = rank.cuda;
    if (!cuda.runtime.known() || !cuda.driver.known()) {
        return skip(cuda.runtime.known() ? cuda.driver.why : cuda.runtime.why);
    }
    int const runtime = *cuda.runtime.value;
    int const driver = *cuda.driver.value;
    std::string const value =
        fmt::format("{}, driver for {}", cuda_text(runtime), cuda_text(driver));
    if (runtime < least_cuda) {
        return fail(value, fmt::format("build with CUDA {} or later", cuda_text(least_cuda)));
    }
    if (runtime / 1000 > driver / 1000) {
        return fail(value,
                    "the driver is older than the CUDA of this program: update it, or build "
                    "with an older toolkit");
    }
    if (runtime > driver) {
        return warn(value,
                    "minor version compatibility: code that the driver must compile (PTX) "
                    "does not load; update the driver");
    }
    return pass(value);
}

Finding judge_code(RankFacts const& rank) {
    GpuFacts const& gpu = rank.gpu;
    if (!gpu.present) {
        return skip(gpu.why);
    }
    std::string const value = fmt::format("sm_{} ({})", gpu.capability, gpu.name);
    if (gpu.capability < least_capability) {
        return fail(value, "an Ampere card or a later one is needed; --device cpu works anywhere");
    }
    return gpu.backend.known()
               ? pass(value)
               : fail(fmt::format("{}: {}", value, gpu.backend.why),
                      "see the text; -DCMAKE_CUDA_ARCHITECTURES adds code for a card");
}

Finding judge_attention(RankFacts const& rank) {
    if (!rank.gpu.backend.known()) {
        return skip(rank.gpu.present ? "no backend" : rank.gpu.why);
    }
    // "..., attention mma (why not cuDNN), ..."
    std::string const& text = *rank.gpu.backend.value;
    std::size_t const at = text.find("attention ");
    std::string const value = at == std::string::npos ? text : text.substr(at + 10);
    if (value.starts_with("cudnn")) {
        return pass("cudnn");
    }
    return warn(value,
                "slower from some 4096 rows on, but right; install cuDNN and its frontend headers "
                "(jobs/install.sh --cuda), or give --attention-backend mma to make it the choice");
}

Finding judge_models(JobFacts const& job) {
    if (!any_gpu(job)) {
        return skip(job.ranks.front().gpu.why);
    }
    std::vector<std::string> models;
    for (RankFacts const& rank : job.ranks) {
        models.push_back(fmt::format("{}, {} GiB", rank.gpu.name, rank.gpu.memory_bytes >> 30));
    }
    std::string listing;
    std::string const common = common_value(models, listing);
    return common.empty()
               ? warn(listing, std::string("a step is as slow as its slowest GPU: ") + parity_only)
               : pass(common);
}

Finding judge_mig(RankFacts const& rank) {
    Fact<int> const& mig = rank.gpu.nvml.mig;
    if (!mig.known()) {
        return skip_gpu(rank, mig.why);  // cards without MIG say so
    }
    return *mig.value == 0 ? pass("off")
                           : fail("on", std::string("nvidia-smi -mig 0; ") + parity_only);
}

Finding judge_compute_mode(RankFacts const& rank) {
    Fact<int> const& mode = rank.gpu.nvml.compute_mode;
    if (!mode.known()) {
        return skip_gpu(rank, mode.why);
    }
    switch (*mode.value) {
        case 0:
            return pass("default");
        case 2:
            return fail("prohibited", "nvidia-smi -c DEFAULT");
        default:
            return fail("exclusive",
                        "nvidia-smi -c DEFAULT: peers' memory and shared GPUs need it");
    }
}

Finding judge_persistence(RankFacts const& rank) {
    Fact<int> const& mode = rank.gpu.nvml.persistence;
    if (!mode.known()) {
        return skip_gpu(rank, mode.why);
    }
    return *mode.value == 1 ? pass("on")
                            : warn("off",
                                   "nvidia-smi -pm 1, or the first call of each run waits "
                                   "for the driver to load");
}

/// Read before this job touches its GPUs: whoever computes there is a stranger.
Finding judge_processes(RankFacts const& rank) {
    Fact<int> const& processes = rank.gpu.nvml.processes;
    if (!processes.known()) {
        return skip_gpu(rank, processes.why);
    }
    if (*processes.value == 0) {
        return pass("none");
    }
    return fail(fmt::format("{} on {}", *processes.value, rank.gpu.pci_bus_id),
                std::string("nvidia-smi shows them; take a free GPU (CUDA_VISIBLE_DEVICES): ") +
                    parity_only);
}

Finding judge_memory_health(RankFacts const& rank) {
    NvmlFacts const& nvml = rank.gpu.nvml;
    struct {
        Fact<std::int64_t> count;
        char const* what;
    } const troubles[] = {
        {nvml.ecc_uncorrected, "uncorrected errors"},
        {{nvml.remap_pending.value, nvml.remap_pending.why}, "rows waiting to be remapped"},
        {{nvml.remap_failed.value, nvml.remap_failed.why}, "rows that could not be remapped"},
        {{nvml.pages_pending.value, nvml.pages_pending.why}, "pages waiting to be retired"},
    };
    bool any = false;
    for (auto const& trouble : troubles) {
        any = any || trouble.count.known();
        if (trouble.count.value.value_or(0) > 0) {
            return fail(fmt::format("{}: {} on {} {}", trouble.what, *trouble.count.value,
                                    rank.gpu.pci_bus_id, nvml.uuid.value.value_or("")),
                        "take the GPU out of use and reset it (nvidia-smi -r); if it comes back, "
                        "replace it");
        }
    }
    if (!any) {
        return skip_gpu(rank, nvml.ecc_uncorrected.why);
    }
    return pass("no uncorrected error, no row waiting");
}

Finding judge_xid(RankFacts const& rank) {
    Fact<int> const& xids = rank.machine.xids;
    if (!xids.known()) {
        return skip(xids.why);
    }
    return *xids.value == 0 ? pass("none")
                            : warn(fmt::format("{} in the kernel's log", *xids.value),
                                   "dmesg | grep Xid: 48, 63, 74, 79, 94 and 95 mean a broken GPU "
                                   "or link");
}

std::string clocks_text(NvmlFacts const& nvml) {
    auto const part = [](auto const& fact, char const* text) {
        return fact.known() ? fmt::format(fmt::runtime(text), *fact.value) : std::string();
    };
    return part(nvml.sm_clock_mhz, "{}") + part(nvml.max_sm_clock_mhz, " of {} MHz") +
           part(nvml.power_w, ", {:.0f}") + part(nvml.power_limit_w, " of {:.0f} W") +
           part(nvml.temperature_c, ", {} C");
}

Finding judge_clocks(RankFacts const& rank) {
    NvmlFacts const& nvml = rank.gpu.nvml;
    if (!nvml.clock_reasons.known()) {
        return skip_gpu(rank, nvml.clock_reasons.why);
    }
    std::string const value = clocks_text(nvml);
    std::int64_t const reasons = *nvml.clock_reasons.value;
    using namespace clock_reason;
    if ((reasons & (hardware_thermal | software_thermal)) != 0) {
        return fail(value + ": slowed down, too hot",
                    std::string("see to the cooling: ") + parity_only);
    }
    if ((reasons & (hardware_slowdown | power_brake)) != 0) {
        return fail(value + ": slowed down by the hardware",
                    std::string("see to power supply and cooling: ") + parity_only);
    }
    if ((reasons & software_power_cap) != 0) {
        return warn(value + ": held by the power limit",
                    "nvidia-smi -pl, or expect times to differ between GPUs");
    }
    return pass(value);
}

constexpr Rule rules[] = {
    {"GPUs", "one for each rank", judge_devices},
    {"driver", ">= 550, one version", judge_driver},
    {"CUDA", ">= 12.1, not above the driver's", over_ranks<judge_cuda>},
    {"GPU code", "sm_80 or later, code for it here", over_ranks<judge_code>},
    {"attention", "cuDNN, and it agrees with ours", over_ranks<judge_attention>},
    {"GPU model", "one model", judge_models},
    {"MIG", "off", over_ranks<judge_mig>},
    {"compute mode", "default", over_ranks<judge_compute_mode>},
    {"persistence", "on", over_ranks<judge_persistence>},
    {"other processes", "none on our GPUs", over_ranks<judge_processes>},
    {"GPU memory", "no uncorrected errors", over_ranks<judge_memory_health>},
    {"Xid", "none", over_ranks<judge_xid>},
    {"GPU clocks", "not held down", over_ranks<judge_clocks>},
};

}  // namespace

std::span<Rule const> gpu_rules() {
    return rules;
}

}  // namespace cpstep::doctor
