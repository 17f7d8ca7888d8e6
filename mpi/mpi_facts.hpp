// What MPI and its launcher say of themselves.
#pragma once

#include <string>

#include "cuda/fact.hpp"

namespace cpstep {

struct MpiFacts {
    std::string library = {};       ///< version string, one line
    std::string thread_level = {};  ///< "FUNNELED"
    Fact<int> cuda_aware = {};      ///< 1: may be given device memory; we never do
    std::string launcher = {};      ///< "mpirun (Open MPI)", "srun", ..., "none"
    /// The launcher's idea of the rank among those of its host. (SLURM_LOCALID says so under srun
    /// only; under mpirun every rank inherits 0.)
    Fact<int> local_rank = {};
};

/// After MPI has begun.
MpiFacts mpi_facts();

}  // namespace cpstep
