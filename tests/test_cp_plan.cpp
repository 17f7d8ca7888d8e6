#define BOOST_TEST_MODULE cp_plan
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <numeric>

#include "app/cp_plan.hpp"
#include "app/layout.hpp"
#include "cuda/error.hpp"

using namespace cpstep;

namespace {

// Where a row of a packed local stream lies: sequence and position.
struct Place {
    std::size_t sequence;
    std::int64_t position;
};

std::vector<Place> places(std::vector<std::int64_t> const& lengths, int cp_size, int rank) {
    std::vector<Place> result;
    for (std::size_t j = 0; j < lengths.size(); ++j) {
        for (PositionRange const& range : owned_ranges(lengths[j], {.ranks = cp_size}, rank)) {
            for (std::int64_t t = range.begin; t < range.end; ++t) {
                result.push_back({j, t});
            }
        }
    }
    return result;
}

// Counts how often each (query, key) of each sequence is computed; pairs across sequences are
// `strays`.
struct Coverage {
    std::vector<std::vector<std::uint8_t>> counts;  // sequence -> T x T
    std::int64_t strays = 0;

    explicit Coverage(std::vector<std::int64_t> const& lengths) {
        for (std::int64_t const length : lengths) {
            counts.emplace_back(static_cast<std::size_t>(length * length), std::uint8_t{0});
        }
    }

    void add(Segment const& segment, std::vector<Place> const& queries,
             std::vector<Place> const& keys, std::vector<std::int64_t> const& lengths) {
        for (std::int64_t i = 0; i < segment.q_rows; ++i) {
            Place const query = queries.at(segment.q_row + i);
            for (std::int64_t k = 0; k < visible_keys(segment, i); ++k) {
                Place const key = keys.at(segment.kv_row + k);
                if (key.sequence == query.sequence) {
                    ++counts[query.sequence]
                            [query.position * lengths[query.sequence] + key.position];
                } else {
                    ++strays;
                }
            }
        }
    }

    bool causal_exactly_once(std::vector<std::int64_t> const& lengths) const {
        for (std::size_t j = 0; j < lengths.size(); ++j) {
            for (std::int64_t t = 0; t < lengths[j]; ++t) {
                for (std::int64_t k = 0; k < lengths[j]; ++k) {
                    if (counts[j][t * lengths[j] + k] != (k <= t ? 1 : 0)) {
                        return false;
                    }
                }
            }
        }
        return strays == 0;
    }
};

Coverage coverage(std::vector<std::int64_t> const& lengths, int cp_size) {
    Coverage result(lengths);
    std::vector<std::vector<Place>> by_rank;
    for (int rank = 0; rank < cp_size; ++rank) {
        by_rank.push_back(places(lengths, cp_size, rank));
    }
    for (int rank = 0; rank < cp_size; ++rank) {
        for (RingStep const& step : make_ring_plan(lengths, cp_size, rank).steps) {
            for (Segment const& segment : step.segments) {
                result.add(segment, by_rank[rank], by_rank[step.owner], lengths);
            }
        }
    }
    return result;
}

std::int64_t area(RingStep const& step) {
    std::int64_t pairs = 0;
    for (Segment const& segment : step.segments) {
        for (std::int64_t i = 0; i < segment.q_rows; ++i) {
            pairs += visible_keys(segment, i);
        }
    }
    return pairs;
}

}  // namespace

BOOST_AUTO_TEST_CASE(every_causal_pair_is_computed_exactly_once) {
    std::vector<std::int64_t> const short_lengths = {1, 2, 3, 5, 7, 1, 8, 13, 16, 31};
    for (int cp_size = 1; cp_size <= 64; ++cp_size) {
        std::vector<std::int64_t> lengths = short_lengths;
        lengths.insert(lengths.end(), {2 * cp_size - 1, 2 * cp_size, 2 * cp_size + 1, 4 * cp_size});
        BOOST_TEST(coverage(lengths, cp_size).causal_exactly_once(lengths), "CP " << cp_size);
    }
}

BOOST_AUTO_TEST_CASE(a_single_sequence_of_any_length_is_covered) {
    for (int const cp_size : {1, 2, 3, 4, 5, 8}) {
        for (std::int64_t length = 1; length <= 60; ++length) {
            std::vector<std::int64_t> const lengths = {length};
            BOOST_TEST(coverage(lengths, cp_size).causal_exactly_once(lengths),
                       "CP " << cp_size << " T " << length);
        }
    }
}

