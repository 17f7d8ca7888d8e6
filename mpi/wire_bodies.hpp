// Private to mpi/: the bodies of Wires.
#pragma once

#include <memory>
#include <string>

#include "mpi/wires.hpp"

namespace cpstep {

/// "2 ranks of 1 host".
std::string describe_ranks(World& world);

std::unique_ptr<Wires> make_staged_wires(World& world, Backend& backend);

// Below: builds with CUDA only.

/// The wire of device memory that the options and this machine ask for.
std::unique_ptr<Wires> make_device_wires(World& world, Backend& backend,
                                         WireOptions const& options);

std::unique_ptr<Wires> make_ipc_wires(World& world, Backend& backend);

/// shared: ranks share GPUs. Builds with NCCL only.
std::unique_ptr<Wires> make_nccl_wires(World& world, Backend& backend, bool shared, int max_ctas);

}  // namespace cpstep
