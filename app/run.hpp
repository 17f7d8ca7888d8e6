// `cpstep run`: verify and time every variant, write the outputs, return the verdict.
#pragma once

#include <string>
#include <vector>

#include "cuda/error.hpp"
#include "mpi/world.hpp"

namespace cpstep {

/// "0.1.0 (git 1a2b3c4)".
std::string version();

/// Collective. Failures of set-up are AgreedError on every rank; later ones Error on the rank that
/// met them.
ExitCode run_command(World& world, std::vector<std::string> const& arguments);

}  // namespace cpstep
