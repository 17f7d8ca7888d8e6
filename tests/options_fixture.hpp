// What the tests of the options share: short command lines, their errors, a throw-away ini file.
#pragma once

#include <boost/test/unit_test.hpp>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "app/options.hpp"
#include "cuda/error.hpp"
#include "scratch.hpp"

namespace cpstep::test {

using Arguments = std::vector<std::string>;
using Environment = std::map<std::string, std::string>;

/// The smallest valid command line, and more.
inline Arguments with(Arguments const& more = {}) {
    Arguments all{"--hf-checkpoint", "model", "--rollout-file", "samples.h5"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
}

inline Arguments words(std::string const& line) {
    std::istringstream stream(line);
    return {std::istream_iterator<std::string>(stream), std::istream_iterator<std::string>()};
}

inline Options parse(Arguments const& arguments, Environment const& environment = {}) {
    return parse_run_options(arguments, environment);
}

/// The message of the Error(usage) that f must throw; "" and a failure if it does not.
template <class F>
std::string usage_error(F const& f) {
    try {
        f();
    } catch (Error const& error) {
        BOOST_TEST(static_cast<int>(error.code()) == static_cast<int>(ExitCode::usage));
        BOOST_TEST(std::string(error.what()).find('\n') == std::string::npos);
        return error.what();
    }
    BOOST_ERROR("no error was thrown");
    return "";
}

inline std::string error_of(Arguments const& arguments, Environment const& environment = {}) {
    return usage_error([&] { parse(arguments, environment); });
}

/// The error of more arguments than the smallest valid line.
inline std::string refused(Arguments const& more, Environment const& environment = {}) {
    return error_of(with(more), environment);
}

inline void expect(std::string const& text, std::string const& part) {
    BOOST_CHECK_MESSAGE(text.find(part) != std::string::npos,
                        "'" << part << "' is not in '" << text << "'");
}

/// A folder with one ini file in it.
struct IniFolder : Folder {
    std::string ini(std::string const& text) const {
        std::string const file = (path / "a.ini").string();
        put(file, text);
        return file;
    }
};

inline std::string ini_error(std::string const& text) {
    IniFolder const folder;
    return refused({"--config", folder.ini(text)});
}

inline std::vector<std::string> lines_of(std::string const& text) {
    std::vector<std::string> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) {
        lines.push_back(line);
    }
    return lines;
}

}  // namespace cpstep::test
