#define BOOST_TEST_MODULE run_directory
#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <csignal>
#include <fstream>
#include <optional>

#include "app/run_directory.hpp"
#include "cuda/error.hpp"

using namespace cpstep;
namespace fs = std::filesystem;

namespace {

struct Folder {
    fs::path path =
        fs::temp_directory_path() / ("cpstep_run_directory_" + std::to_string(getpid()));
    Folder() { fs::remove_all(path); }
    Folder(Folder const&) = delete;
    Folder& operator=(Folder const&) = delete;
    ~Folder() { fs::remove_all(path); }
};

bool refused(fs::path const& path, bool force) {
    try {
        RunDirectory const claim(path, force);
        return false;
    } catch (Error const& error) {
        return error.code() == ExitCode::usage;
    }
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_finished_run_is_refused_and_left_alone_unless_forced) {
    Folder const folder;
    fs::create_directories(folder.path);
    std::ofstream(folder.path / "run.h5") << "precious";
    BOOST_TEST(refused(folder.path, false));
    BOOST_TEST(fs::file_size(folder.path / "run.h5") == 8U);
    BOOST_TEST(!fs::exists(folder.path / ".lock"));
    BOOST_TEST(!refused(folder.path, true));
    BOOST_TEST(!fs::exists(folder.path / "run.h5"));
}

BOOST_AUTO_TEST_CASE(an_unfinished_run_may_be_started_again) {
    Folder const folder;
    fs::create_directories(folder.path / "ranks" / "000");
    BOOST_TEST(!refused(folder.path, false));
}

BOOST_AUTO_TEST_CASE(a_second_run_is_refused_while_the_first_holds_the_lock) {
    Folder const folder;
    std::optional<RunDirectory> first(std::in_place, folder.path, false);
    BOOST_TEST(refused(folder.path, false));
    BOOST_TEST(refused(folder.path, true));
    first.reset();
    BOOST_TEST(!refused(folder.path, false));
}

BOOST_AUTO_TEST_CASE(the_lock_file_of_an_ended_process_does_not_hold_the_folder) {
    Folder const folder;
    fs::create_directories(folder.path);
    std::ofstream(folder.path / ".lock") << "any-host 4194999\n";
    BOOST_TEST(!refused(folder.path, false));
    BOOST_TEST(!fs::exists(folder.path / ".lock"));
}

BOOST_AUTO_TEST_CASE(a_killed_process_that_nobody_collected_does_not_hold_the_folder) {
    Folder const folder;
    pid_t const child = fork();
    if (child == 0) {
        RunDirectory const claim(folder.path, false);
        raise(SIGKILL);
    }
    siginfo_t info{};
    BOOST_REQUIRE(waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT) == 0);
    BOOST_TEST(fs::exists(folder.path / ".lock"));
    BOOST_TEST(!refused(folder.path, false));  // the child is a zombie
    BOOST_TEST(waitpid(child, nullptr, 0) == child);
}

BOOST_AUTO_TEST_CASE(free_bytes_looks_at_the_nearest_existing_parent) {
    BOOST_TEST(free_bytes("/tmp/no/such/folder/yet") > 0U);
}
