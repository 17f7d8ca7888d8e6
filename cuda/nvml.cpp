#include "cuda/nvml.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <utility>
#include <vector>

#include "cuda/error.hpp"

namespace cpstep {
namespace {

// Own prototypes of NVML's stable C interface (nvml.h, CUDA 11 to 13). Enums are passed as int.
using NvmlDevice = void*;
using NvmlReturn = int;
constexpr NvmlReturn nvml_success = 0;
constexpr int sm_clock = 1;
constexpr int uncorrected_errors = 1;
constexpr int volatile_counter = 0;
constexpr int core_sensor = 0;
constexpr int read_capability = 0;
constexpr int switch_type = 2;
constexpr unsigned most_links = 18;  // NVML_NVLINK_MAX_LINKS
constexpr unsigned most_processes = 256;

/// nvmlProcessInfo_t of versions 2 and 3.
struct ProcessInfo {
    unsigned pid;
    unsigned long long used_memory;
    unsigned gpu_instance;
    unsigned compute_instance;
};
static_assert(sizeof(ProcessInfo) == 24);

}  // namespace

struct Nvml::Library {
    void* handle = nullptr;
    std::string why;  // it cannot be used
    bool begun = false;

    template <class Function>
    Function* symbol(char const* name) const {
        return handle == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(handle, name));
    }

    std::string text(NvmlReturn rc) const {
        auto* const describe = symbol<char const*(NvmlReturn)>("nvmlErrorString");
        char const* const words = describe == nullptr ? nullptr : describe(rc);
        return words == nullptr ? fmt::format("NVML error {}", rc) : std::string(words);
    }

    /// Why a call gave nothing; "" if it did.
    template <class... Parameters>
    std::string failure(char const* name, Parameters... arguments) const {
        if (!why.empty()) {
            return why;
        }
        auto* const call = symbol<NvmlReturn(Parameters...)>(name);
        if (call == nullptr) {
            return fmt::format("this NVML has no {}", name);
        }
        NvmlReturn const rc = call(arguments...);
        return rc == nvml_success ? "" : fmt::format("{}: {}", name, text(rc));
    }

    /// name(arguments..., &value), made a T by `scale`.
    template <class T, class Raw, class... Parameters>
    Fact<T> ask(char const* name, Parameters... arguments) const {
        Raw value{};
        std::string const failed = failure(name, arguments..., &value);
        return failed.empty() ? known(static_cast<T>(value)) : unknown<T>(failed);
    }

    template <class... Parameters>
    Fact<int> number(char const* name, Parameters... arguments) const {
        return ask<int, unsigned>(name, arguments...);
    }

    Fact<double> watts(char const* name, NvmlDevice device) const {
        Fact<int> const milliwatts = number(name, device);
        return milliwatts.known() ? known(1e-3 * *milliwatts.value)
                                  : unknown<double>(milliwatts.why);
    }

    Fact<NvmlDevice> find(std::string const& pci_bus_id) const {
        return ask<NvmlDevice, NvmlDevice>("nvmlDeviceGetHandleByPciBusId_v2", pci_bus_id.c_str());
    }

    void read_state(NvmlFacts& facts, NvmlDevice device) const;
    void read_memory_health(NvmlFacts& facts, NvmlDevice device) const;
    void read_clocks(NvmlFacts& facts, NvmlDevice device) const;
    void read_links(NvmlFacts& facts, NvmlDevice device) const;

    /// What these reads find of a device; of one that is not found, why.
    template <class... Reads>
    NvmlFacts facts_of(std::string const& pci_bus_id, Reads... reads) const {
        Fact<NvmlDevice> const device = find(pci_bus_id);
        Library silent;
        silent.why = device.why;
        Library const& asked = device.known() ? *this : silent;
        NvmlFacts facts;
        ((asked.*reads)(facts, device.value.value_or(nullptr)), ...);
        return facts;
    }
};

