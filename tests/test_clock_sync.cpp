#define BOOST_TEST_MODULE clock_sync
#include <thread>

#include "errors.hpp"
#include "mpi/clock_sync.hpp"
#include "mpi_test_main.hpp"

using namespace cpstep;
using cpstep::test::test_world;

namespace {

/// A clock that is ahead of the host's by a constant, and fast by parts per billion.
struct Skewed {
    std::int64_t ahead_ns = 0;
    double fast_ppb = 0;
    std::int64_t operator()() const {
        std::int64_t const now = now_ns();
        return now + ahead_ns +
               static_cast<std::int64_t>(fast_ppb * 1e-9 * static_cast<double>(now));
    }
};

/// Of rank r: 0, 1234567, -2 x that, 3 x that, ...
std::int64_t skew_of(int rank) {
    return (rank % 2 == 0 ? -1 : 1) * std::int64_t{1'234'567} * rank;
}

std::vector<int> chain(int size) {
    std::vector<int> servers;
    for (int rank = 0; rank < size; ++rank) {
        servers.push_back(rank - 1);
    }
    return servers;
}

/// The ranks of a test share a host and its clock: the offset must undo the skew, to the bound.
void check_finds_the_skew(std::vector<int> const& servers) {
    World& world = test_world();
    std::vector<ClockReading> const readings =
        read_clocks(world, servers, Skewed{.ahead_ns = skew_of(world.rank())});
    BOOST_REQUIRE(readings.size() == static_cast<std::size_t>(world.size()));
    for (int rank = 0; rank < world.size(); ++rank) {
        ClockReading const& reading = readings[static_cast<std::size_t>(rank)];
        BOOST_TEST_CONTEXT("rank " << rank << ": offset " << reading.offset_ns << ", skew "
                                   << skew_of(rank) << ", bound " << reading.bound_ns) {
            BOOST_TEST(std::abs(reading.offset_ns + skew_of(rank)) <= reading.bound_ns);
            BOOST_TEST(reading.bound_ns < 1'000'000);  // else the test would not see the skew
            BOOST_TEST((rank == 0) == (reading.bound_ns == 0));
        }
    }
}

}  // namespace

BOOST_AUTO_TEST_CASE(the_shortest_round_trip_gives_offset_and_bound) {
    std::vector<ClockSample> const samples{
        {.sent_ns = 0, .remote_ns = 5'000, .received_ns = 900},
        {.sent_ns = 1'000, .remote_ns = 6'080, .received_ns = 1'101},
        {.sent_ns = 2'000, .remote_ns = 7'700, .received_ns = 2'800}};
    ClockReading const reading = best_reading(samples);
    BOOST_TEST(reading.at_ns == 1'050);
    BOOST_TEST(reading.offset_ns == 5'030);
    BOOST_TEST(reading.bound_ns == 51);
    BOOST_TEST((test::error_of([] { (void)best_reading({}); }).code() == ExitCode::internal));
}

BOOST_AUTO_TEST_CASE(the_bound_holds_however_unequal_the_two_ways_are) {
    constexpr std::int64_t skew = 777;
    for (std::int64_t there = 0; there <= 400; there += 50) {
        std::vector<ClockSample> const sample{
            {.sent_ns = 100, .remote_ns = 100 + there + skew, .received_ns = 500}};
        ClockReading const reading = best_reading(sample);
        BOOST_TEST(std::abs(reading.offset_ns - skew) <= reading.bound_ns);
        BOOST_TEST(reading.bound_ns == 200);
    }
}

BOOST_AUTO_TEST_CASE(drift_adds_to_the_bound_of_a_run) {
    RankClock const clock{.start = {.at_ns = 0, .offset_ns = 100, .bound_ns = 40},
                          .end = {.at_ns = 1'000'000'000, .offset_ns = -200, .bound_ns = 10}};
    BOOST_TEST(clock.drift_ppb() == -300.0);
    BOOST_TEST(clock.bound_ns() == 310);
    BOOST_TEST(RankClock{}.drift_ppb() == 0.0);
    RankClock const steady{.start = {.bound_ns = 40}, .end = {.bound_ns = 10}};
    BOOST_TEST(steady.bound_ns() == 40);
    std::vector<RankClock> const clocks{RankClock{}, clock, RankClock{}, steady};
    BOOST_TEST(pair_bound_ns(clocks) == 350);
    BOOST_TEST(pair_bound_ns(std::span(clocks).first(2)) == 310);
    BOOST_TEST(pair_bound_ns(std::span(clocks).first(1)) == 0);
}

BOOST_AUTO_TEST_CASE(many_ranks_ask_the_first_of_their_host) {
    std::vector<std::string> const hosts{"a", "b", "a", "b", "c", "b"};
    BOOST_TEST((clock_servers(hosts, 64) == std::vector{-1, 0, 0, 0, 0, 0}));
    BOOST_TEST((clock_servers(hosts, 5) == std::vector{-1, 0, 0, 1, 0, 1}));
    std::vector<ClockReading> const direct{{.at_ns = 1, .offset_ns = 0, .bound_ns = 0},
                                           {.at_ns = 2, .offset_ns = 100, .bound_ns = 5},
                                           {.at_ns = 3, .offset_ns = -30, .bound_ns = 7}};
    std::vector<ClockReading> const sum = chained(direct, {-1, 0, 1});
    BOOST_TEST(sum[1].offset_ns == 100);
    BOOST_TEST(sum[2].offset_ns == 70);
    BOOST_TEST(sum[2].bound_ns == 12);
    BOOST_TEST(sum[2].at_ns == 3);
}

BOOST_AUTO_TEST_CASE(a_known_skew_is_found_to_within_the_bound) {
    check_finds_the_skew(clock_servers(test_world().gather(test_world().host())));
}

BOOST_AUTO_TEST_CASE(a_known_skew_is_found_through_other_ranks) {
    check_finds_the_skew(chain(test_world().size()));
}

BOOST_AUTO_TEST_CASE(a_known_drift_is_found_to_within_the_bounds) {
    World& world = test_world();
    constexpr double fast = 2e6;  // 2 ms a second
    Skewed const clock{.fast_ppb = world.root() ? 0 : fast};
    auto const servers = clock_servers(std::vector<std::string>(world.size(), "a"));
    auto const start = read_clocks(world, servers, clock);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    auto const end = read_clocks(world, servers, clock);
    for (std::size_t rank = 1; rank < start.size(); ++rank) {
        RankClock const read{.start = start[rank], .end = end[rank]};
        double const passed = static_cast<double>(end[rank].at_ns - start[rank].at_ns);
        double const error =
            1e9 * static_cast<double>(start[rank].bound_ns + end[rank].bound_ns) / passed;
        BOOST_TEST(std::abs(read.drift_ppb() + fast / (1 + fast * 1e-9)) <= error + 100);
        BOOST_TEST(error < fast / 4);
    }
}
