#include "app/doctor/probe.hpp"

#include <algorithm>

#include "app/doctor/host_facts.hpp"
#include "app/estimate.hpp"
#include "app/processor.hpp"
#include "app/run.hpp"

namespace cpstep::doctor {
namespace {

constexpr std::chrono::milliseconds wire_deadline{30'000};

/// What a probe throws becomes the reason of an unknown fact.
template <class T, class Ask>
Fact<T> asked(Ask const& ask) {
    try {
        return known<T>(ask());
    } catch (std::exception const& error) {
        return unknown<T>(error.what());
    }
}

/// The device that a run would choose for this rank.
void choose_gpu(World const& world, GpuFacts& gpu) {
    gpu.visible = cuda_device_count(gpu.why);
    if (gpu.visible == 0) {
        return;
    }
    gpu.ordinal = device_of_rank(gpu.visible, world.local_rank(), world.local_size(), true);
    std::vector<std::string> const buses = visible_pci_bus_ids();
    if (gpu.ordinal < std::ssize(buses)) {
        gpu.pci_bus_id = buses[static_cast<std::size_t>(gpu.ordinal)];
        gpu.numa_node = numa_node_of(gpu.pci_bus_id);
    }
    gpu.present = true;
}

std::vector<PeerFacts> probe_peers(Nvml const& nvml, bool timed) {
    std::vector<PeerFacts> peers;
    std::vector<std::string> const buses = visible_pci_bus_ids();
    for (PeerCopy const& copy : probe_peer_copies(timed)) {
        std::string const& from = buses[static_cast<std::size_t>(copy.from)];
        std::string const& to = buses[static_cast<std::size_t>(copy.to)];
        peers.push_back({.copy = copy,
                         .nvml_status = nvml.peer_status(from, to),
                         .ancestor = nvml.common_ancestor(from, to)});
    }
    return peers;
}

/// Largest message whose buffers take at most a quarter of a rank's share of the memory.
std::int64_t largest_fitting(std::int64_t share) {
    std::int64_t largest = largest_message;
    while (largest > smallest_message && wire_probe_bytes(largest) > share / 4) {
        largest /= 4;
    }
    return largest;
}

}  // namespace

Probe::Probe(World& world, std::filesystem::path const& output, bool full)
    : world_(world), full_(full) {
    job_.output = output.string();
    for (std::string const& text : world.gather(to_text(own_facts(output)))) {
        job_.ranks.push_back(rank_facts_of(text));
    }
    job_.clocks = read_clocks(world);
    bool const on_gpus = std::ranges::all_of(
        job_.ranks, [](RankFacts const& rank) { return rank.gpu.backend.known(); });
    if (!on_gpus) {
        backend_ = make_host_backend(1);
    }
}

RankFacts Probe::own_facts(std::filesystem::path const& output) {
    RankFacts facts{.rank = world_.rank(),
                    .local_rank = world_.local_rank(),
                    .local_size = world_.local_size(),
                    .host = world_.host(),
                    .version = version()};
    facts.machine = read_host_facts();
    facts.mpi = mpi_facts();
    facts.nccl = nccl_facts();
    facts.cuda = cuda_version_numbers();
    Nvml const nvml;
    facts.driver = nvml.driver_version();
    probe_gpu(facts, nvml);
    probe_output_folder(output, facts);
    return facts;
}

void Probe::probe_gpu(RankFacts& facts, Nvml const& nvml) {
    GpuFacts& gpu = facts.gpu;
    choose_gpu(world_, gpu);
    if (gpu.present) {
        gpu.nvml = nvml.device(gpu.pci_bus_id);
    }
    world_.barrier();  // processes that NVML has seen by now are not of this job
    if (gpu.present && world_.local_rank() == 0) {
        facts.peers = probe_peers(nvml, full_);
    }
    world_.barrier();  // copies would slow each other down
    if (full_) {
        measure_host_links(gpu);
    }
    if (!gpu.present) {
        gpu.backend = unknown<std::string>(gpu.why);
        return;
    }
    gpu.backend = asked<std::string>([&] {
        CudaDeviceInfo const info = cuda_device_info(gpu.ordinal);
        gpu.name = info.name;
        gpu.capability = info.capability;
        gpu.memory_bytes = info.memory_bytes;
        backend_ = make_cuda_backend({.ordinal = gpu.ordinal, .deadline = wire_deadline});
        return backend_->description();
    });
}

/// One rank of a host after the other: links and memory are shared.
void Probe::measure_host_links(GpuFacts& gpu) {
    auto const turns = static_cast<int>(world_.max(world_.local_size()));
    for (int turn = 0; turn < turns; ++turn) {
        if (gpu.present && turn == world_.local_rank()) {
            gpu.host_link = measure_host_link(gpu.ordinal);
        }
        world_.barrier();
    }
}

void Probe::probe_output_folder(std::filesystem::path const& output, RankFacts& facts) {
    std::unique_ptr<ProbeFolder> folder;
    std::string failed;
    if (world_.root()) {
        auto const made = asked<bool>([&] {
            folder = std::make_unique<ProbeFolder>(output);
            return true;
        });
        failed = made.why;
    }
    failed = world_.broadcast(failed);
    if (!failed.empty()) {
        facts.output = unknown<OutputFacts>(failed);
    } else if (world_.local_rank() == 0) {
        facts.output = known(probe_output(output, std::to_string(world_.rank())));
    } else {
        facts.output = unknown<OutputFacts>("tried by the host's first rank");
    }
    world_.barrier();  // the folder goes with rank 0's object
}

void Probe::try_wires() {
    if (world_.size() == 1) {
        job_.wires.push_back({.name = "mpi", .refused = "1 rank: nothing to send"});
        return;
    }
    std::chrono::milliseconds const before = world_.deadline();
    world_.set_deadline(wire_deadline);
    try_wire(Transport::mpi);
    if (backend_->queues() != nullptr) {
        try_wire(Transport::ipc);
        try_wire(Transport::nccl);
    }
    world_.set_deadline(before);
}

void Probe::try_wire(Transport transport) {
    WireFacts& facts = job_.wires.emplace_back();
    facts.name = name_of(transport);
    try {
        std::int64_t const begin = now_ns();
        std::unique_ptr<Wires> const wires =
            make_wires(world_, *backend_, {.transport = transport, .allow_gpu_sharing = true});
        facts.description = wires->description();
        facts.timing_valid = wires->timing_valid();
        std::vector<int> everyone(static_cast<std::size_t>(world_.size()));
        std::ranges::generate(everyone, [next = 0]() mutable { return next++; });
        std::unique_ptr<Comm> const wire = wires->form(everyone);
        std::int64_t const wrong = wrong_values(*backend_, *wire);
        facts.seconds = 1e-9 * static_cast<double>(now_ns() - begin);
        for (std::string const& text : world_.gather(std::to_string(wrong))) {
            facts.wrong.push_back(std::stoll(text));
        }
        if (full_) {
            std::int64_t const share =
                backend_->queues() != nullptr
                    ? cuda_device_info(
                          job_.ranks[static_cast<std::size_t>(world_.rank())].gpu.ordinal)
                          .free_bytes
                    : available_memory();
            std::int64_t const mine = largest_fitting(share / world_.local_size());
            // The smallest of all ranks'.
            auto const largest = -static_cast<std::int64_t>(world_.max(-static_cast<double>(mine)));
            facts.rates = measure_wire(world_, *backend_, *wire, largest);
        }
    } catch (AgreedError const& error) {
        bool const absent =
            error.code() == ExitCode::usage || error.code() == ExitCode::environment;
        (absent ? facts.refused : facts.failed) = error.what();
    } catch (Error const& error) {
        facts.failed = error.what();
        throw;
    }
}

}  // namespace cpstep::doctor
