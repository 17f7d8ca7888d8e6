// What the driver's management library says of a GPU. It is opened at run time: neither its header
// nor the library is needed to build or start, and what an old one cannot say is an unknown Fact.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "cuda/fact.hpp"

namespace cpstep {

/// One GPU, by NVML. Reasons of clocks are the bits of nvmlClocksEventReasons.
struct NvmlFacts {
    Fact<std::string> uuid;
    Fact<int> mig;                       ///< 1: on
    Fact<int> compute_mode;              ///< 0: default, 1 or 3: exclusive, 2: prohibited
    Fact<int> persistence;               ///< 1: on
    Fact<int> processes;                 ///< that compute on it
    Fact<std::int64_t> ecc_uncorrected;  ///< since the driver was loaded
    Fact<int> remap_pending;             ///< memory rows wait for a reset to be remapped
    Fact<int> remap_failed;
    Fact<int> pages_pending;  ///< pages wait for a reset to be retired (before Ampere)
    Fact<int> sm_clock_mhz;
    Fact<int> max_sm_clock_mhz;
    Fact<std::int64_t> clock_reasons;
    Fact<double> power_w;
    Fact<double> power_limit_w;
    Fact<int> temperature_c;
    Fact<int> max_pcie_generation;  ///< the present one is low while the link idles
    Fact<int> pcie_width, max_pcie_width;
    Fact<int> nvlinks;         ///< active ones
    Fact<int> nvlink_version;  ///< of the first active one
    Fact<int> nvlink_switch;   ///< 1: they go to a switch, so all carry a pair's copy
};

namespace clock_reason {
inline constexpr std::int64_t software_power_cap = 0x4;
inline constexpr std::int64_t hardware_slowdown = 0x8;
inline constexpr std::int64_t software_thermal = 0x20;
inline constexpr std::int64_t hardware_thermal = 0x40;
inline constexpr std::int64_t power_brake = 0x80;
/// The GPU is slower than it should be; not the power limit, at which most run under full load.
inline constexpr std::int64_t slowed =
    hardware_slowdown | software_thermal | hardware_thermal | power_brake;
/// "too hot, power brake": the reasons above among these bits; "" for none.
std::string names(std::int64_t reasons);
}  // namespace clock_reason

inline constexpr char const* nvml_library = "libnvidia-ml.so.1";

class Nvml {
  public:
    /// Never throws: a library that cannot be loaded or begun leaves every fact unknown.
    explicit Nvml(std::string const& library = nvml_library);
    Nvml(Nvml const&) = delete;
    Nvml& operator=(Nvml const&) = delete;
    ~Nvml();

    Fact<std::string> driver_version() const;  ///< "550.54.15"
    NvmlFacts device(std::string const& pci_bus_id) const;
    /// Clocks, power and temperature alone: six calls, for a look between steps.
    NvmlFacts clocks(std::string const& pci_bus_id) const;
    /// Whether one GPU can read another's memory: "ok", or NVML's reason against.
    Fact<std::string> peer_status(std::string const& from, std::string const& to) const;
    /// "same board", "one PCIe switch", ... "across CPUs": the closest that joins two GPUs.
    Fact<std::string> common_ancestor(std::string const& one, std::string const& other) const;

  private:
    struct Library;
    std::unique_ptr<Library> library_;
};

}  // namespace cpstep
