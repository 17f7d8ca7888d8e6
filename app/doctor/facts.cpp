#include "app/doctor/facts.hpp"

#include <nlohmann/json.hpp>

namespace cpstep {

/// A value, or {"unknown": why}.
template <class T>
void to_json(nlohmann::json& json, Fact<T> const& fact) {
    if (fact.known()) {
        json = {{"value", *fact.value}};
    } else {
        json = {{"unknown", fact.why}};
    }
}

template <class T>
void from_json(nlohmann::json const& json, Fact<T>& fact) {
    fact = json.contains("value") ? known(json.at("value").get<T>())
                                  : unknown<T>(json.at("unknown").get<std::string>());
}

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(NvmlFacts, uuid, mig, compute_mode, persistence, processes,
                                   ecc_uncorrected, remap_pending, remap_failed, pages_pending,
                                   sm_clock_mhz, max_sm_clock_mhz, clock_reasons, power_w,
                                   power_limit_w, temperature_c, max_pcie_generation, pcie_width,
                                   max_pcie_width, nvlinks, nvlink_version, nvlink_switch)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(CudaVersions, runtime, driver)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(PeerCopy, from, to, readable, wrong_bytes, gb_per_s)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(HostLink, to_device, to_host)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(MpiFacts, library, thread_level, cuda_aware, launcher,
                                   local_rank)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(NcclFacts, header, library, path)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(OutputFacts, seconds, free_bytes, file_system, sees_mark)

namespace doctor {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(IbPort, name, state, rate)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(HostFacts, cpus, numa_nodes, shm_bytes, memlock, open_files,
                                   stack, ib, peer_memory_module, interfaces, nccl_settings, xids)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(GpuFacts, present, why, visible, ordinal, name, pci_bus_id,
                                   capability, memory_bytes, numa_node, backend, nvml, host_link)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(PeerFacts, copy, nvml_status, ancestor)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(RankFacts, rank, local_rank, local_size, host, version, machine,
                                   mpi, nccl, driver, cuda, gpu, peers, output)

std::string to_text(RankFacts const& facts) {
    // Bytes that are no UTF-8, as of a strange adapter's name, are replaced.
    return nlohmann::json(facts).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

RankFacts rank_facts_of(std::string const& text) {
    return nlohmann::json::parse(text).get<RankFacts>();
}

nlohmann::json wires_json(std::vector<WireFacts> const& wires) {
    nlohmann::json out = nlohmann::json::array();
    for (WireFacts const& wire : wires) {
        nlohmann::json rates = nlohmann::json::array();
        for (WireRate const& rate : wire.rates) {
            rates.push_back({{"op", rate.op},
                             {"bytes", rate.bytes},
                             {"seconds", rate.seconds},
                             {"bus_gb_per_s", rate.bus_gb_per_s}});
        }
        out.push_back({{"name", wire.name},
                       {"description", wire.description},
                       {"refused", wire.refused},
                       {"failed", wire.failed},
                       {"wrong_values", wire.wrong},
                       {"timing_valid", wire.timing_valid},
                       {"rates", rates}});
    }
    return out;
}

}  // namespace doctor
}  // namespace cpstep
