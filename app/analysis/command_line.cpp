#include "app/analysis/command_line.hpp"

#include <algorithm>
#include <array>
#include <boost/program_options.hpp>
#include <cmath>
#include <sstream>

#include "app/nearest_name.hpp"
#include "cuda/error.hpp"

namespace cpstep {
namespace {

namespace po = boost::program_options;

struct CommandText {
    ReportCommand command;
    char const* name;
    std::size_t inputs;
    char const* usage;
    char const* about;
};

constexpr std::array<CommandText, 4> commands{
    {{ReportCommand::report, "", 1, "DIR [options]",
      "Reports a finished run: step times, where they go, parity, ledger.\n"
      "Other commands, each with --help: recover (of an unfinished run), diff,\n"
      "export."},
     {ReportCommand::recover, "recover", 1, "DIR [options]",
      "Says what each rank of an unfinished run saved, and reports from it."},
     {ReportCommand::diff, "diff", 2, "A B [options]",
      "Compares two runs (folders) or HDF5 files: every tensor, then times.\n"
      "Two variants of one run: diff DIR DIR --variant cp1 --variant cp2."},
     {ReportCommand::export_, "export", 1, "DIR --format FORMAT --output PATH [--step N]",
      "Writes timelines of a run, finished or not, for other programs.\n"
      "perfetto: one file for ui.perfetto.dev; hta: a folder for\n"
      "HolisticTraceAnalysis, a file a rank."}}};

CommandText const& text_of(ReportCommand command) {
    return *std::find_if(commands.begin(), commands.end(),
                         [&](CommandText const& text) { return text.command == command; });
}

po::options_description options_of(ReportCommand command) {
    po::options_description options("options", 80);
    auto add = options.add_options();
    add("help", "this text");
    if (command == ReportCommand::export_) {
        add("format", po::value<std::string>()->value_name("FORMAT"), "perfetto or hta");
        add("output", po::value<std::string>()->value_name("PATH"), "the file, or hta's folder");
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

[[noreturn]] void fail_unknown(std::string const& word, po::options_description const& options) {
    std::string const bare = word.substr(std::min(word.find_first_not_of('-'), word.size()));
    std::vector<std::string> names;
    for (auto const& option : options.options()) {
        names.push_back(option->long_name());
    }
    std::string const nearest = nearest_name(bare.substr(0, bare.find('=')), names);
    fail(ExitCode::usage, "unknown option {}{}", word,
         nearest.empty() ? "; --help lists all" : fmt::format("; did you mean --{}?", nearest));
}

std::string folded(std::string text) {
    std::replace(text.begin(), text.end(), '\n', ' ');
    return text;
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
    ReportCommand command = ReportCommand::report;
    for (CommandText const& text : commands) {
        if (!words.empty() && words.front() == text.name) {
            command = text.command;
            words.erase(words.begin());
            break;
        }
    }
    po::options_description const visible = options_of(command);
    po::options_description all;
    all.add(visible);
    all.add_options()("input", po::value<std::vector<std::string>>());
    po::positional_options_description positional;
    positional.add("input", -1);
    po::variables_map values;
    try {
        auto const style =
            po::command_line_style::unix_style & ~po::command_line_style::allow_guessing;
        po::store(
            po::command_line_parser(words).options(all).positional(positional).style(style).run(),
            values);
        po::notify(values);
    } catch (po::unknown_option const& error) {
        fail_unknown(error.get_option_name(), visible);
    } catch (po::error const& error) {
        fail(ExitCode::usage, "{}", folded(error.what()));
    }
    ReportOptions options = read_options(values);
    options.command = command;
    CommandText const& text = text_of(command);
    require(options.help || options.inputs.size() == text.inputs, ExitCode::usage,
            "usage: cpstep-report {}{}{}; --help has more", text.name, *text.name != 0 ? " " : "",
            text.usage);
    if (command == ReportCommand::export_ && !options.help) {
        require(options.format == "perfetto" || options.format == "hta", ExitCode::usage,
                "--format: perfetto or hta, not '{}'", options.format);
        require(!options.output.empty(), ExitCode::usage, "--output: where to write is missing");
    }
    require(options.variants.size() <= 2, ExitCode::usage, "--variant: given {} times, at most 2",
            options.variants.size());
    return options;
}

std::string report_help(ReportCommand command) {
    CommandText const& text = text_of(command);
    std::ostringstream out;
    out << "usage: cpstep-report " << text.name << (*text.name != 0 ? " " : "") << text.usage
        << "\n\n"
        << text.about << "\n\n"
        << options_of(command);
    return out.str();
}

}  // namespace cpstep
