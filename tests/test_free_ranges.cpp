#define BOOST_TEST_MODULE free_ranges
#include <boost/test/unit_test.hpp>
#include <cstddef>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "cuda/free_ranges.hpp"

using namespace cpstep;

BOOST_AUTO_TEST_CASE(takes_the_lowest_range_that_is_long_enough) {
    FreeRanges ranges(100);
    BOOST_TEST(ranges.take(30).value() == 0U);
    BOOST_TEST(ranges.take(30).value() == 30U);
    BOOST_TEST(ranges.take(40).value() == 60U);
    BOOST_TEST(!ranges.take(1).has_value());
    ranges.give(0, 30);
    ranges.give(60, 40);
    BOOST_TEST(ranges.take(35).value() == 60U);
    BOOST_TEST(ranges.take(5).value() == 0U);
    BOOST_TEST(!ranges.take(26).has_value());
    BOOST_TEST(ranges.take(25).value() == 5U);
}

BOOST_AUTO_TEST_CASE(neighbours_become_one_range_whatever_the_order_of_return) {
    for (std::vector<std::size_t> const& order :
         {std::vector<std::size_t>{0, 10, 20}, {20, 10, 0}, {0, 20, 10}, {10, 20, 0}}) {
        FreeRanges ranges(30);
        for (int i = 0; i < 3; ++i) {
            BOOST_REQUIRE(ranges.take(10).has_value());
        }
        for (std::size_t const offset : order) {
            ranges.give(offset, 10);
        }
        BOOST_TEST(ranges.take(30).value() == 0U);
    }
}

BOOST_AUTO_TEST_CASE(an_empty_block_has_nothing_to_give) {
    BOOST_TEST(!FreeRanges(0).take(1).has_value());
}

BOOST_AUTO_TEST_CASE(random_pieces_never_overlap_and_all_come_back) {
    constexpr std::size_t size = 1000;
    FreeRanges ranges(size);
    std::vector<bool> taken(size, false);
    std::vector<std::pair<std::size_t, std::size_t>> pieces;
    std::mt19937 engine(1);
    auto const mark = [&](std::size_t offset, std::size_t bytes, bool value) {
        for (std::size_t i = offset; i < offset + bytes; ++i) {
            BOOST_REQUIRE(taken[i] != value);
            taken[i] = value;
        }
    };
    auto const give = [&](std::size_t which) {
        auto const [offset, bytes] = pieces[which];
        ranges.give(offset, bytes);
        mark(offset, bytes, false);
        pieces[which] = pieces.back();
        pieces.pop_back();
    };
    for (int round = 0; round < 2000; ++round) {
        std::size_t const bytes = 1 + engine() % 60;
        auto const offset = engine() % 2 == 0 ? ranges.take(bytes) : std::nullopt;
        if (offset) {
            mark(*offset, bytes, true);
            pieces.emplace_back(*offset, bytes);
        } else if (!pieces.empty()) {
            give(engine() % pieces.size());
        }
    }
    while (!pieces.empty()) {
        give(0);
    }
    BOOST_TEST(ranges.take(size).value() == 0U);
}
