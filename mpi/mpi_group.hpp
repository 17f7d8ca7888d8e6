// Private to mpi/: how every MPI call is checked, and groups of ranks as MPI knows them.
#pragma once

#include <mpi.h>

#include <vector>

#include "mpi/world.hpp"

namespace cpstep {

/// Throws Error(communication) with MPI's own text unless rc is MPI_SUCCESS.
void check_mpi(int rc, char const* call);
#define MPI_CHECK(call) ::cpstep::check_mpi((call), #call)

/// The group of `members` in this order; all members call it. Forming blocks without a deadline, so
/// it starts only once all have met, within World::deadline(). MPI_ERRORS_RETURN is set.
MPI_Comm form_mpi_group(World const& world, std::vector<int> const& members);

}  // namespace cpstep
