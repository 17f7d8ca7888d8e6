#define BOOST_TEST_MODULE world
#include <numeric>
#include <thread>

#include "tests/errors.hpp"
#include "tests/mpi_test_main.hpp"

using namespace cpstep;
using cpstep::test::contains;
using cpstep::test::error_of;
using cpstep::test::test_world;
using namespace std::chrono_literals;

BOOST_AUTO_TEST_CASE(ranks_are_numbered_below_the_size) {
    World& world = test_world();
    std::vector<std::string> const ranks = world.gather(std::to_string(world.rank()));
    BOOST_REQUIRE_EQUAL(ranks.size(), static_cast<std::size_t>(world.size()));
    for (int r = 0; r < world.size(); ++r) {
        BOOST_TEST(ranks[static_cast<std::size_t>(r)] == std::to_string(r));
    }
    BOOST_TEST(world.root() == (world.rank() == 0));
    BOOST_TEST(!world.host().empty());
}

BOOST_AUTO_TEST_CASE(local_rank_counts_the_ranks_of_this_host_below_mine) {
    World& world = test_world();
    std::vector<std::string> const hosts = world.gather(world.host());
    int below = 0;
    int here = 0;
    for (int r = 0; r < world.size(); ++r) {
        bool const same = hosts[static_cast<std::size_t>(r)] == world.host();
        here += same ? 1 : 0;
        below += same && r < world.rank() ? 1 : 0;
    }
    BOOST_TEST(world.local_rank() == below);
    BOOST_TEST(world.local_size() == here);
}

BOOST_AUTO_TEST_CASE(the_library_version_is_one_line) {
    std::string const version = World::mpi_version();
    BOOST_TEST(!version.empty());
    BOOST_TEST(!contains(version, "\n"));
}

BOOST_AUTO_TEST_CASE(gather_keeps_empty_and_unequal_texts_with_null_bytes) {
    World& world = test_world();
    auto const text_of = [](int rank) {
        return std::string(static_cast<std::size_t>(3 * rank), '\0');
    };
    std::vector<std::string> const texts = world.gather(text_of(world.rank()));
    for (int r = 0; r < world.size(); ++r) {
        BOOST_TEST(texts[static_cast<std::size_t>(r)] == text_of(r));
    }
}

BOOST_AUTO_TEST_CASE(broadcast_gives_the_text_of_rank_0) {
    World& world = test_world();
    BOOST_TEST(world.broadcast(world.root() ? "from zero" : "mine") == "from zero");
    BOOST_TEST(world.broadcast(world.root() ? "" : "mine").empty());
}

BOOST_AUTO_TEST_CASE(max_is_the_largest_of_any_rank_even_if_all_are_negative) {
    World& world = test_world();
    BOOST_TEST(world.max(-1.0 - world.rank()) == -1.0);
    BOOST_TEST(world.max(world.rank()) == world.size() - 1);
}

BOOST_AUTO_TEST_CASE(sum_adds_each_element_over_the_ranks) {
    World& world = test_world();
    int const n = world.size();
    std::vector<double> values{1.0, static_cast<double>(world.rank()), -0.5};
    world.sum(values);
    BOOST_TEST(values[0] == n);
    BOOST_TEST(values[1] == n * (n - 1) / 2);
    BOOST_TEST(values[2] == -0.5 * n);
    world.sum({});
}

BOOST_AUTO_TEST_CASE(no_rank_leaves_a_barrier_before_the_last_enters) {
    World& world = test_world();
    if (world.local_size() < world.size()) {
        return;  // the clocks of two hosts cannot be compared
    }
    std::this_thread::sleep_for(50ms * world.rank());
    auto const entered = static_cast<double>(now_ns());
    world.barrier();
    auto const left = static_cast<double>(now_ns());
    BOOST_TEST(left >= world.max(entered));
}

