#define BOOST_TEST_MODULE layout
#include <algorithm>
#include <boost/test/unit_test.hpp>

#include "app/layout.hpp"
#include "cuda/error.hpp"

using cpstep::owned_ranges;
using cpstep::owned_rows;
using cpstep::PositionRange;

namespace {

// Rows of `range` whose logits predict a response token: its part of [P-1, T-1), {} if there is
// none.
PositionRange response_rows(PositionRange range, std::int64_t length, std::int64_t response) {
    PositionRange const rows{std::max(range.begin, length - response - 1),
                             std::min(range.end, length - 1)};
    return rows.begin < rows.end ? rows : PositionRange{};
}

struct Expected {
    std::int64_t length, response;
    int cp_size;
    std::int64_t chunk_rows;
    int cp_rank;
    PositionRange low, high;
};

}  // namespace

BOOST_AUTO_TEST_CASE(response_rows_match_the_table_of_the_trainer) {
    PositionRange const none{};
    std::vector<Expected> const table = {
        {11, 6, 2, 3, 0, none, {9, 10}},
        {11, 6, 2, 3, 1, {4, 6}, {6, 9}},
        {8, 4, 2, 2, 0, none, {6, 7}},
        {8, 4, 2, 2, 1, {3, 4}, {4, 6}},
        {3, 2, 2, 1, 0, {0, 1}, none},
        {3, 2, 2, 1, 1, {1, 2}, none},
        {5, 1, 2, 2, 0, none, none},
        {5, 1, 2, 2, 1, {3, 4}, none},
        {256, 16, 2, 64, 0, none, {239, 255}},
        {256, 16, 2, 64, 1, none, none},
        {1100, 1024, 2, 275, 0, {75, 275}, {825, 1099}},
        {1100, 1024, 2, 275, 1, {275, 550}, {550, 825}},
        {2, 1, 4, 1, 0, {0, 1}, none},
        {2, 1, 4, 1, 1, none, none},
        {2, 1, 4, 1, 2, none, none},
        {2, 1, 4, 1, 3, none, none},
        {40, 12, 4, 5, 0, none, {35, 39}},
        {40, 12, 4, 5, 1, none, {30, 35}},
        {40, 12, 4, 5, 2, none, {27, 30}},
        {40, 12, 4, 5, 3, none, none},
    };
    for (Expected const& row : table) {
        BOOST_TEST_CONTEXT("T=" << row.length << " R=" << row.response << " C=" << row.cp_size
                                << " rank=" << row.cp_rank) {
            std::vector<PositionRange> const ranges =
                owned_ranges(row.length, {.ranks = row.cp_size}, row.cp_rank);
            BOOST_TEST_REQUIRE(ranges.size() == 2u);
            BOOST_TEST(ranges[0].begin == std::min(row.cp_rank * row.chunk_rows, row.length));
            BOOST_TEST(ranges[0].size() <= row.chunk_rows);
            BOOST_TEST(ranges[1].size() <= row.chunk_rows);
            BOOST_TEST((response_rows(ranges[0], row.length, row.response) == row.low));
            BOOST_TEST((response_rows(ranges[1], row.length, row.response) == row.high));
        }
    }
}

BOOST_AUTO_TEST_CASE(ranks_own_every_position_exactly_once) {
    for (int cp_size = 1; cp_size <= 64; ++cp_size) {
        for (std::int64_t length = 0; length <= 300; ++length) {
            std::vector<int> owners(static_cast<std::size_t>(length), 0);
            std::int64_t rows = 0;
            bool in_order = true;
            for (int rank = 0; rank < cp_size; ++rank) {
                std::vector<PositionRange> const ranges =
                    owned_ranges(length, {.ranks = cp_size}, rank);
                in_order = in_order && ranges[0].begin <= ranges[0].end &&
                           ranges[0].end <= ranges[1].begin && ranges[1].begin <= ranges[1].end;
                for (PositionRange const& range : ranges) {
                    std::for_each(owners.begin() + range.begin, owners.begin() + range.end,
                                  [](int& count) { ++count; });
                }
                rows += owned_rows(length, {.ranks = cp_size}, rank);
            }
            bool const once =
                std::all_of(owners.begin(), owners.end(), [](int count) { return count == 1; });
            BOOST_TEST((once && in_order && rows == length), "T=" << length << " C=" << cp_size);
        }
    }
}

BOOST_AUTO_TEST_CASE(causal_area_is_equal_when_the_length_divides) {
    for (int cp_size = 1; cp_size <= 64; ++cp_size) {
        std::int64_t const length = 2 * std::int64_t{cp_size} * 3;
        for (int rank = 0; rank < cp_size; ++rank) {
            std::int64_t area = 0;
            for (PositionRange const& range : owned_ranges(length, {.ranks = cp_size}, rank)) {
                for (std::int64_t t = range.begin; t < range.end; ++t) {
                    area += t + 1;
                }
            }
            BOOST_TEST(area * cp_size == length * (length + 1) / 2);
        }
    }
}

BOOST_AUTO_TEST_CASE(a_rank_outside_its_group_is_an_error) {
    BOOST_CHECK_THROW(owned_ranges(8, {.ranks = 2}, 2), cpstep::Error);
    BOOST_CHECK_THROW(owned_ranges(8, {.ranks = 2}, -1), cpstep::Error);
    BOOST_CHECK_THROW(owned_ranges(8, {.ranks = 0}, 0), cpstep::Error);
    BOOST_CHECK_THROW(owned_ranges(-1, {.ranks = 2}, 0), cpstep::Error);
}
