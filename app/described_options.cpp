#include "app/described_options.hpp"

#include <algorithm>
#include <boost/program_options.hpp>
#include <sstream>

#include "app/nearest_name.hpp"

namespace cpstep {
namespace {

namespace po = boost::program_options;

[[noreturn]] void fail_unknown(std::string const& word, po::options_description const& described) {
    std::string const bare = word.substr(std::min(word.find_first_not_of('-'), word.size()));
    std::vector<std::string> names;
    for (auto const& option : described.options()) {
        names.push_back(option->long_name());
    }
    std::string const nearest = nearest_name(bare.substr(0, bare.find('=')), names);
    fail(ExitCode::usage, "unknown option '{}'{}", word,
         nearest.empty() ? "; --help lists all" : fmt::format("; did you mean '--{}'?", nearest));
}

std::string folded(std::string text) {
    std::replace(text.begin(), text.end(), '\n', ' ');
    return text;
}

}  // namespace

std::string help_text(CommandText const& text) {
    std::ostringstream out;
    out << "usage: " << text.usage << "\n\n" << text.about << "\n\n" << text.options;
    return out.str();
}

po::variables_map read_words(std::vector<std::string> const& words,
                             po::options_description const& described) {
    po::options_description all;
    all.add(described);
    all.add_options()("input", po::value<std::vector<std::string>>());
    po::positional_options_description positional;
    positional.add("input", -1);
    po::variables_map values;
    try {
        auto const style =
            po::command_line_style::unix_style & ~po::command_line_style::allow_guessing;
        auto const parsed =
            po::command_line_parser(words).options(all).positional(positional).style(style).run();
        for (po::option const& option : parsed.options) {
            std::string const value = option.value.empty() ? "" : option.value.front();
            // "--output --json": the parser takes the next option as the value.
            require(option.original_tokens.size() < 2 || !value.starts_with("--"), ExitCode::usage,
                    "option '--{}' needs a value, but '{}' follows", option.string_key, value);
        }
        po::store(parsed, values);
        po::notify(values);
    } catch (po::unknown_option const& error) {
        fail_unknown(error.get_option_name(), described);
    } catch (po::error const& error) {
        fail(ExitCode::usage, "{}", folded(error.what()));
    }
    return values;
}

}  // namespace cpstep
