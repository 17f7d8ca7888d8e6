#include "app/doctor/doctor.hpp"

#include <chrono>
#include <cstdio>
#include <fstream>
#include <thread>

#include "app/doctor/probe.hpp"
#include "app/doctor/rules.hpp"
#include "app/doctor/table.hpp"
#include "app/options.hpp"
#include "io/atomic_file.hpp"

namespace cpstep {
namespace {

void write_plot(doctor::JobFacts const& job, std::filesystem::path const& folder) {
    std::string const plot = doctor::rates_svg(job.wires);
    if (plot.empty()) {
        return;
    }
    std::filesystem::path const file = folder / "doctor-wires.svg";
    std::error_code ignored;  // what cannot be made cannot be written to
    std::filesystem::create_directories(folder, ignored);
    std::ofstream(part_of(file)) << plot;
    publish(file);
    fmt::print(stderr, "cpstep: written: {}\n", file.string());
}

ExitCode report(doctor::JobFacts const& job, DoctorOptions const& options) {
    std::vector<doctor::Row> const rows = doctor::judge(job);
    fmt::print("{}", options.json ? doctor::json_of(rows, job) : doctor::text_of(rows, job));
    std::fflush(stdout);
    return doctor::worst_of(rows) == doctor::Status::fail ? ExitCode::environment : ExitCode::pass;
}

}  // namespace

std::string doctor_help() {
    return "usage: cpstep doctor [--json] [--full] [--output DIR]\n"
           "Checks whether this machine is fit for a run: GPUs, driver, links, MPI, NCCL, limits,\n"
           "clocks, output folder. Start it as a run will be started, on as many ranks:\n"
           "  mpirun -np 2 cpstep doctor\n"
           "It works on one rank, without mpirun and without a GPU too; what cannot be asked is\n"
           "SKIP. Under 10 s unless --full.\n\n"
           "  --full        measure copies and wires: bus GB/s for messages of 4 KiB to 256 MiB,\n"
           "                as a table and as DIR/doctor-wires.svg\n"
           "  --json        JSON in place of the table\n"
           "  --output DIR  where runs will write (default: out); tried, and left as it was\n"
           "  --help        this text\n\n"
           "exit: 0 ready, 2 usage, 3 a check failed, 7 ranks could not talk to each other\n";
}

DoctorOptions parse_doctor_options(std::vector<std::string> const& arguments) {
    DoctorOptions options;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        std::string const& word = arguments[i];
        if (word == "--json") {
            options.json = true;
        } else if (word == "--full") {
            options.full = true;
        } else if (word == "--output") {
            require(i + 1 < arguments.size() && !arguments[i + 1].empty(), ExitCode::usage,
                    "'--output' needs a folder");
            options.output = arguments[++i];
        } else if (word.starts_with("--output=") && word.size() > 9) {
            options.output = word.substr(9);
        } else {
            std::string const nearest = nearest_name(word, {"--json", "--full", "--output"});
            fail(ExitCode::usage, "unknown option '{}' of cpstep doctor{}", word,
                 nearest.empty() ? "; 'cpstep doctor --help' lists all"
                                 : fmt::format("; did you mean '{}'?", nearest));
        }
    }
    return options;
}

ExitCode doctor_command(World& world, std::vector<std::string> const& arguments) {
    DoctorOptions options;
    world.collectively([&] { options = parse_doctor_options(arguments); });
    if (options.full && world.root()) {
        fmt::print(stderr, "cpstep: measuring copies and wires, some tens of seconds\n");
    }
    doctor::Probe probe(world, options.output, options.full);
    try {
        probe.try_wires();
    } catch (Error const& error) {
        // Peers may still wait for this rank: nothing collective any more. Rank 0, which notices by
        // its own deadline, prints what is known; the others give it the time.
        if (!world.root()) {
            std::this_thread::sleep_for(2 * world.deadline());
        }
        if (world.root()) {
            (void)report(probe.facts(), options);
        }
        world.abort(ExitCode::environment, error.what());
    }
    ExitCode code = ExitCode::pass;
    if (world.root()) {
        code = report(probe.facts(), options);
    }
    world.collectively([&] {
        if (world.root()) {
            write_plot(probe.facts(), options.output);
        }
    });
    return static_cast<ExitCode>(
        std::stoi(world.broadcast(std::to_string(static_cast<int>(code)))));
}

}  // namespace cpstep
