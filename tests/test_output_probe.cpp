#define BOOST_TEST_MODULE output_probe
#include <boost/test/unit_test.hpp>

#include "io/output_probe.hpp"
#include "scratch.hpp"

using namespace cpstep;
namespace fs = std::filesystem;

BOOST_AUTO_TEST_CASE(a_good_folder_passes_and_is_left_as_it_was) {
    test::Folder const folder;
    fs::path const deep = folder.path / "a/b";
    {
        ProbeFolder const made(deep);
        OutputFacts const facts = probe_output(deep, "0");
        BOOST_TEST(facts.seconds.known(), facts.seconds.why);
        BOOST_TEST(*facts.free_bytes.value > 0);
        BOOST_TEST(!facts.file_system.empty());
        BOOST_TEST(facts.sees_mark);
        BOOST_TEST(std::distance(fs::directory_iterator(deep), {}) == 1);  // the mark
    }
    BOOST_TEST(fs::is_empty(folder.path));
}

BOOST_AUTO_TEST_CASE(folders_that_were_there_and_files_of_others_stay) {
    test::Folder const folder;
    fs::create_directories(folder.path / "run");
    {
        ProbeFolder const made(folder.path / "run/new");
        test::put(folder.path / "run/new/file", "x");
    }
    BOOST_TEST(fs::exists(folder.path / "run/new/file"));
    BOOST_TEST(!fs::exists(folder.path / "run/new/.cpstep-doctor"));
    {
        ProbeFolder const kept(folder.path / "run");
    }
    BOOST_TEST(fs::exists(folder.path / "run"));
}

BOOST_AUTO_TEST_CASE(a_folder_that_is_not_rank_0s_shows_no_mark) {
    test::Folder const folder;
    BOOST_TEST(!probe_output(folder.path, "1").sees_mark);
}

BOOST_AUTO_TEST_CASE(what_cannot_be_written_is_named) {
    test::Folder const folder;
    OutputFacts const facts = probe_output(folder.path / "missing", "0");
    BOOST_TEST(!facts.seconds.known());
    BOOST_TEST(facts.seconds.why.find("missing") != std::string::npos, facts.seconds.why);
    test::put(folder.path / "file", "x");
    test::check_fails(ExitCode::environment, "cannot be made",
                      [&] { ProbeFolder const made(folder.path / "file/below"); });
    test::check_fails(ExitCode::environment, "cannot be made",
                      [&] { ProbeFolder const made(folder.path / "file"); });
}
