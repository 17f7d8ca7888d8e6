// The commands that have pages, each with the table that parses its options.
#include <algorithm>
#include <boost/program_options.hpp>
#include <sstream>

#include "app/analysis/command_line.hpp"
#include "app/doctor/doctor.hpp"
#include "app/pages.hpp"

namespace cpstep {
namespace {

OptionSpec spec_of(boost::program_options::option_description const& option) {
    OptionSpec spec;
    spec.name = option.long_name();
    spec.help = option.description();
    if (option.semantic()->max_tokens() == 0) {
        spec.kind = OptionKind::flag;
        return spec;
    }
    std::string const value = option.semantic()->name();  // "X (=1e-5)"
    std::size_t const brackets = value.find(" (=");
    spec.metavar = value.substr(0, brackets);
    if (brackets != std::string::npos) {
        spec.fallback = value.substr(brackets + 3, value.size() - brackets - 4);
    }
    if (spec.metavar.find('|') != std::string::npos) {
        spec.kind = OptionKind::choice;
        std::istringstream words(spec.metavar);
        for (std::string word; std::getline(words, word, '|');) {
            spec.choices.push_back(word);
        }
    }
    return spec;
}

CommandPage page_of(std::string const& program, CommandText const& text) {
    CommandPage page;
    page.program = program;
    page.command = text.name;
    page.operand = text.operand;
    page.synopsis = text.usage;
    page.description = {text.about};
    std::replace(page.description[0].begin(), page.description[0].end(), '\n', ' ');
    for (auto const& option : text.options.options()) {
        page.options.push_back(spec_of(*option));
    }
    return page;
}

CommandPage run_page() {
    CommandPage page;
    page.program = "cpstep";
    page.command = "run";
    page.summary = "verify and time context parallelism of an RL training step";
    page.synopsis = "mpirun -np RANKS cpstep run --hf-checkpoint DIR DATA [options]";
    page.description = {
        "Runs the same training step on the same samples with context parallel size 1 and with "
        "each other size and method asked for, compares log-probs, loss, gradients and updated "
        "weights, counts every communication call against its budget, and measures the ratio of "
        "step times. Rank 0 prints one table; traces of all ranks and results go to --output.",
        "DATA is one of --prompt-data, --rollout-file, --rollout-prompt-len. Options keep the "
        "names that trainers (slime, Megatron) give them, so that a launch line can be pasted.",
        "An option is set, in falling precedence, by the command line, by the environment, by the "
        "file of --config, or by its default, here in brackets."};
    page.options = option_table();
    page.exits = {
        {ExitCode::pass,
         "Pass: all variants agree with the baseline, within the gate if one is set."},
        {ExitCode::internal, "Internal error."},
        {ExitCode::usage,
         "Usage: unknown option, contradiction, output folder in use or finished."},
        {ExitCode::environment, "Environment: a folder cannot be written, a package is missing."},
        {ExitCode::input_data,
         "Input data: checkpoint, prompts or rollout file; or a step that does "
         "not fit the memory."},
        {ExitCode::parity,
         "Parity failed: a value, a gradient, a weight, or a communication call off "
         "budget."},
        {ExitCode::performance, "Performance: a step-time ratio lies above --gate-ratio."},
        {ExitCode::communication, "Communication failed or timed out."},
        {ExitCode::output, "Output could not be written."},
        {ExitCode::nonfinite, "NaN or Inf."},
        {ExitCode::inconclusive,
         "Inconclusive: no gradient signal, the interval includes the gate, or "
         "float32 cannot resolve the model."}};
    page.reads_environment = true;
    page.launched = true;
    page.examples = {"mpirun -np 2 cpstep run --config inputs/smoke.ini",
                     "cpstep run --config inputs/smoke.ini --context-parallel-size 1 --dry-run",
                     "mpirun -np 4 cpstep run --self-test"};
    return page;
}

CommandPage doctor_page() {
    CommandPage page = page_of("cpstep", doctor_text());
    page.summary = "is this machine fit for a run?";
    page.synopsis = "mpirun -np RANKS cpstep doctor [options]";
    page.description.emplace_back(
        "Rank 0 prints a row for each check: PASS, WARN, FAIL or SKIP, with what was found, what "
        "is "
        "wanted and what to do.");
    page.exits = doctor_exits();
    page.launched = true;
    page.examples = {"mpirun -np 2 cpstep doctor",
                     "mpirun -np 2 cpstep doctor --full --output out/machine"};
    return page;
}

CommandPage report_page() {
    std::vector<CommandText> const texts = report_commands();
    CommandPage page = page_of("cpstep-report", texts.front());
    page.summary = "what a run of cpstep left on disk";
    page.description.emplace_back("Needs the files of the run, and neither MPI nor a GPU.");
    for (auto text = texts.begin() + 1; text != texts.end(); ++text) {
        page.subcommands.push_back(page_of(page.program, *text));
    }
    page.exits = report_exits();
    page.examples = {
        "cpstep-report out/smoke --html page.html --step 40",
        "cpstep-report recover out/killed",
        "cpstep-report diff out/a out/b --gate-ratio 1.05",
        "cpstep-report export out/smoke --format perfetto --output trace.json",
    };
    page.see_also = "cpstep";
    return page;
}

}  // namespace

std::vector<CommandPage> command_pages() {
    return {run_page(), doctor_page(), report_page()};
}

}  // namespace cpstep