void Nvml::Library::read_state(NvmlFacts& facts, NvmlDevice device) const {
    std::array<char, 96> uuid{};
    std::string const failed =
        failure("nvmlDeviceGetUUID", device, uuid.data(), static_cast<unsigned>(uuid.size()));
    facts.uuid = failed.empty() ? known(std::string(uuid.data())) : unknown<std::string>(failed);
    unsigned pending = 0;
    unsigned now = 0;
    std::string const no_mig = failure("nvmlDeviceGetMigMode", device, &now, &pending);
    facts.mig = no_mig.empty() ? known(static_cast<int>(now)) : unknown<int>(no_mig);
    facts.compute_mode = number("nvmlDeviceGetComputeMode", device);
    facts.persistence = number("nvmlDeviceGetPersistenceMode", device);

    std::vector<ProcessInfo> processes(most_processes);
    unsigned count = most_processes;
    std::string missing;
    for (char const* const name :
         {"nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"}) {
        count = most_processes;
        missing = failure(name, device, &count, processes.data());
        if (missing.empty()) {
            break;
        }
    }
    facts.processes = missing.empty() ? known(static_cast<int>(count)) : unknown<int>(missing);
}

void Nvml::Library::read_memory_health(NvmlFacts& facts, NvmlDevice device) const {
    facts.ecc_uncorrected = ask<std::int64_t, unsigned long long>(
        "nvmlDeviceGetTotalEccErrors", device, uncorrected_errors, volatile_counter);
    std::array<unsigned, 4> rows{};  // corrected, uncorrected, pending, failed
    std::string const failed =
        failure("nvmlDeviceGetRemappedRows", device, &rows[0], &rows[1], &rows[2], &rows[3]);
    auto const flag = [&](unsigned value) {
        return failed.empty() ? known(static_cast<int>(value)) : unknown<int>(failed);
    };
    facts.remap_pending = flag(rows[2]);
    facts.remap_failed = flag(rows[3]);
    facts.pages_pending = number("nvmlDeviceGetRetiredPagesPendingStatus", device);
}

void Nvml::Library::read_clocks(NvmlFacts& facts, NvmlDevice device) const {
    facts.sm_clock_mhz = number("nvmlDeviceGetClockInfo", device, sm_clock);
    facts.max_sm_clock_mhz = number("nvmlDeviceGetMaxClockInfo", device, sm_clock);
    for (char const* const name :
         {"nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"}) {
        facts.clock_reasons = ask<std::int64_t, unsigned long long>(name, device);
        if (facts.clock_reasons.known()) {
            break;
        }
    }
    facts.power_w = watts("nvmlDeviceGetPowerUsage", device);
    facts.power_limit_w = watts("nvmlDeviceGetEnforcedPowerLimit", device);
    facts.temperature_c = number("nvmlDeviceGetTemperature", device, core_sensor);
}

void Nvml::Library::read_links(NvmlFacts& facts, NvmlDevice device) const {
    facts.max_pcie_generation = number("nvmlDeviceGetMaxPcieLinkGeneration", device);
    facts.pcie_width = number("nvmlDeviceGetCurrPcieLinkWidth", device);
    facts.max_pcie_width = number("nvmlDeviceGetMaxPcieLinkWidth", device);
    facts.nvlinks = number("nvmlDeviceGetNvLinkState", device, 0U);
    facts.nvlink_version = unknown<int>("no active NVLink");
    facts.nvlink_switch = facts.nvlink_version;
    if (!facts.nvlinks.known()) {
        return;  // a card without NVLink does not answer for link 0
    }
    int active = 0;
    for (unsigned link = 0; link < most_links; ++link) {
        if (number("nvmlDeviceGetNvLinkState", device, link).value.value_or(0) == 1) {
            if (active++ == 0) {
                facts.nvlink_version = number("nvmlDeviceGetNvLinkVersion", device, link);
                facts.nvlink_switch = number("nvmlDeviceGetNvLinkRemoteDeviceType", device, link);
            }
        }
    }
    facts.nvlinks = known(active);
    if (facts.nvlink_switch.known()) {
        facts.nvlink_switch = known(*facts.nvlink_switch.value == switch_type ? 1 : 0);
    }
}