BOOST_AUTO_TEST_CASE(a_barrier_without_a_peer_times_out) {
    World& world = test_world();
    if (world.size() == 1) {
        return;
    }
    std::vector<int> ranks(static_cast<std::size_t>(world.size()));
    std::iota(ranks.begin(), ranks.end(), 0);
    auto const aside = world.make_host_comm(ranks);
    float gave_up = 0.0F;
    auto const patience = world.deadline();
    if (!world.root()) {
        world.set_deadline(200ms);
        Error const error = error_of([&] { world.barrier(); });
        world.set_deadline(patience);
        BOOST_TEST((error.code() == ExitCode::communication));
        BOOST_TEST(contains(error.what(), "timed out after 0.2 s waiting for a barrier"));
        gave_up = 1.0F;
    }
    // Rank 0 enters once all others gave up, so that the abandoned barrier still ends.
    aside->all_reduce_sum("gave up", {&gave_up, DType::f32, 1, 1, 1});
    BOOST_TEST(gave_up == static_cast<float>(world.size() - 1));
    if (world.root()) {
        world.barrier();
    }
    world.barrier();
}

BOOST_AUTO_TEST_CASE(work_that_succeeds_everywhere_throws_nothing) {
    int ran = 0;
    test_world().collectively([&] { ++ran; });
    BOOST_TEST(ran == 1);
}

BOOST_AUTO_TEST_CASE(one_failing_rank_gives_every_rank_its_error) {
    World& world = test_world();
    int const failing = world.size() - 1;
    Error const error = error_of([&] {
        world.collectively([&] {
            require(world.rank() != failing, ExitCode::input_data, "file {} is short", failing);
        });
    });
    std::string const host = world.gather(world.host())[static_cast<std::size_t>(failing)];
    std::string const prefix = world.size() == 1 ? "" : fmt::format("[rank {} {}] ", failing, host);
    BOOST_TEST(error.what() == fmt::format("{}file {} is short", prefix, failing));
    BOOST_TEST((error.code() == ExitCode::input_data));
}

BOOST_AUTO_TEST_CASE(the_lowest_failing_rank_speaks_for_all) {
    World& world = test_world();
    if (world.size() < 3) {
        return;
    }
    Error const error = error_of([&] {
        world.collectively([&] {
            require(world.rank() == 0, world.rank() == 1 ? ExitCode::usage : ExitCode::output,
                    "from rank {}", world.rank());
        });
    });
    BOOST_TEST(contains(error.what(), "[rank 1 "));
    BOOST_TEST(contains(error.what(), "] from rank 1"));
    BOOST_TEST((error.code() == ExitCode::usage));
}

BOOST_AUTO_TEST_CASE(ranks_that_fail_alike_give_the_bare_text) {
    Error const error =
        error_of([] { test_world().collectively([] { fail(ExitCode::environment, "no disk"); }); });
    BOOST_TEST(error.what() == std::string("no disk"));
    BOOST_TEST((error.code() == ExitCode::environment));
}

BOOST_AUTO_TEST_CASE(any_standard_exception_becomes_an_internal_error) {
    Error const error =
        error_of([] { test_world().collectively([] { throw std::out_of_range("index 7"); }); });
    BOOST_TEST(error.what() == std::string("index 7"));
    BOOST_TEST((error.code() == ExitCode::internal));
}

BOOST_AUTO_TEST_CASE(a_failure_known_to_all_ranks_is_told_apart_from_a_rank_s_own) {
    World& world = test_world();
    auto const one_fails = [&] { require(!world.root(), ExitCode::usage, "no"); };
    auto const all_fail = [] { fail(ExitCode::usage, "no"); };
    BOOST_CHECK_THROW(world.collectively(one_fails), AgreedError);
    BOOST_CHECK_THROW(world.collectively(all_fail), AgreedError);
}

BOOST_AUTO_TEST_CASE(a_group_without_this_rank_is_refused) {
    World& world = test_world();
    Error const error = error_of([&] { (void)world.make_host_comm({world.rank() + 1}); });
    BOOST_TEST((error.code() == ExitCode::internal));
}
