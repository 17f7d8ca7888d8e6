#include "mpi/mpi_facts.hpp"

#include <mpi.h>
#if defined(OPEN_MPI) && OPEN_MPI
#include <mpi-ext.h>
#endif

#include <cstdlib>

#include "mpi/mpi_group.hpp"

namespace cpstep {
namespace {

std::string thread_level() {
    int level = MPI_THREAD_SINGLE;
    MPI_CHECK(MPI_Query_thread(&level));
    switch (level) {
        case MPI_THREAD_SINGLE:
            return "SINGLE";
        case MPI_THREAD_FUNNELED:
            return "FUNNELED";
        case MPI_THREAD_SERIALIZED:
            return "SERIALIZED";
        default:
            return "MULTIPLE";
    }
}

Fact<int> cuda_aware() {
#if defined(MPIX_CUDA_AWARE_SUPPORT)
    return known(MPIX_Query_cuda_support());
#else
    return unknown<int>("this MPI cannot tell");
#endif
}

/// Each launcher by a variable that it alone sets, and its variable of the local rank.
struct Launcher {
    char const* mark;
    char const* name;
    char const* local_rank;
};
constexpr Launcher launchers[] = {
    {"OMPI_COMM_WORLD_SIZE", "mpirun (Open MPI)", "OMPI_COMM_WORLD_LOCAL_RANK"},
    {"MV2_COMM_WORLD_SIZE", "mpirun (MVAPICH)", "MV2_COMM_WORLD_LOCAL_RANK"},
    {"FLUX_TASK_RANK", "flux run", "FLUX_TASK_LOCAL_ID"},
    {"SLURM_STEP_ID", "srun", "SLURM_LOCALID"},
    {"MPI_LOCALNRANKS", "mpiexec (Hydra)", "MPI_LOCALRANKID"},
};

}  // namespace

MpiFacts mpi_facts() {
    MpiFacts facts{.library = World::mpi_version(),
                   .thread_level = thread_level(),
                   .cuda_aware = cuda_aware(),
                   .launcher = "none",
                   .local_rank = unknown<int>("no launcher")};
    for (Launcher const& launcher : launchers) {
        if (std::getenv(launcher.mark) != nullptr) {
            facts.launcher = launcher.name;
            char const* const rank = std::getenv(launcher.local_rank);
            facts.local_rank = rank != nullptr
                                   ? known(std::atoi(rank))
                                   : unknown<int>(std::string(launcher.local_rank) + " is not set");
            break;
        }
    }
    return facts;
}

}  // namespace cpstep