std::string clock_reason::names(std::int64_t reasons) {
    std::vector<char const*> found;
    for (auto const& [bits, name] : {std::pair{software_thermal | hardware_thermal, "too hot"},
                                     {hardware_slowdown, "hardware slowdown"},
                                     {power_brake, "power brake"},
                                     {software_power_cap, "power limit"}}) {
        if ((reasons & bits) != 0) {
            found.push_back(name);
        }
    }
    return fmt::format("{}", fmt::join(found, ", "));
}

Nvml::Nvml(std::string const& library) : library_(std::make_unique<Library>()) {
    library_->handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library_->handle == nullptr) {
        library_->why = fmt::format("{} is not there (no NVIDIA driver)", library);
        return;
    }
    std::string const failed = library_->failure("nvmlInit_v2");
    library_->begun = failed.empty();
    library_->why = failed;
}

Nvml::~Nvml() {
    if (library_->begun) {
        using Shutdown = int (*)();
        auto const shutdown = reinterpret_cast<Shutdown>(dlsym(library_->handle, "nvmlShutdown"));
        if (shutdown != nullptr) {
            (void)shutdown();
        }
    }
    if (library_->handle != nullptr) {
        (void)dlclose(library_->handle);
    }
}

Fact<std::string> Nvml::driver_version() const {
    std::array<char, 96> version{};
    std::string const failed = library_->failure("nvmlSystemGetDriverVersion", version.data(),
                                                 static_cast<unsigned>(version.size()));
    return failed.empty() ? known(std::string(version.data())) : unknown<std::string>(failed);
}

NvmlFacts Nvml::device(std::string const& pci_bus_id) const {
    return library_->facts_of(pci_bus_id, &Library::read_state, &Library::read_memory_health,
                              &Library::read_clocks, &Library::read_links);
}

NvmlFacts Nvml::clocks(std::string const& pci_bus_id) const {
    return library_->facts_of(pci_bus_id, &Library::read_clocks);
}

Fact<std::string> Nvml::peer_status(std::string const& from, std::string const& to) const {
    static constexpr std::array<char const*, 7> texts{"ok",
                                                      "chipset not supported",
                                                      "GPU not supported",
                                                      "IOH topology not supported",
                                                      "disabled by registry key",
                                                      "not supported",
                                                      "unknown"};
    Fact<NvmlDevice> const one = library_->find(from);
    Fact<NvmlDevice> const other = library_->find(to);
    if (!one.known() || !other.known()) {
        return unknown<std::string>(one.known() ? other.why : one.why);
    }
    Fact<int> const status =
        library_->number("nvmlDeviceGetP2PStatus", *one.value, *other.value, read_capability);
    if (!status.known()) {
        return unknown<std::string>(status.why);
    }
    bool const named = *status.value >= 0 && *status.value < std::ssize(texts);
    return known(named ? std::string(texts[static_cast<std::size_t>(*status.value)])
                       : fmt::format("status {}", *status.value));
}

Fact<std::string> Nvml::common_ancestor(std::string const& one, std::string const& other) const {
    Fact<NvmlDevice> const first = library_->find(one);
    Fact<NvmlDevice> const second = library_->find(other);
    if (!first.known() || !second.known()) {
        return unknown<std::string>(first.known() ? second.why : first.why);
    }
    Fact<int> const level =
        library_->number("nvmlDeviceGetTopologyCommonAncestor", *first.value, *second.value);
    if (!level.known()) {
        return unknown<std::string>(level.why);
    }
    for (auto const& [most, text] : {std::pair{0, "same board"},
                                     {10, "one PCIe switch"},
                                     {20, "several PCIe switches"},
                                     {30, "one host bridge"},
                                     {40, "one NUMA node"}}) {
        if (*level.value <= most) {
            return known(std::string(text));
        }
    }
    return known(std::string("across CPUs"));
}

}  // namespace cpstep
