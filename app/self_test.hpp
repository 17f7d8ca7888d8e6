// cpstep run --self-test: is the verdict able to fail? Known bugs are planted one at a time and the
// verification step is run again.
#pragma once

#include "app/options.hpp"
#include "mpi/world.hpp"

namespace cpstep {

/// On the model and samples of the options, or on a built-in case when they name none; CP is the
/// number of ranks, at least 2. Prints a row a fault: the check that caught it. Collective.
/// Returns pass when the run without a fault is green and every planted fault was caught, else
/// parity.
ExitCode self_test_command(World& world, Options const& options);

}  // namespace cpstep
