// Which wire a run uses: forms the communicators of its groups.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/backend.hpp"
#include "mpi/comm.hpp"
#include "mpi/world.hpp"

namespace cpstep {

/// How device memory travels. automatic: ipc where all ranks are on one host and every GPU can read
/// the others', else nccl, else mpi. The host's memory always goes over mpi.
enum class Transport : std::uint8_t {
    automatic,
    nccl,  ///< NCCL: any machine, takes some multiprocessors
    ipc,   ///< one host: peers' memory is mapped, copy engines move it
    mpi    ///< through host memory
};

/// "auto", "nccl", "ipc", "mpi".
std::string_view name_of(Transport transport);

struct WireOptions {
    Transport transport = Transport::automatic;
    bool allow_gpu_sharing = false;  ///< several ranks may use one GPU
    int nccl_max_ctas = 0;           ///< thread blocks NCCL may take; 0: its choice
};

class Wires {
  public:
    Wires() = default;
    Wires(Wires const&) = delete;
    Wires& operator=(Wires const&) = delete;
    virtual ~Wires() = default;

    /// The communicator of `members` (world ranks, in group order), this rank among them. All ranks
    /// of the world call it equally often, each with the list of its own group. Groups of one get
    /// the silent wire. The result must not outlive this.
    virtual std::unique_ptr<Comm> form(std::vector<int> const& members) = 0;
    /// "ipc (2 ranks of 1 host)": for reports.
    virtual std::string description() const = 0;
    /// False where ranks share a GPU in a way that says nothing of the wire's speed.
    virtual bool timing_valid() const { return true; }
};

/// Collective over the world. World and backend must outlive the result. Failures are AgreedError:
/// usage (nccl or ipc for host memory, a GPU shared unasked), environment (a wire that this build
/// or machine does not have).
std::unique_ptr<Wires> make_wires(World& world, Backend& backend, WireOptions const& options);

}  // namespace cpstep
