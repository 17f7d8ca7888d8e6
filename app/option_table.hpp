// The one table behind every source and view of the settings. Private to the options files.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "app/options.hpp"

namespace cpstep {

enum class OptionKind : std::uint8_t { flag, integer, real, text, choice, list };

struct OptionSpec {
    std::string name;  ///< long name without the dashes, also the ini key
    OptionKind kind = OptionKind::text;
    std::string metavar;  ///< "" for a flag
    std::string help;     ///< one line; the reason for an option that is not applicable
    std::string section;
    std::string fallback;              ///< text of the default, "" if there is none
    std::vector<std::string> choices;  ///< the words it takes; of a list, those of an item
    bool applicable = true;
    bool repeatable = false;       ///< mentions within one source are joined by ';'
    bool takes_two_words = false;  ///< "--sizes 2 4" on the command line is "2,4"
    /// Check `text`, store it, return it in canonical form. `label` opens the error line.
    std::function<std::string(Options&, std::string const& text, std::string const& label)> apply;
};

/// All options in the order of --help. Names are unique.
std::vector<OptionSpec> const& option_table();
/// nullptr if unknown.
OptionSpec const* find_option(std::string const& name);
/// "CPSTEP_EPS_CLIP" for "eps-clip".
std::string environment_name(std::string const& name);

/// One value as a source gives it, not yet checked.
struct Setting {
    OptionSpec const* spec = nullptr;
    std::string text;
    Origin origin = Origin::fallback;
    std::string where;  ///< as ResolvedValue::where
    std::string label;  ///< opening of an error line: "a.ini:4: lr", "CPSTEP_LR", "--lr"
};

/// Unknown names, duplicates, missing values and positional arguments: Error(usage).
std::vector<Setting> read_command_line(std::vector<std::string> const& arguments);
std::vector<Setting> read_environment(std::map<std::string, std::string> const& environment);
/// Lines `key = value`; '#' and ';' open a comment at the start of a line or after a blank.
std::vector<Setting> read_ini(std::filesystem::path const& file);

}  // namespace cpstep
