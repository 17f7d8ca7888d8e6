// What tests of files share: a folder of their own, and errors that must be one good line.
#pragma once

#include <sys/wait.h>

#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "cuda/error.hpp"

namespace cpstep::test {

/// A new folder that goes away with its owner.
struct Folder {
    Folder() {
        std::string name = (std::filesystem::temp_directory_path() / "cpstep_XXXXXX").string();
        BOOST_REQUIRE(::mkdtemp(name.data()) != nullptr);
        path = name;
    }
    Folder(Folder const&) = delete;
    Folder& operator=(Folder const&) = delete;
    ~Folder() {
        std::error_code ignored;
        std::filesystem::remove_all(path, ignored);
    }
    std::filesystem::path path;
};

inline std::string contents(std::filesystem::path const& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

inline void put(std::filesystem::path const& file, std::string const& bytes) {
    std::ofstream(file, std::ios::binary) << bytes;
}

/// The child must end by a signal.
inline void wait_for_kill(::pid_t child) {
    int status = 0;
    BOOST_REQUIRE(::waitpid(child, &status, 0) == child);
    BOOST_REQUIRE(WIFSIGNALED(status));
}

/// Runs f, which must throw Error(code) with all of `texts` in its one line.
template <class F>
void check_fails(ExitCode code, std::vector<std::string> const& texts, F const& f) {
    try {
        f();
        BOOST_ERROR("no error; expected: " << texts.front());
    } catch (Error const& error) {
        std::string const what = error.what();
        BOOST_TEST(static_cast<int>(error.code()) == static_cast<int>(code), what);
        for (std::string const& text : texts) {
            BOOST_TEST(what.find(text) != std::string::npos, what << "  lacks  " << text);
        }
        BOOST_TEST(what.find('\n') == std::string::npos, what);
    }
}

template <class F>
void check_fails(ExitCode code, std::string const& text, F const& f) {
    check_fails(code, std::vector<std::string>{text}, f);
}

/// h5py beside the system's Python.
inline bool has_h5py() {
    return std::system("/usr/bin/python3 -c 'import h5py' 2>/dev/null") == 0;
}

}  // namespace cpstep::test
