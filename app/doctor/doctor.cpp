#include "app/doctor/doctor.hpp"

#include <boost/program_options.hpp>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <thread>

#include "app/doctor/probe.hpp"
#include "app/doctor/rules.hpp"
#include "app/doctor/table.hpp"
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

CommandText doctor_text() {
    namespace po = boost::program_options;
    po::options_description options("options", 88);
    options.add_options()("help", "this text")("json", "print JSON in place of the table")(
        "full",
        "measure copies and wires: bus GB/s for messages of 4 KiB to 256 MiB, as a table and as "
        "doctor-wires.svg in --output")(
        "output",
        po::value<std::string>()->value_name("DIR")->default_value(DoctorOptions{}.output.string()),
        "where runs will write; tried, and left as it was");
    return {
        .name = "doctor",
        .operand = "",
        .usage = "cpstep doctor [options]",
        .about =
            "Checks whether this machine is fit for a run: GPUs, driver, links, MPI, NCCL, "
            "limits,\n"
            "clocks, output folder. Start it as a run will be started, on as many ranks:\n"
            "mpirun -np 2 cpstep doctor. It works on one rank, without mpirun and without a GPU\n"
            "too; what cannot be asked is SKIP. Under 10 s unless --full.",
        .options = std::move(options)};
}

ExitTexts doctor_exits() {
    return {{ExitCode::pass, "Ready: no check failed."},
            {ExitCode::internal, "Internal error."},
            {ExitCode::usage, "Usage: unknown option."},
            {ExitCode::environment, "A check failed."},
            {ExitCode::communication, "Ranks could not talk to each other."},
            {ExitCode::output, "The plot of --full could not be written."}};
}

std::string doctor_help() {
    return help_text(doctor_text()) +
           "\nexit: 0 ready, 2 usage, 3 a check failed, 7 ranks could not talk to each other\n";
}

DoctorOptions parse_doctor_options(std::vector<std::string> const& arguments) {
    auto const values = read_words(arguments, doctor_text().options);
    require(
        values.count("input") == 0, ExitCode::usage,
        "unexpected argument '{}': 'cpstep doctor --help' lists all options",
        values.count("input") == 0 ? "" : values["input"].as<std::vector<std::string>>().front());
    DoctorOptions options;
    options.json = values.count("json") > 0;
    options.full = values.count("full") > 0;
    options.output = values["output"].as<std::string>();
    require(!options.output.empty(), ExitCode::usage, "'--output' needs a folder");
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
