#include "app/analysis/command_line.hpp"

#include <algorithm>
#include <array>
#include <boost/program_options.hpp>
#include <cmath>

namespace cpstep {
namespace {

namespace po = boost::program_options;

struct CommandRow {
    ReportCommand command;
    char const* name;
    std::size_t inputs;
    char const* operand;
    char const* usage;
    char const* about;
};

constexpr std::array<CommandRow, 4> commands{
    {{ReportCommand::report, "", 1, "DIR", "DIR [options]",
      "Reports a finished run: step times, where they go, parity, ledger.\n"
      "Other commands, each with --help: recover (of an unfinished run), diff,\n"
      "export."},
     {ReportCommand::recover, "recover", 1, "DIR", "DIR [options]",
      "Says what each rank of an unfinished run saved, and reports from it."},
     {ReportCommand::diff, "diff", 2, "FILE", "A B [options]",
      "Compares two runs (folders) or HDF5 files: every tensor, then times.\n"
      "Two variants of one run: diff DIR DIR --variant cp1 --variant cp2."},
     {ReportCommand::export_, "export", 1, "DIR", "DIR --format FORMAT --output FILE [--step N]",
      "Writes timelines of a run, finished or not, for other programs.\n"
      "perfetto: one file for ui.perfetto.dev; hta: a folder for\n"
      "HolisticTraceAnalysis, a file a rank."}}};

CommandRow const& row_of(ReportCommand command) {
    return *std::find_if(commands.begin(), commands.end(),
                         [&](CommandRow const& row) { return row.command == command; });
}

po::options_description options_of(ReportCommand command) {
    po::options_description options("options", 80);
    auto add = options.add_options();
    add("help", "this text");
    if (command == ReportCommand::export_) {
        add("format", po::value<std::string>()->value_name("perfetto|hta"), "for which program");
        add("output", po::value<std::string>()->value_name("FILE"), "the file, or hta's folder");
        add("step", po::value<std::uint32_t>()->value_name("N"), "this step (default: all)");
        return options;
    }
    add("json", "print JSON in place of the tables");
    if (command == ReportCommand::diff) {
        add("variant", po::value<std::vector<std::string>>()->value_name("NAME"),
            "the variant to compare; given twice: that of A, that of B");
        add("tolerance", po::value<double>()->value_name("X")->default_value(1e-5, "1e-5"),
            "gradients and weights: relative L2; other values: largest difference over max(1, "
            "largest |A|)");
        add("gate-ratio", po::value<double>()->value_name("R"),
            "exit 6 when B takes longer than R times A, 10 when that is undecided");
        return options;
    }
    add("csv", po::value<std::string>()->value_name("FILE"), "write a row a rank and step");
    add("html", po::value<std::string>()->value_name("FILE"), "write one page with charts");
    add("step", po::value<std::uint32_t>()->value_name("N"),
        "the step shown in detail (default: one next to the median)");
    return options;
}

CommandText text_of(CommandRow const& row) {
    return {.name = row.name,
            .operand = row.operand,
            .usage =
                fmt::format("cpstep-report {}{}{}", row.name, *row.name != 0 ? " " : "", row.usage),
            .about = row.about,
            .options = options_of(row.command)};
}

double read_positive(po::variables_map const& values, char const* name, double fallback) {
    if (values.count(name) == 0) {
        return fallback;
    }
    double const value = values[name].as<double>();
    require(value > 0 && std::isfinite(value), ExitCode::usage, "--{}: {} is not a positive number",
            name, value);
    return value;
}

ReportOptions read_options(po::variables_map const& values) {
    ReportOptions options;
    options.help = values.count("help") > 0;
    options.json = values.count("json") > 0;
    auto const path = [&](char const* name) {
        return values.count(name) > 0 ? std::filesystem::path(values[name].as<std::string>()) : "";
    };
    options.csv = path("csv");
    options.html = path("html");
    options.output = path("output");
    options.format = path("format").string();
    if (values.count("step") > 0) {
        options.step = values["step"].as<std::uint32_t>();
    }
    if (values.count("variant") > 0) {
        options.variants = values["variant"].as<std::vector<std::string>>();
    }
    options.tolerance = read_positive(values, "tolerance", options.tolerance);
    options.gate_ratio = read_positive(values, "gate-ratio", options.gate_ratio);
    if (values.count("input") > 0) {
        for (std::string const& word : values["input"].as<std::vector<std::string>>()) {
            options.inputs.emplace_back(word);
        }
    }
    return options;
}

}  // namespace

ReportOptions parse_report_options(std::vector<std::string> words) {
    auto const* row = commands.begin();
    auto const* const named = std::find_if(
        commands.begin(), commands.end(),
        [&](CommandRow const& command) { return !words.empty() && words.front() == command.name; });
    if (named != commands.end()) {
        row = named;
        words.erase(words.begin());
    }
    ReportOptions options = read_options(read_words(words, options_of(row->command)));
    options.command = row->command;
    require(options.help || options.inputs.size() == row->inputs, ExitCode::usage,
            "usage: {}; --help has more", text_of(*row).usage);
    if (options.command == ReportCommand::export_ && !options.help) {
        require(options.format == "perfetto" || options.format == "hta", ExitCode::usage,
                "--format: perfetto or hta, not '{}'", options.format);
        require(!options.output.empty(), ExitCode::usage, "--output: where to write is missing");
    }
    require(options.variants.size() <= 2, ExitCode::usage, "--variant: given {} times, at most 2",
            options.variants.size());
    return options;
}

std::string report_help(ReportCommand command) {
    return help_text(text_of(row_of(command)));
}

std::vector<CommandText> report_commands() {
    std::vector<CommandText> texts;
    for (CommandRow const& row : commands) {
        texts.push_back(text_of(row));
    }
    return texts;
}

ExitTexts report_exits() {
    return {
        {ExitCode::pass, "Done; of diff: no difference, and within the gate if one is set."},
        {ExitCode::internal, "Internal error."},
        {ExitCode::usage, "Usage: unknown option, a missing folder name, no such variant."},
        {ExitCode::input_data,
         "Input data: no such run or step; or files that are missing or damaged, after the others "
         "were reported."},
        {ExitCode::parity, "Of diff: a value differs by more than --tolerance."},
        {ExitCode::performance, "Of diff: a step-time ratio lies above --gate-ratio."},
        {ExitCode::output, "Output could not be written."},
        {ExitCode::nonfinite, "Of diff: NaN or Inf."},
        {ExitCode::inconclusive,
         "Of diff: nothing to compare, no timed steps, or the interval includes the gate."},
    };
}

}  // namespace cpstep
