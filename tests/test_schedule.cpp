#define BOOST_TEST_MODULE schedule
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <numeric>
#include <random>

#include "app/schedule.hpp"
#include "cuda/error.hpp"

using namespace cpstep;

namespace {

using Bins = std::vector<std::vector<std::int64_t>>;
std::vector<std::int64_t> const worked = {1124, 812, 640, 1100, 300, 960, 480, 1050};

std::vector<std::int64_t> random_lengths(std::mt19937& engine, std::int64_t count,
                                         std::int64_t longest) {
    std::vector<std::int64_t> lengths(static_cast<std::size_t>(count));
    std::uniform_int_distribution<std::int64_t> length(1, longest);
    std::generate(lengths.begin(), lengths.end(), [&] { return length(engine); });
    return lengths;
}

std::int64_t tokens(std::vector<std::int64_t> const& bin,
                    std::vector<std::int64_t> const& lengths) {
    return std::accumulate(bin.begin(), bin.end(), std::int64_t{0},
                           [&](std::int64_t sum, std::int64_t j) { return sum + lengths[j]; });
}

bool each_sample_once(Schedule const& schedule, std::size_t samples) {
    std::vector<int> seen(samples, 0);
    for (Bins const& rank : schedule) {
        for (std::vector<std::int64_t> const& bin : rank) {
            for (std::int64_t const sample : bin) {
                ++seen.at(sample);
            }
        }
    }
    return std::all_of(seen.begin(), seen.end(), [](int count) { return count == 1; });
}

// Same number of micro-batches on all ranks, none of them empty.
bool even(Schedule const& schedule) {
    return std::all_of(schedule.begin(), schedule.end(), [&](Bins const& rank) {
        return rank.size() == schedule.front().size() && !rank.empty() &&
               std::none_of(rank.begin(), rank.end(), [](auto const& bin) { return bin.empty(); });
    });
}

bool capped(Schedule const& schedule, std::vector<std::int64_t> const& lengths,
            std::int64_t capacity) {
    return std::all_of(schedule.begin(), schedule.end(), [&](Bins const& rank) {
        return std::all_of(rank.begin(), rank.end(), [&](auto const& bin) {
            return bin.size() == 1 || tokens(bin, lengths) <= capacity;
        });
    });
}

std::string message(std::vector<std::int64_t> const& lengths, ScheduleOptions const& options) {
    try {
        make_schedule(lengths, {}, options);
    } catch (Error const& error) {
        BOOST_TEST((error.code() == ExitCode::usage));
        return error.what();
    }
    return {};
}

}  // namespace

BOOST_AUTO_TEST_CASE(the_worked_example_on_two_data_ranks) {
    ScheduleOptions const options{.dp_size = 2, .dynamic = true, .max_tokens_per_gpu = 2048};
    Schedule const schedule = make_schedule(worked, {}, options);
    BOOST_TEST((schedule == Schedule{{{0, 1}, {5, 6}}, {{2, 3, 4}, {7}}}));
    BOOST_TEST(tokens(schedule[0][0], worked) == 1936);
    BOOST_TEST(tokens(schedule[0][1], worked) == 1440);
    BOOST_TEST(tokens(schedule[1][0], worked) == 2040);
    BOOST_TEST(tokens(schedule[1][1], worked) == 1050);
}

BOOST_AUTO_TEST_CASE(the_worked_example_on_two_context_ranks) {
    ScheduleOptions const options{.cp_size = 2, .dynamic = true, .max_tokens_per_gpu = 2048};
    Schedule const schedule = make_schedule(worked, {}, options);
    BOOST_TEST((schedule == Schedule{{{0, 1, 2, 3, 4}, {5, 6, 7}}}));
    BOOST_TEST(tokens(schedule[0][0], worked) == 3976);
    BOOST_TEST(tokens(schedule[0][1], worked) == 2490);
}

BOOST_AUTO_TEST_CASE(the_heaviest_bin_is_halved_into_lighter_halves) {
    // First fit at 90: {0,1,2} of 90 and {3,4} of 90; the tie goes to the higher index.
    ScheduleOptions options{.dp_size = 3, .dynamic = true, .max_tokens_per_gpu = 90};
    std::vector<std::int64_t> const lengths = {30, 20, 40, 80, 10};
    BOOST_TEST((make_schedule(lengths, {}, options) == Schedule{{{0, 1, 2}}, {{3}}, {{4}}}));
    // Then {0,1,2}: 40 to the first half, 30 and 20 to the second.
    options.dp_size = 4;
    BOOST_TEST((make_schedule(lengths, {}, options) == Schedule{{{2}}, {{3}}, {{4}}, {{0, 1}}}));
}

BOOST_AUTO_TEST_CASE(dynamic_batches_are_even_complete_and_capped) {
    std::mt19937 engine(7);
    for (int trial = 0; trial < 400; ++trial) {
        ScheduleOptions options{.dp_size = 1 + trial % 5,
                                .cp_size = 1 + trial % 3,
                                .dynamic = true,
                                .max_tokens_per_gpu = 1 + static_cast<int>(engine() % 300),
                                .balance = trial % 2 == 1};
        // A multiple of DP can always be dealt, whatever the lengths.
        std::vector<std::int64_t> const lengths =
            random_lengths(engine, options.dp_size * (1 + engine() % 12), 400);
        std::vector<double> const costs(lengths.begin(), lengths.end());
        Schedule const schedule = make_schedule(lengths, costs, options);
        BOOST_TEST(schedule.size() == static_cast<std::size_t>(options.dp_size));
        BOOST_TEST(each_sample_once(schedule, lengths.size()));
        BOOST_TEST(even(schedule));
        BOOST_TEST(capped(schedule, lengths, options.max_tokens_per_gpu * options.cp_size));
    }
}