BOOST_AUTO_TEST_CASE(the_coverage_check_sees_a_missing_and_a_doubled_pair) {
    std::vector<std::int64_t> const lengths = {6};
    Coverage checked = coverage(lengths, 2);
    BOOST_TEST_REQUIRE(checked.causal_exactly_once(lengths));
    checked.counts[0][0] = 0;
    BOOST_TEST(!checked.causal_exactly_once(lengths));
    checked.counts[0][0] = 2;
    BOOST_TEST(!checked.causal_exactly_once(lengths));
    checked.counts[0][0] = 1;
    checked.counts[0][1] = 1;  // query 0 on key 1
    BOOST_TEST(!checked.causal_exactly_once(lengths));
}

BOOST_AUTO_TEST_CASE(owners_go_down_the_ring_from_the_own_block) {
    std::vector<std::int64_t> const lengths = {40, 3};
    for (int const cp_size : {1, 2, 3, 4, 64}) {
        for (int rank = 0; rank < cp_size; ++rank) {
            RingPlan const plan = make_ring_plan(lengths, cp_size, rank);
            BOOST_TEST(plan.cp_size == cp_size);
            BOOST_TEST(plan.cp_rank == rank);
            BOOST_TEST_REQUIRE(plan.steps.size() == static_cast<std::size_t>(cp_size));
            for (int i = 0; i < cp_size; ++i) {
                BOOST_TEST(plan.steps[i].owner == ((rank - i) % cp_size + cp_size) % cp_size);
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(work_is_equal_on_all_ranks_when_the_length_divides) {
    for (int const cp_size : {1, 2, 3, 4, 8, 64}) {
        std::int64_t const chunk = 3;
        std::vector<std::int64_t> const lengths = {2 * cp_size * chunk, 2 * cp_size * chunk};
        for (int rank = 0; rank < cp_size; ++rank) {
            RingPlan const plan = make_ring_plan(lengths, cp_size, rank);
            BOOST_TEST(area(plan.steps[0]) == 2 * chunk * (2 * chunk + 1));
            for (int i = 1; i < cp_size; ++i) {
                BOOST_TEST(area(plan.steps[i]) == 2 * 2 * chunk * chunk);
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(blocks_hold_each_rank_rows_and_sum_to_the_lengths) {
    std::vector<std::int64_t> const lengths = {11, 1, 40, 5};
    RingPlan const plan = make_ring_plan(lengths, 4, 1);
    BOOST_TEST_REQUIRE(plan.block_rows.size() == 4u);
    for (int rank = 0; rank < 4; ++rank) {
        BOOST_TEST(plan.block_rows[rank] ==
                   static_cast<std::int64_t>(places(lengths, 4, rank).size()));
    }
    BOOST_TEST(std::accumulate(plan.block_rows.begin(), plan.block_rows.end(), std::int64_t{0}) ==
               57);
}

BOOST_AUTO_TEST_CASE(a_query_row_is_in_one_segment_of_a_step_and_no_segment_is_empty) {
    std::vector<std::int64_t> const lengths = {1, 9, 2, 30, 1};
    for (int const cp_size : {1, 2, 3, 7}) {
        for (int rank = 0; rank < cp_size; ++rank) {
            RingPlan const plan = make_ring_plan(lengths, cp_size, rank);
            for (RingStep const& step : plan.steps) {
                std::int64_t next_row = 0;
                for (Segment const& segment : step.segments) {
                    BOOST_TEST(segment.q_rows > 0);
                    BOOST_TEST(segment.kv_rows > 0);
                    BOOST_TEST(segment.q_row >= next_row);
                    next_row = segment.q_row + segment.q_rows;
                    BOOST_TEST(segment.kv_row + segment.kv_rows <= plan.block_rows[step.owner]);
                }
                BOOST_TEST(next_row <= plan.block_rows[rank]);
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(two_ranks_have_the_documented_segments) {
    std::vector<std::int64_t> const lengths = {8};
    RingPlan const first = make_ring_plan(lengths, 2, 0);
    RingPlan const second = make_ring_plan(lengths, 2, 1);
    BOOST_TEST((first.steps[0].segments == std::vector<Segment>{{0, 4, 0, 4, 0}}));
    BOOST_TEST((first.steps[1].segments == std::vector<Segment>{{2, 2, 0, 4, 3}}));
    BOOST_TEST((second.steps[1].segments == std::vector<Segment>{{0, 4, 0, 2, 1}}));
}

BOOST_AUTO_TEST_CASE(an_empty_micro_batch_still_has_every_step) {
    RingPlan const plan = make_ring_plan({}, 3, 2);
    BOOST_TEST(plan.steps.size() == 3u);
    BOOST_TEST(plan.block_rows.at(2) == 0);
    BOOST_CHECK_THROW(make_ring_plan({}, 3, 3), Error);
}
