// Facts of the host, read from /proc and /sys.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "app/doctor/facts.hpp"

namespace cpstep::doctor {

/// `root` stands for "/": tests give a tree of their own. Limits and the affinity are this
/// process's whatever it is.
HostFacts read_host_facts(std::filesystem::path const& root = "/");

/// NUMA node of a PCI device; -1 where the machine has one only.
Fact<int> numa_node_of(std::string const& pci_bus_id, std::filesystem::path const& root = "/");

/// "0-3,8" as {0, 1, 2, 3, 8}; what is no number ends the list.
std::vector<int> cpu_list(std::string const& text);

}  // namespace cpstep::doctor
