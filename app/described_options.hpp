// Commands whose options Boost.Program_options describes: one description for parsing, --help,
// man page and completion.
#pragma once

#include <boost/program_options/options_description.hpp>
#include <boost/program_options/variables_map.hpp>
#include <string>
#include <utility>
#include <vector>

#include "cuda/error.hpp"

namespace cpstep {

using ExitTexts = std::vector<std::pair<ExitCode, std::string>>;

struct CommandText {
    std::string name;  ///< "doctor"; "" for what a program does without a command
    std::string
        operand;        ///< "DIR" or "FILE": what its words without dashes name; "" if it has none
    std::string usage;  ///< "cpstep doctor [options]"
    std::string about;  ///< lines as --help prints them; pages fill them anew
    /// A value's name "DIR" or "FILE" is completed as one; "a|b" lists the words it takes.
    boost::program_options::options_description options;
};

/// Text of --help.
std::string help_text(CommandText const& text);

/// Values by name; words that are no option are the vector "input". Error(usage) is one line and
/// names the nearest option of one that is not known.
boost::program_options::variables_map read_words(
    std::vector<std::string> const& words,
    boost::program_options::options_description const& described);

}  // namespace cpstep
