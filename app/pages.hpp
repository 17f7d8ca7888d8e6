// Man pages and the bash completions: views of what parses the options, written at build time.
#pragma once

#include <string>
#include <vector>

#include "app/described_options.hpp"
#include "app/option_table.hpp"

namespace cpstep {

/// A command of a program as its pages show it.
struct CommandPage {
    std::string program;  ///< "cpstep"
    std::string command;  ///< "run"; "" for a program without commands
    std::string summary;  ///< what it does, in half a line
    std::string synopsis;
    std::vector<std::string> description;  ///< paragraphs
    std::vector<OptionSpec> options;       ///< in the order of --help, sections together
    std::string operand;                   ///< as CommandText::operand
    std::vector<CommandPage> subcommands;  ///< commands that its page and completion include
    ExitTexts exits;
    bool reads_environment = false;     ///< CPSTEP_* set its options
    bool launched = false;              ///< by mpirun or srun
    std::vector<std::string> examples;  ///< command lines
    std::string see_also;               ///< another program's page; a command names its program's

    /// "cpstep-run": the name of its man page.
    std::string title() const { return command.empty() ? program : program + "-" + command; }
};

/// Every command; a new one is a new entry.
std::vector<CommandPage> command_pages();

/// The page of one command, with its subcommands, in section 1, roff of the man macros.
std::string man_page(CommandPage const& page, std::string const& version);
/// The page of a program that has commands: what they are, exit codes, where to read on.
std::string program_page(std::string const& program, std::vector<CommandPage> const& pages,
                         std::string const& version);

/// Bash functions that complete commands, operands, options, choices (also the items of a list),
/// files and folders after the word `program`, wherever a launcher puts it in the line.
std::string bash_completion(std::string const& program, std::vector<CommandPage> const& pages);

}  // namespace cpstep
