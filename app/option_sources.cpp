// Command line, environment and ini file to settings by name.
#include <fmt/format.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <cctype>
#include <fstream>
#include <set>
#include <utility>

#include "app/option_table.hpp"
#include "cuda/error.hpp"

namespace cpstep {
namespace {

namespace po = boost::program_options;

constexpr char const* kBlanks = " \t\r\f\v";
constexpr char const* kPrefix = "CPSTEP_";

po::options_description describe_table() {
    po::options_description description;
    for (OptionSpec const& spec : option_table()) {
        if (spec.kind == OptionKind::flag) {
            description.add_options()(spec.name.c_str(), spec.help.c_str());
        } else if (spec.takes_two_words) {
            description.add_options()(
                spec.name.c_str(),
                po::value<std::vector<std::string>>()->multitoken()->value_name(spec.metavar),
                spec.help.c_str());
        } else {
            description.add_options()(spec.name.c_str(),
                                      po::value<std::string>()->value_name(spec.metavar),
                                      spec.help.c_str());
        }
    }
    return description;
}

/// "; did you mean '--lr'?", or where to look. `spell` turns an option's name into the source's
/// spelling.
template <class Spell>
std::string hint(std::string const& name, Spell const& spell) {
    std::vector<std::string> names;
    for (OptionSpec const& spec : option_table()) {
        names.push_back(spec.name);
    }
    std::string const nearest = nearest_name(name, names);
    return nearest.empty() ? "; 'cpstep run --help' lists all options"
                           : fmt::format("; did you mean '{}'?", spell(nearest));
}

std::string dashed(std::string const& name) {
    return "--" + name;
}

po::parsed_options parse_tokens(std::vector<std::string> const& arguments) {
    namespace style = po::command_line_style;
    po::options_description const description = describe_table();
    try {
        return po::command_line_parser(arguments)
            .options(description)
            .style(style::allow_long | style::long_allow_next | style::long_allow_adjacent)
            .allow_unregistered()
            .run();
    } catch (po::invalid_command_line_syntax const& error) {
        std::string const name = error.get_option_name();
        if (error.kind() == po::invalid_command_line_syntax::extra_parameter) {
            fail(ExitCode::usage, "option '{}' is a flag and takes no value", name);
        }
        OptionSpec const* spec = find_option(name.substr(name.find_first_not_of('-')));
        fail(ExitCode::usage, "option '{}' needs a value{}", name,
             spec == nullptr ? "" : " (" + spec->metavar + ")");
    } catch (po::error const& error) {
        fail(ExitCode::usage, "{}", error.what());
    }
}

std::string trim(std::string const& text) {
    std::size_t const begin = text.find_first_not_of(kBlanks);
    if (begin == std::string::npos) {
        return "";
    }
    return text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

std::string without_comment(std::string const& line) {
    for (std::size_t i = 0; i < line.size(); ++i) {
        bool const opens = i == 0 || line[i - 1] == ' ' || line[i - 1] == '\t';
        if (opens && (line[i] == '#' || line[i] == ';')) {
            return line.substr(0, i);
        }
    }
    return line;
}

/// `where`: "file:line".
Setting parse_ini_line(std::string const& line, std::string const& where) {
    require(line.front() != '[', ExitCode::usage,
            "{}: sections are not used; remove '{}' and write plain 'key = value' lines", where,
            line);
    std::size_t const equals = line.find('=');
    require(equals != std::string::npos, ExitCode::usage,
            "{}: '{}' is not of the form 'key = value' (a flag: 'key = true')", where, line);
    std::string const key = trim(line.substr(0, equals));
    OptionSpec const* spec = find_option(key);
    require(spec != nullptr, ExitCode::usage, "{}: unknown key '{}'{}", where, key,
            hint(key, [](std::string const& name) { return name; }));
    require(key != "config", ExitCode::usage, "{}: an ini file cannot name another one", where);
    return {spec, trim(line.substr(equals + 1)), Origin::file, where,
            fmt::format("{}: {}", where, key)};
}

}  // namespace

std::vector<Setting> read_command_line(std::vector<std::string> const& arguments) {
    std::vector<Setting> settings;
    std::set<std::string> seen;
    for (po::option const& option : parse_tokens(arguments).options) {
        std::string const& name = option.string_key;
        require(option.position_key < 0 && !name.empty(), ExitCode::usage,
                "unexpected argument '{}': options start with '--', flags take no value",
                option.value.empty() ? "" : option.value.front());
        require(!option.unregistered, ExitCode::usage, "unknown option '--{}'{}", name,
                hint(name, dashed));
        OptionSpec const* spec = find_option(name);
        require(seen.insert(name).second || spec->repeatable, ExitCode::usage,
                "option '--{}' is given twice", name);
        std::string const value =
            option.value.empty() ? "true" : fmt::format("{}", fmt::join(option.value, ","));
        // "--output --force": the parser takes the next option as the value.
        require(option.original_tokens.size() < 2 || !value.starts_with("--"), ExitCode::usage,
                "option '--{}' needs a value ({}), but '{}' follows", name, spec->metavar, value);
        settings.push_back({spec, value, Origin::command_line, "command line", "--" + name});
    }
    return settings;
}

std::string environment_name(std::string const& name) {
    std::string result = kPrefix + name;
    for (char& c : result) {
        c = c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    }
    return result;
}

std::vector<Setting> read_environment(std::map<std::string, std::string> const& environment) {
    std::vector<Setting> settings;
    for (auto const& [variable, value] : environment) {
        if (!variable.starts_with(kPrefix)) {
            continue;
        }
        std::string name = variable.substr(std::string(kPrefix).size());
        for (char& c : name) {
            c = c == '_' ? '-' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
        }
        OptionSpec const* spec = find_option(name);
        // Upper case only: two spellings of one variable must not compete.
        require(spec != nullptr && environment_name(name) == variable, ExitCode::usage,
                "unknown environment variable {}{}", variable, hint(name, environment_name));
        settings.push_back({spec, value, Origin::environment, variable, variable});
    }
    return settings;
}

std::vector<Setting> read_ini(std::filesystem::path const& file) {
    std::string const path = file.string();
    require(std::filesystem::exists(file), ExitCode::usage, "--config: no file '{}'", path);
    require(!std::filesystem::is_directory(file), ExitCode::usage,
            "--config: '{}' is a folder, name an ini file", path);
    std::ifstream stream(file);
    require(stream.good(), ExitCode::usage, "--config: cannot read '{}'", path);
    std::vector<Setting> settings;
    std::map<std::string, int> first_line;
    std::string line;
    for (int number = 1; std::getline(stream, line); ++number) {
        if (number == 1 && line.starts_with("\xEF\xBB\xBF")) {
            line.erase(0, 3);  // UTF-8 byte order mark
        }
        std::string const content = trim(without_comment(line));
        if (content.empty()) {
            continue;
        }
        std::string const where = fmt::format("{}:{}", path, number);
        Setting setting = parse_ini_line(content, where);
        auto const [first, inserted] = first_line.emplace(setting.spec->name, number);
        require(inserted || setting.spec->repeatable, ExitCode::usage,
                "{}: '{}' is already set in line {}", where, setting.spec->name, first->second);
        settings.push_back(std::move(setting));
    }
    require(!stream.bad(), ExitCode::usage, "--config: cannot read '{}' to its end", path);
    require(!settings.empty(), ExitCode::usage,
            "{}:1: the file holds no settings; write 'key = value' lines or leave out --config",
            path);
    return settings;
}

}  // namespace cpstep
