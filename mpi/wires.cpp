#include "mpi/wires.hpp"

#include <set>

#include "mpi/comm_bodies.hpp"
#include "mpi/wire_bodies.hpp"

namespace cpstep {
namespace {

class HostWires final : public Wires {
  public:
    explicit HostWires(World& world) : world_(world), ranks_(describe_ranks(world)) {}
    std::unique_ptr<Comm> form(std::vector<int> const& members) override {
        return world_.make_host_comm(members);
    }
    std::string description() const override {
        return world_.size() == 1 ? "none (1 rank)" : fmt::format("mpi ({})", ranks_);
    }

  private:
    World& world_;
    std::string ranks_;
};

class StagedWires final : public Wires {
  public:
    StagedWires(World& world, Backend& backend)
        : world_(world), backend_(backend), ranks_(describe_ranks(world)) {}
    std::unique_ptr<Comm> form(std::vector<int> const& members) override {
        return members.size() == 1 ? world_.make_host_comm(members)
                                   : make_staged_comm(backend_, world_.make_host_comm(members));
    }
    std::string description() const override {
        return fmt::format("mpi through host memory ({})", ranks_);
    }

  private:
    World& world_;
    Backend& backend_;
    std::string ranks_;
};

std::string count(std::size_t n, std::string_view noun) {
    return fmt::format("{} {}{}", n, noun, n == 1 ? "" : "s");
}

}  // namespace

std::string_view name_of(Transport transport) {
    switch (transport) {
        case Transport::nccl:
            return "nccl";
        case Transport::ipc:
            return "ipc";
        case Transport::mpi:
            return "mpi";
        case Transport::automatic:
            break;
    }
    return "auto";
}

std::string describe_ranks(World& world) {
    std::vector<std::string> const names = world.gather(world.host());
    std::set<std::string> const hosts(names.begin(), names.end());
    return fmt::format("{} of {}", count(names.size(), "rank"), count(hosts.size(), "host"));
}

std::unique_ptr<Wires> make_staged_wires(World& world, Backend& backend) {
    return std::make_unique<StagedWires>(world, backend);
}

std::unique_ptr<Wires> make_wires(World& world, Backend& backend, WireOptions const& options) {
    if (backend.queues() == nullptr) {
        bool const fits =
            options.transport == Transport::automatic || options.transport == Transport::mpi;
        if (!fits) {
            throw AgreedError(ExitCode::usage,
                              fmt::format("--transport {} moves the memory of GPUs and this run "
                                          "computes on the host; use --device cuda, or "
                                          "--transport mpi",
                                          name_of(options.transport)));
        }
    }
    if (backend.queues() == nullptr || world.size() == 1) {
        return std::make_unique<HostWires>(world);  // a group of one moves nothing
    }
#ifdef CPSTEP_CUDA
    return make_device_wires(world, backend, options);
#else
    fail(ExitCode::internal, "a backend with device queues in a build without CUDA");
#endif
}

}  // namespace cpstep
