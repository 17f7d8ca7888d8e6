#include "app/processor.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>

namespace cpstep {

namespace {

/// The CUDA devices a rank sees, with the reason where there are none.
struct Visible {
    int devices = 0;
    std::string why;
};

Visible visible_devices(Options const& options) {
    Visible visible;
    if (options.device != DeviceKind::cpu) {
        visible.devices = cuda_device_count(visible.why);
    }
    return visible;
}

/// Variants are compared across ranks: all must compute alike.
void require_equal_kinds(World& world, Visible const& visible) {
    std::vector<std::string> kinds;
    for (std::string const& kind : world.gather(visible.devices > 0 ? "cuda" : "cpu")) {
        kinds.push_back("device=" + kind + "\n");
    }
    std::string difference = options_difference(kinds);
    if (!difference.empty()) {
        difference.pop_back();  // its line end
        throw AgreedError(ExitCode::environment,
                          fmt::format("ranks would compute on different processors ({}): let every "
                                      "rank see a GPU, or give --device cpu",
                                      difference));
    }
}

CudaBackendOptions cuda_options(Options const& options, int ordinal, Precision precision) {
    auto const timeout = std::chrono::duration<double>(options.comm_timeout);
    return {.ordinal = ordinal,
            .precision = precision,
            .attention = options.attention_backend,
            .deadline = std::chrono::duration_cast<std::chrono::milliseconds>(timeout)};
}

Processor host_processor(World& world, Options const& options, std::string const& why) {
    world.collectively([&] { require_host_settings(options, why); });
    Processor processor;
    processor.backend = make_host_backend(host_threads(world, options));
    processor.device = "host";
    processor.note = "host backend: step times say nothing about a GPU";
    return processor;
}

/// Empty unless ranks of a host compute on one device.
std::string sharing_note(World& world, std::string const& device) {
    std::map<std::string, int> ranks_of;
    int most = 0;
    for (std::string const& place : world.gather(world.host() + " " + device)) {
        most = std::max(most, ++ranks_of[place]);
    }
    return most < 2 ? ""
                    : fmt::format(
                          "{} ranks take turns on one GPU: step times are not those of a "
                          "GPU a rank",
                          most);
}

}  // namespace

int device_of_rank(int visible, int local_rank, int local_size, bool allow_sharing) {
    if (visible == 1) {
        return 0;
    }
    require(visible >= local_size || allow_sharing, ExitCode::usage,
            "{} ranks of a host see {} CUDA devices: start at most {} ranks a host, or let ranks "
            "share a GPU with --allow-gpu-sharing (its step times say little)",
            local_size, visible, visible);
    return local_rank % visible;
}

int host_threads(World const& world, Options const& options) {
    if (options.threads > 0) {
        return options.threads;
    }
    cpu_set_t set;
    CPU_ZERO(&set);
    long const online = sysconf(_SC_NPROCESSORS_ONLN);
    int const allowed =
        sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : static_cast<int>(online);
    return std::max(1, allowed < online ? allowed : allowed / world.local_size());
}

Processor make_processor(World& world, Options const& options) {
    Visible visible;
    world.collectively([&] {
        visible = visible_devices(options);
        require(options.device != DeviceKind::cuda || visible.devices > 0, ExitCode::environment,
                "--device cuda: no CUDA device can be used: {}; --device cpu computes on the host",
                visible.why);
    });
    require_equal_kinds(world, visible);
    if (visible.devices == 0) {
        return host_processor(
            world, options,
            options.device == DeviceKind::cpu ? "--device cpu" : "none here: " + visible.why);
    }
    Processor processor;
    processor.precision = options.precision.value_or(Precision::bf16);
    world.collectively([&] {
        processor.ordinal = device_of_rank(visible.devices, world.local_rank(), world.local_size(),
                                           options.allow_gpu_sharing);
        CudaDeviceInfo const info = cuda_device_info(processor.ordinal);
        processor.pci_bus_id = info.pci_bus_id;
        processor.device = info.name + " " + info.pci_bus_id;
        processor.backend =
            make_cuda_backend(cuda_options(options, processor.ordinal, processor.precision));
    });
    processor.note = sharing_note(world, processor.device);
    return processor;
}

std::unique_ptr<Backend> make_reference_backend(World& world, Processor const& processor,
                                                Options const& options) {
    if (processor.on_host()) {
        return make_host_backend(host_threads(world, options));
    }
    std::unique_ptr<Backend> backend;
    world.collectively([&] {
        CudaBackendOptions wanted = cuda_options(options, processor.ordinal, Precision::fp32);
        wanted.attention = AttentionBackend::reference;
        backend = make_cuda_backend(wanted);
    });
    return backend;
}

WireOptions wire_options(Options const& options) {
    return {.transport = options.transport,
            .allow_gpu_sharing = options.allow_gpu_sharing,
            .nccl_max_ctas = options.nccl_max_ctas};
}

}  // namespace cpstep
