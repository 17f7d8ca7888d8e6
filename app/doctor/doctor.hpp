// `cpstep doctor`: is this machine fit for a run?
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "app/described_options.hpp"
#include "mpi/world.hpp"

namespace cpstep {

struct DoctorOptions {
    bool json = false;
    bool full = false;
    std::filesystem::path output = "out";
};

/// Error(usage) for what is not known, with the nearest name.
DoctorOptions parse_doctor_options(std::vector<std::string> const& arguments);
/// At most 24 lines.
std::string doctor_help();

/// What parsing, --help, man page and completion share.
CommandText doctor_text();
ExitTexts doctor_exits();

/// Collective. Rank 0 prints; environment (3) if a check fails.
ExitCode doctor_command(World& world, std::vector<std::string> const& arguments);

}  // namespace cpstep
