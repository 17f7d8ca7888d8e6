#define BOOST_TEST_MODULE run_clock
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "app/run_clock.hpp"
#include "errors.hpp"
#include "mpi_test_main.hpp"
#include "scratch.hpp"

using namespace cpstep;
using cpstep::test::test_world;

namespace {

std::vector<RankClock> two_clocks() {
    return {RankClock{},
            RankClock{.start = {.at_ns = 10, .offset_ns = 5'000, .bound_ns = 300},
                      .end = {.at_ns = 1'000'000'010, .offset_ns = 5'100, .bound_ns = 300}}};
}

}  // namespace

BOOST_AUTO_TEST_CASE(time_0_is_one_moment_on_clocks_with_a_known_skew) {
    World& world = test_world();
    std::int64_t const skew = std::int64_t{10'000'000} * world.rank();
    auto const clock = [=] { return now_ns() + skew; };
    std::int64_t const before = now_ns();
    auto const clocks = read_clocks(world, clock_servers(world.gather(world.host())), clock);
    RunEpoch const epoch = agree_on_epoch(world, clocks, clock);
    std::vector<std::string> const moments = world.gather(std::to_string(epoch.own_ns - skew));
    std::vector<std::string> const unix_times = world.gather(std::to_string(epoch.unix_ns));
    BOOST_TEST((before <= std::stoll(moments[0]) && std::stoll(moments[0]) <= now_ns()));
    for (std::size_t rank = 1; rank < moments.size(); ++rank) {
        BOOST_TEST(std::llabs(std::stoll(moments[rank]) - std::stoll(moments[0])) <=
                   clocks[rank].bound_ns);
        BOOST_TEST(clocks[rank].bound_ns < 5'000'000);  // else the skew would not show
        BOOST_TEST(unix_times[rank] == unix_times[0]);
    }
}

BOOST_AUTO_TEST_CASE(the_line_names_the_worst_rank_and_one_rank_has_none) {
    std::string const line = clock_line(two_clocks());
    for (char const* part : {"clock bound: 0.4 us", "rank 1: +- 0.4 us", "drift 100 ppb"}) {
        BOOST_TEST(test::contains(line, part), line);
    }
    BOOST_TEST(clock_line(std::vector<RankClock>(1)).empty());
    BOOST_TEST(clock_line({}).empty());
}

BOOST_AUTO_TEST_CASE(json_and_file_hold_every_rank) {
    std::vector<RankClock> const clocks = two_clocks();
    nlohmann::json const json = clock_json(clocks);
    BOOST_TEST(json["pair_bound_ns"] == 400);
    BOOST_TEST(json["ranks"].size() == 2U);
    BOOST_TEST(json["ranks"][1]["offset_ns"] == 5'000);
    BOOST_TEST(json["ranks"][1]["bound_ns"] == 400);
    BOOST_TEST(json["ranks"][1]["drift_ppb"].get<double>() == 100.0);
    test::Folder const folder;
    {
        H5File file = H5File::create(folder.path / "clock.h5");
        write_clocks(file, clocks);
        file.close();
    }
    H5File const file = H5File::open(folder.path / "clock.h5");
    BOOST_TEST((file.read_i64("/clock/start_offset") == std::vector<std::int64_t>{0, 5'000}));
    BOOST_TEST((file.read_i64("/clock/end_offset") == std::vector<std::int64_t>{0, 5'100}));
    BOOST_TEST((file.read_i64("/clock/bound") == std::vector<std::int64_t>{0, 400}));
    BOOST_TEST((file.read_f64("/clock/drift") == std::vector<double>{0, 100}));
}
