// cpstep-report: what a run left on disk, for people and for other programs. Needs no MPI, no GPU.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "app/analysis/analysis.hpp"
#include "app/analysis/command_line.hpp"
#include "app/analysis/diff.hpp"
#include "app/analysis/export_trace.hpp"
#include "app/analysis/html_page.hpp"
#include "app/analysis/saved.hpp"
#include "app/analysis/text_file.hpp"
#include "cuda/error.hpp"

namespace {

using namespace cpstep;

constexpr int most_timelines = 32;
constexpr std::size_t most_saved_lines = 40;

/// A terminal that did not ask for plain text (no-color.org).
bool wants_colour() {
    char const* const plain = std::getenv("NO_COLOR");
    char const* const terminal = std::getenv("TERM");
    return isatty(STDOUT_FILENO) != 0 && (plain == nullptr || *plain == '\0') &&
           (terminal == nullptr || std::string(terminal) != "dumb");
}

/// Damaged or missing files are reported, and end with the code of bad input.
ExitCode report(ReportOptions const& options) {
    bool const recover = options.command == ReportCommand::recover;
    RunData run =
        recover ? load_unfinished_run(options.inputs.front()) : load_run(options.inputs.front());
    std::string out = recover && !options.json ? saved_text(run, most_saved_lines) + "\n" : "";
    Analysis const analysis = analyse(std::move(run), options.step, most_timelines);
    if (!options.csv.empty()) {
        write_text_file(options.csv, report_csv(analysis.run));
    }
    if (!options.html.empty()) {
        write_text_file(options.html, html_page(analysis));
    }
    out += options.json ? report_json_text(analysis) : report_text(analysis, wants_colour());
    std::fputs(out.c_str(), stdout);
    return analysis.run.problems.empty() ? ExitCode::pass : ExitCode::input_data;
}

ExitCode diff(ReportOptions const& given) {
    DiffOptions const options{.a = given.inputs.front(),
                              .b = given.inputs.back(),
                              .variants = given.variants,
                              .tolerance = given.tolerance,
                              .gate_ratio = given.gate_ratio};
    Difference const difference = compare(options);
    std::fputs((given.json ? diff_json(options, difference)
                           : diff_text(options, difference, wants_colour()))
                   .c_str(),
               stdout);
    return difference.code;
}

ExitCode write_export(ReportOptions const& options) {
    RunData const run = load_unfinished_run(options.inputs.front());
    for (std::string const& problem : run.problems) {
        fmt::print(stderr, "cpstep-report: problem: {}\n", problem);
    }
    export_trace(run, options.format == "hta" ? ExportFormat::hta : ExportFormat::perfetto,
                 options.output, options.step);
    fmt::print("written: {}\n", options.output.string());
    return run.problems.empty() ? ExitCode::pass : ExitCode::input_data;
}

ExitCode run_command(ReportOptions const& options) {
    if (options.help) {
        std::fputs(report_help(options.command).c_str(), stdout);
        return ExitCode::pass;
    }
    switch (options.command) {
        case ReportCommand::diff:
            return diff(options);
        case ReportCommand::export_:
            return write_export(options);
        default:
            return report(options);
    }
}

}  // namespace

// Only fmt::print to a broken stderr is left to throw.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
    try {
        std::vector<std::string> words(argv + 1, argv + argc);
        ExitCode const code = run_command(parse_report_options(std::move(words)));
        if (std::fflush(stdout) != 0) {
            fail(ExitCode::output, "stdout: cannot be written");
        }
        return static_cast<int>(code);
    } catch (Error const& error) {
        fmt::print(stderr, "cpstep-report: {}\n", error.what());
        return static_cast<int>(error.code());
    } catch (nlohmann::json::exception const& error) {
        fmt::print(stderr, "cpstep-report: run.h5: /verdict/summary is damaged: {}\n",
                   error.what());
        return static_cast<int>(ExitCode::input_data);
    } catch (std::exception const& error) {
        fmt::print(stderr, "cpstep-report: internal error: {}\n", error.what());
        return static_cast<int>(ExitCode::internal);
    }
}
