#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "app/doctor/doctor.hpp"
#include "app/options.hpp"
#include "app/run.hpp"

namespace {

char const* const usage =
    "usage: cpstep run [options]     verify and time CP=N against CP=1 (start it with mpirun or "
    "srun)\n"
    "       cpstep run --help        all options\n"
    "       cpstep doctor [options]  is this machine fit for a run? (--help)\n"
    "       cpstep --version\n"
    "example: mpirun -np 2 cpstep run --config inputs/smoke.ini\n";

}  // namespace

// Before MPI starts no peer waits, and an exception may end the program as it likes.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
    using namespace cpstep;
    std::vector<std::string> const words(argv + 1, argv + argc);
    if (words.empty() || words[0] == "--help" || words[0] == "help") {
        std::fputs(usage, words.empty() ? stderr : stdout);
        return static_cast<int>(words.empty() ? ExitCode::usage : ExitCode::pass);
    }
    if (words[0] == "--version") {
        fmt::print("cpstep {}\n", version());
        return 0;
    }
    bool const doctor = words[0] == "doctor";
    if (words[0] != "run" && !doctor) {
        fmt::print(stderr, "cpstep: unknown command '{}'\n{}", words[0], usage);
        return static_cast<int>(ExitCode::usage);
    }
    std::vector<std::string> const arguments(words.begin() + 1, words.end());
    if (std::find(arguments.begin(), arguments.end(), "--help") != arguments.end()) {
        std::fputs((doctor ? doctor_help() : run_help()).c_str(), stdout);
        return 0;
    }
    World world(argc, argv);
    try {
        return static_cast<int>(doctor ? doctor_command(world, arguments)
                                       : run_command(world, arguments));
    } catch (AgreedError const& error) {
        if (world.root()) {
            fmt::print(stderr, "cpstep: {}\n", error.what());
        }
        return static_cast<int>(error.code());
    } catch (Error const& error) {
        world.abort(error.code(), error.what());
    } catch (std::exception const& error) {
        world.abort(ExitCode::internal, error.what());
    }
}
