#include "app/doctor/host_facts.hpp"

#include <fcntl.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string_view>

#include "io/file_descriptor.hpp"

namespace cpstep::doctor {
namespace {

namespace fs = std::filesystem;

/// First line of a small file; "" without one.
std::string line_of(fs::path const& file) {
    std::string line;
    std::ifstream in(file);
    std::getline(in, line);
    return line;
}

std::vector<fs::path> entries_of(fs::path const& folder) {
    std::vector<fs::path> paths;
    std::error_code error;
    for (auto const& entry : fs::directory_iterator(folder, error)) {
        paths.push_back(entry.path());
    }
    std::ranges::sort(paths);
    return paths;
}

std::int64_t limit_of(int resource) {
    rlimit limit{};
    bool const told = getrlimit(static_cast<__rlimit_resource>(resource), &limit) == 0;
    return !told || limit.rlim_cur == RLIM_INFINITY ? -1
                                                    : static_cast<std::int64_t>(limit.rlim_cur);
}

std::vector<int> allowed_cpus() {
    std::vector<int> cpus;
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (CPU_ISSET(cpu, &set)) {
                cpus.push_back(cpu);
            }
        }
    }
    return cpus;
}

std::vector<int> nodes_of(std::vector<int> const& cpus, fs::path const& root) {
    std::vector<int> nodes;
    for (fs::path const& entry : entries_of(root / "sys/devices/system/node")) {
        std::string const name = entry.filename().string();
        if (!name.starts_with("node")) {
            continue;
        }
        std::vector<int> const its = cpu_list(line_of(entry / "cpulist"));
        bool const ours = std::ranges::any_of(
            its, [&](int cpu) { return std::ranges::find(cpus, cpu) != cpus.end(); });
        if (ours) {
            nodes.push_back(std::atoi(name.c_str() + 4));
        }
    }
    return nodes;
}

std::vector<IbPort> read_ports(fs::path const& root) {
    std::vector<IbPort> ports;
    for (fs::path const& adapter : entries_of(root / "sys/class/infiniband")) {
        for (fs::path const& port : entries_of(adapter / "ports")) {
            ports.push_back({.name = adapter.filename().string() + "/" + port.filename().string(),
                             .state = line_of(port / "state"),
                             .rate = line_of(port / "rate")});
        }
    }
    return ports;
}

std::vector<std::string> read_interfaces(fs::path const& root) {
    std::vector<std::string> texts;
    for (fs::path const& entry : entries_of(root / "sys/class/net")) {
        std::string const name = entry.filename().string();
        if (name != "lo") {
            texts.push_back(fmt::format("{} ({})", name, line_of(entry / "operstate")));
        }
    }
    return texts;
}

std::vector<std::string> read_nccl_settings() {
    std::vector<std::string> settings;
    for (char const* const* entry = environ; *entry != nullptr; ++entry) {
        if (std::string_view(*entry).starts_with("NCCL_")) {
            settings.emplace_back(*entry);
        }
    }
    std::ranges::sort(settings);
    return settings;
}

/// Counts in the kernel's ring buffer without waiting for more.
Fact<int> count_xids(fs::path const& root) {
    FileDescriptor const log(
        ::open((root / "dev/kmsg").c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    if (!log) {
        return unknown<int>(fmt::format("/dev/kmsg: {}", std::strerror(errno)));
    }
    constexpr int most_lines = 100'000;
    std::array<char, 8192> line{};
    int xids = 0;
    for (int i = 0; i < most_lines; ++i) {
        ssize_t const bytes = ::read(log.get(), line.data(), line.size());
        if (bytes < 0 && errno == EPIPE) {
            continue;  // overwritten while it was read; the next one is there
        }
        if (bytes <= 0) {
            return bytes < 0 && errno != EAGAIN && i == 0
                       ? unknown<int>(fmt::format("/dev/kmsg: {}", std::strerror(errno)))
                       : known(xids);
        }
        std::string_view const text(line.data(), static_cast<std::size_t>(bytes));
        std::size_t at = 0;
        while ((at = text.find("NVRM: Xid", at)) != std::string_view::npos) {
            ++xids;
            ++at;
        }
    }
    return known(xids);
}

Fact<std::int64_t> shared_memory(fs::path const& root) {
    struct statvfs info{};
    if (statvfs((root / "dev/shm").c_str(), &info) != 0) {
        return unknown<std::int64_t>(fmt::format("/dev/shm: {}", std::strerror(errno)));
    }
    return known(static_cast<std::int64_t>(info.f_bavail) *
                 static_cast<std::int64_t>(info.f_frsize));
}

}  // namespace

std::vector<int> cpu_list(std::string const& text) {
    std::vector<int> cpus;
    std::istringstream in(text);
    int first = 0;
    while (in >> first) {
        int last = first;
        if (in.peek() == '-') {
            in.get();
            if (!(in >> last)) {
                break;
            }
        }
        for (int cpu = first; cpu <= last && cpu < CPU_SETSIZE; ++cpu) {
            cpus.push_back(cpu);
        }
        if (in.get() != ',') {
            break;
        }
    }
    return cpus;
}

HostFacts read_host_facts(fs::path const& root) {
    HostFacts facts;
    facts.cpus = allowed_cpus();
    facts.numa_nodes = nodes_of(facts.cpus, root);
    facts.shm_bytes = shared_memory(root);
    facts.memlock = limit_of(RLIMIT_MEMLOCK);
    facts.open_files = limit_of(RLIMIT_NOFILE);
    facts.stack = limit_of(RLIMIT_STACK);
    facts.ib = read_ports(root);
    facts.peer_memory_module = fs::exists(root / "sys/module/nvidia_peermem");
    facts.interfaces = read_interfaces(root);
    facts.nccl_settings = read_nccl_settings();
    facts.xids = count_xids(root);
    return facts;
}

Fact<int> numa_node_of(std::string const& pci_bus_id, fs::path const& root) {
    std::string name = pci_bus_id;  // "0000:1B:00.0"; small letters in /sys
    std::ranges::transform(name, name.begin(),
                           [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    std::string const line = line_of(root / "sys/bus/pci/devices" / name / "numa_node");
    return line.empty() ? unknown<int>(fmt::format("/sys does not show {}", name))
                        : known(std::atoi(line.c_str()));
}

}  // namespace cpstep::doctor
