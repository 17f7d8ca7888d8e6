#include "app/pages.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "cuda/error.hpp"

namespace cpstep {
namespace {

/// Text as troff prints it: '-' that can be copied, no request at the start of a line.
std::string roff(std::string const& text) {
    std::string out;
    for (char const c : text) {
        bool const line_start = out.empty() || out.back() == '\n';
        if (line_start && (c == '.' || c == '\'')) {
            out += "\\&";
        }
        out += c == '\\' ? "\\e" : c == '-' ? "\\-" : std::string(1, c);
    }
    return out;
}

/// The same as lines of at most 72 characters where words allow it.
std::string filled(std::string text) {
    constexpr std::size_t columns = 72;
    for (std::size_t begin = 0; text.size() - begin > columns;) {
        std::size_t space = text.rfind(' ', begin + columns);
        if (space == std::string::npos || space < begin) {
            space = text.find(' ', begin);
        }
        if (space == std::string::npos) {
            break;
        }
        text[space] = '\n';
        begin = space + 1;
    }
    return roff(text) + "\n";
}

std::string upper(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    return text;
}

std::string heading(std::string const& title, std::string const& summary,
                    std::string const& version) {
    return fmt::format(
        ".TH {} 1 \"\" \"cpstep {}\" \"User commands\"\n.nh\n.ad l\n.SH NAME\n{} \\- {}\n",
        roff(upper(title)), version, roff(title), roff(summary));
}

std::string paragraphs(std::vector<std::string> const& texts) {
    std::string out;
    for (std::string const& text : texts) {
        out += (out.empty() ? "" : ".PP\n") + filled(text);
    }
    return out;
}

/// What follows the option's name: its help, the words it takes, its default.
std::string explanation(OptionSpec const& spec) {
    std::string out = spec.help;
    if (!spec.choices.empty()) {
        out += fmt::format("{}{} {}", out.empty() ? "" : "; ",
                           spec.kind == OptionKind::list ? "a list of" : "one of",
                           fmt::join(spec.choices, ", "));
    }
    if (spec.kind != OptionKind::flag && !spec.fallback.empty()) {
        out += fmt::format(" [{}]", spec.fallback);
    }
    if (spec.repeatable && spec.help.find("repeatable") == std::string::npos) {
        out += "; repeatable";
    }
    return filled(out);
}

std::string option_sections(std::vector<OptionSpec> const& options) {
    std::string out;
    std::string section;
    for (OptionSpec const& spec : options) {
        if (spec.section != section) {
            section = spec.section;
            out += fmt::format(".SS {}\n", roff(section));
        }
        // A metavar that lists the choices would only repeat them.
        std::string const value = spec.choices.empty()            ? spec.metavar
                                  : spec.kind == OptionKind::list ? "LIST"
                                                                  : "WORD";
        out += fmt::format(".TP\n\\fB{}\\fR", roff("--" + spec.name));
        out += spec.kind == OptionKind::flag ? "\n" : fmt::format(" \\fI{}\\fR\n", roff(value));
        out += explanation(spec);
    }
    return out;
}

std::string exit_items(ExitTexts const& exits) {
    std::string out;
    for (auto const& [code, text] : exits) {
        out += fmt::format(".TP\n.B {}\n{}", static_cast<int>(code), filled(text));
    }
    return out;
}

/// The commands that share the page of `page`.
std::string subcommand_sections(CommandPage const& page) {
    std::string out;
    for (CommandPage const& command : page.subcommands) {
        out += (out.empty() ? ".SH COMMANDS\n" : "") + (".SS " + roff(command.command) + "\n");
        out += ".B " + roff(command.synopsis) + "\n.PP\n" + paragraphs(command.description) +
               option_sections(command.options);
    }
    return out;
}

std::string example_section(std::vector<std::string> const& lines) {
    std::string out = ".SH EXAMPLES\n.nf\n";
    for (std::string const& line : lines) {
        out += roff(line) + "\n";
    }
    return out + ".fi\n";
}

}  // namespace

std::string man_page(CommandPage const& page, std::string const& version) {
    std::string out = heading(page.title(), page.summary, version);
    out += ".SH SYNOPSIS\n.B " + roff(page.synopsis) + "\n";
    for (CommandPage const& command : page.subcommands) {
        out += ".br\n.B " + roff(command.synopsis) + "\n";
    }
    out += ".SH DESCRIPTION\n" + paragraphs(page.description);
    out += ".SH OPTIONS\n" + option_sections(page.options) + subcommand_sections(page);
    out += ".SH EXIT STATUS\n" + exit_items(page.exits);
    if (page.reads_environment && !page.options.empty()) {
        std::string const& name = page.options.front().name;
        out += ".SH ENVIRONMENT\n" +
               filled(fmt::format("Each option has a variable: --{} is {}, a flag is set by 1 or "
                                  "true.",
                                  name, environment_name(name)));
    }
    if (!page.examples.empty()) {
        out += example_section(page.examples);
    }
    std::string const& other = page.command.empty() ? page.see_also : page.program;
    return other.empty() ? out : out + fmt::format(".SH SEE ALSO\n.BR {} (1)\n", roff(other));
}

std::string program_page(std::string const& program, std::vector<CommandPage> const& pages,
                         std::string const& version) {
    std::string out = heading(program, "is context parallelism right, and is it free?", version);
    std::string commands;
    std::string exits;
    std::string others;
    std::vector<std::string> examples;
    for (CommandPage const& page : pages) {
        if (page.program != program) {
            others += fmt::format("{}.BR {} (1)\n", others.empty() ? ".SH SEE ALSO\n" : "",
                                  roff(page.title()));
            continue;
        }
        commands += fmt::format(".TP\n.BR {} (1)\n{}\n", roff(page.title()), roff(page.summary));
        exits += fmt::format(".SS {}\n{}", roff(page.command), exit_items(page.exits));
        std::copy(page.examples.begin(), page.examples.end(), std::back_inserter(examples));
    }
    out += ".SH SYNOPSIS\n.B " + roff(program) + "\n.I command\n[options]\n";
    out += ".SH DESCRIPTION\n" +
           filled(
               "One training step, computed by the same ranks with context parallel size 1 and "
               "with larger ones: do all results agree, and what does the communication cost?");
    out += ".SH COMMANDS\n" + commands;
    out += ".SH OPTIONS\n.TP\n.B " + roff("--version") + "\nPrint the version.\n.TP\n.B " +
           roff("--help") + "\nPrint the commands; after a command, its options.\n";
    return out + ".SH EXIT STATUS\n" + exits + example_section(examples) + others;
}

}  // namespace cpstep