BOOST_AUTO_TEST_CASE(the_property_checks_see_a_bad_schedule) {
    std::vector<std::int64_t> const lengths = {5, 6, 7};
    BOOST_TEST(!each_sample_once({{{0, 1}}}, 3));
    BOOST_TEST(!each_sample_once({{{0, 1}, {1, 2}}}, 3));
    BOOST_TEST(!even({{{0}, {1}}, {{2}}}));
    BOOST_TEST(!even({{{0}}, {{}}}));
    BOOST_TEST(!capped({{{0, 1}}}, lengths, 10));
    BOOST_TEST(capped({{{2}}}, lengths, 1));
}

BOOST_AUTO_TEST_CASE(static_batches_are_contiguous_equal_shares) {
    std::vector<std::int64_t> const lengths(10, 100);
    BOOST_TEST((make_schedule(lengths, {}, {.dp_size = 2, .micro_batch_size = 2}) ==
                Schedule{{{0, 1}, {2, 3}, {4}}, {{5, 6}, {7, 8}, {9}}}));
    BOOST_TEST((make_schedule(lengths, {}, {.dp_size = 1, .micro_batch_size = 100}) ==
                Schedule{{{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}}}));
}

BOOST_AUTO_TEST_CASE(balancing_evens_the_cost_and_keeps_the_counts) {
    // Strided dealing would give rank 0 all the long samples.
    std::vector<std::int64_t> const lengths = {90, 10, 80, 20, 70, 30, 60, 40};
    std::vector<double> const costs(lengths.begin(), lengths.end());
    ScheduleOptions options{
        .dp_size = 2, .dynamic = true, .max_tokens_per_gpu = 1, .balance = true};
    auto const load = [&](Bins const& rank) {
        std::int64_t sum = 0;
        for (auto const& bin : rank) {
            sum += tokens(bin, lengths);
        }
        return sum;
    };
    Schedule const schedule = make_schedule(lengths, costs, options);
    BOOST_TEST(even(schedule));
    BOOST_TEST(each_sample_once(schedule, lengths.size()));
    BOOST_TEST(load(schedule[0]) == load(schedule[1]));
    options.balance = false;
    Schedule const plain = make_schedule(lengths, {}, options);
    BOOST_TEST(load(plain[0]) - load(plain[1]) == 200);
}

BOOST_AUTO_TEST_CASE(differencing_balances_and_is_a_partition) {
    std::vector<double> const weights = {8, 7, 6, 5, 4};
    // The textbook example: differencing ends at a difference of 2 ({8,6} and {7,5,4}).
    Bins const parts = karmarkar_karp(weights, 2, false);
    BOOST_TEST((parts == Bins{{1, 3, 4}, {0, 2}} || parts == Bins{{0, 2}, {1, 3, 4}}));

    std::mt19937 engine(11);
    for (int trial = 0; trial < 200; ++trial) {
        int const k = 1 + trial % 7;
        std::vector<std::int64_t> const lengths =
            random_lengths(engine, k * (1 + static_cast<int>(engine() % 9)), 20);
        std::vector<double> const costs(lengths.begin(), lengths.end());
        for (bool const equal_size : {false, true}) {
            Bins const sets = karmarkar_karp(costs, k, equal_size);
            BOOST_TEST(sets.size() == static_cast<std::size_t>(k));
            BOOST_TEST(each_sample_once({sets}, lengths.size()));
            for (auto const& set : sets) {
                BOOST_TEST(std::is_sorted(set.begin(), set.end()));
                BOOST_TEST((!equal_size || set.size() * k == lengths.size()));
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(equal_weights_are_dealt_the_same_way_every_time) {
    std::vector<double> const weights(12, 1.0);
    BOOST_TEST((karmarkar_karp(weights, 3, true) == karmarkar_karp(weights, 3, true)));
    BOOST_TEST(karmarkar_karp({}, 3, true).size() == 3u);
    BOOST_CHECK_THROW(karmarkar_karp(weights, 5, true), Error);
    BOOST_CHECK_THROW(karmarkar_karp(std::vector<double>{1.0, NAN}, 2, true), Error);
}

BOOST_AUTO_TEST_CASE(errors_name_the_setting_to_change) {
    BOOST_TEST(message({5, 6}, {.dp_size = 4}).find("--global-batch-size") != std::string::npos);
    BOOST_TEST(message({5, 6, 7}, {.dp_size = 2}).find("multiple of 2") != std::string::npos);
    BOOST_TEST(message({5, 6, 7}, {.dp_size = 2, .dynamic = true, .max_tokens_per_gpu = 1})
                   .find("multiple of 2") != std::string::npos);
    BOOST_TEST(message({5, 6}, {.dynamic = true}).find("--max-tokens-per-gpu") !=
               std::string::npos);
    BOOST_TEST(message({5, 6}, {.micro_batch_size = 0}).find("--micro-batch-size") !=
               std::string::npos);
    BOOST_TEST(message({}, {}).find("samples") != std::string::npos);
}
