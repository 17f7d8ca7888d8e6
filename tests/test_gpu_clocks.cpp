#define BOOST_TEST_MODULE gpu_clocks
#include <fmt/format.h>

#include "app/gpu_clocks.hpp"
#include "errors.hpp"
#include "mpi_test_main.hpp"

using namespace cpstep;
using cpstep::test::contains;
using cpstep::test::test_world;

namespace {

constexpr char const* bus = "0000:1B:00.0";
constexpr std::int64_t idle = 0x1;

}  // namespace

BOOST_AUTO_TEST_CASE(looks_of_a_block_are_joined_and_blocks_are_kept_apart) {
    ClockWatch watch(bus, CPSTEP_FAKE_NVML);
    for (int const block : {0, 0, 1}) {
        watch.look(block);
    }
    BOOST_TEST(watch.why().empty(), watch.why());
    BOOST_REQUIRE(watch.blocks().size() == 2);
    for (int const block : {0, 1}) {
        BlockClock const& clock = watch.blocks()[static_cast<std::size_t>(block)];
        BOOST_TEST(clock.block == block);
        BOOST_TEST(clock.reasons == 0x48);
        BOOST_TEST(clock.lowest_mhz == (block == 0 ? 1395 : 1410));  // the second look finds less
        BOOST_TEST(clock.highest_c == 0);                            // this library has no sensor
    }
}

BOOST_AUTO_TEST_CASE(a_gpu_that_cannot_be_looked_at_says_why) {
    ClockWatch other("0000:2B:00.0", CPSTEP_FAKE_NVML);
    other.look(0);
    BOOST_TEST(other.blocks().empty());
    BOOST_TEST(contains(other.why(), "Not Found"));
    ClockWatch none(bus, "libno-such-nvml.so.1");
    none.look(0);
    BOOST_TEST(contains(none.why(), "no NVIDIA driver"));
}

BOOST_AUTO_TEST_CASE(every_rank_has_the_blocks_of_all_ranks) {
    World& world = test_world();
    int const own = world.rank();
    std::vector<BlockClock> blocks;
    for (int block = 0; block < own; ++block) {  // rank 0 has none
        blocks.push_back(
            {.block = block, .reasons = own, .lowest_mhz = 100 * own, .highest_c = 40});
    }
    auto const all = gather_clocks(world, blocks);
    std::size_t i = 0;
    for (int rank = 0; rank < world.size(); ++rank) {
        for (int block = 0; block < rank; ++block, ++i) {
            BOOST_REQUIRE(i < all.size());
            BOOST_TEST(all[i].rank == rank);
            BOOST_TEST(all[i].block == block);
            BOOST_TEST(all[i].reasons == rank);
            BOOST_TEST(all[i].lowest_mhz == 100 * rank);
            BOOST_TEST(all[i].highest_c == 40);
        }
    }
    BOOST_TEST(all.size() == i);
}

BOOST_AUTO_TEST_CASE(ranks_whose_gpu_could_not_be_looked_at_are_counted) {
    World& world = test_world();
    BOOST_TEST(unwatched_note(world, "").empty());
    int const last = world.size() - 1;
    std::string const note = unwatched_note(world, world.rank() == last ? "no right to ask" : "");
    if (world.root()) {
        BOOST_TEST(note == fmt::format("looks at the GPU's clock failed on 1 of {} ranks, the "
                                       "first of them {}: no right to ask",
                                       world.size(), last));
    }
}

BOOST_AUTO_TEST_CASE(a_power_limit_is_told_and_does_not_count_as_slowed) {
    using namespace clock_reason;
    std::vector<BlockClock> const clocks{{0, 0, idle, 1980, 60},
                                         {0, 1, software_power_cap, 1700, 61},
                                         {1, 0, idle, 1980, 60},
                                         {1, 1, hardware_thermal, 1410, 88},
                                         {1, 3, hardware_thermal | power_brake, 1200, 87}};
    BOOST_TEST((slowed_blocks(clocks) == std::set<int>{1, 3}));
    auto const notes = clock_notes(clocks);
    BOOST_REQUIRE(notes.size() == 2);
    BOOST_TEST(notes[0] ==
               "the GPU of rank 0 was held down (power limit) in block 1, to 1700 MHz, at 61 C");
    BOOST_TEST(
        notes[1] ==
        "the GPU of rank 1 was held down (too hot, power brake) in blocks 1, 3, to 1200 MHz, "
        "at 88 C");
    BOOST_TEST(clock_notes({{0, 0, idle, 1980, 60}}).empty());
}

BOOST_AUTO_TEST_CASE(many_slow_gpus_take_five_lines) {
    std::vector<BlockClock> clocks;
    for (int rank = 0; rank < 1024; ++rank) {
        clocks.push_back({.rank = rank, .block = 2, .reasons = clock_reason::hardware_slowdown});
    }
    auto const notes = clock_notes(clocks);
    BOOST_REQUIRE(notes.size() == 5);
    BOOST_TEST(notes[0] == "the GPU of rank 0 was held down (hardware slowdown) in block 2");
    BOOST_TEST(notes[4] == "so were the GPUs of 1020 more ranks");
}
