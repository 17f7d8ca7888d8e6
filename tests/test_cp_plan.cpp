#define BOOST_TEST_MODULE cp_plan
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <numeric>

#include "app/cp_plan.hpp"
#include "cuda/error.hpp"
#include "tests/cases.hpp"

using namespace cpstep;
using cpstep::test::cp_configs;

namespace {

/// Where a row of a packed stream lies: sequence and position.
struct Place {
    std::size_t sequence;
    std::int64_t position;

    friend bool operator==(Place const&, Place const&) = default;
};

std::vector<Place> places(Block const& block) {
    std::vector<Place> result;
    for (std::size_t j = 0; j < block.sequences.size(); ++j) {
        for (PositionRange const& range : block.sequences[j]) {
            for (std::int64_t t = range.begin; t < range.end; ++t) {
                result.push_back({j, t});
            }
        }
    }
    return result;
}

/// Counts how often each (query, key) of each sequence is computed; pairs across sequences are
/// `strays`.
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

Split split_of(CpConfig const& config) {
    return {.layout = config.layout, .ranks = config.size, .group = config.a2a};
}

std::vector<Place> picked(std::vector<Place> const& from, std::vector<std::int32_t> const& rows) {
    std::vector<Place> result;
    for (std::int32_t const row : rows) {
        result.push_back(from.at(static_cast<std::size_t>(row)));
    }
    return result;
}

/// The streams of all ranks, one after another.
std::vector<Place> joined_places(std::vector<std::int64_t> const& lengths, Split split) {
    std::vector<Place> all;
    for (int rank = 0; rank < split.holders(); ++rank) {
        std::vector<Place> const own = places(make_block(lengths, split, rank));
        all.insert(all.end(), own.begin(), own.end());
    }
    return all;
}

/// All (query, key) pairs that the ranks compute for one head: of scattered heads, those of the
/// first rank of each group.
Coverage coverage(std::vector<std::int64_t> const& lengths, CpConfig const& config) {
    Coverage result(lengths);
    Split const split = split_of(config);
    for (int rank = 0; rank < config.size; rank += config.a2a) {
        CpPlan const plan = make_cp_plan(lengths, config, rank);
        auto const queries = places(make_block(lengths, split, rank / config.a2a));
        for (Segment const& segment : plan.gather.own) {
            result.add(segment, queries, queries, lengths);
        }
        std::vector<Place> const seen = picked(joined_places(lengths, split), plan.gather.seen);
        std::int64_t row = 0;
        for (GatherGap const& gap : plan.gather.gaps) {
            for (Segment segment : gap.segments) {
                segment.kv_row += row;
                result.add(segment, queries, seen, lengths);
            }
            row += gap.rows;
        }
        BOOST_REQUIRE_EQUAL(row, plan.gather.seen_rows());
        for (RingStep const& step : plan.ring.steps) {
            auto const keys = places(make_block(lengths, split, step.owner, step.chunks));
            for (Segment const& segment : step.segments) {
                result.add(segment, queries, keys, lengths);
            }
        }
    }
    return result;
}

std::string described(CpConfig const& config) {
    return fmt::format("CP {} {} {} a2a {}", config.size, name_of(config.method),
                       name_of(config.layout), config.a2a);
}

std::int64_t area(std::vector<Segment> const& segments) {
    std::int64_t pairs = 0;
    for (Segment const& segment : segments) {
        for (std::int64_t i = 0; i < segment.q_rows; ++i) {
            pairs += visible_keys(segment, i);
        }
    }
    return pairs;
}

/// The rings of all ranks.
struct Rings {
    Rings(std::vector<std::int64_t> const& lengths, CpLayout layout, int size)
        : split{.layout = layout, .ranks = size}, lengths_(lengths) {
        for (int rank = 0; rank < size; ++rank) {
            plans.push_back(make_ring_plan(lengths, split, rank));
        }
    }
    std::vector<Place> at_hand(RingStep const& step) const {
        return places(make_block(lengths_, split, step.owner, step.chunks));
    }
    /// Rows that go to the next rank after a step.
    std::vector<Place> passed(RingStep const& step) const {
        auto const all = at_hand(step);
        return step.pass_on == 0             ? std::vector<Place>()
               : step.pass_on == step.chunks ? all
                                             : picked(all, step.pass_rows);
    }

    Split split;
    std::vector<RingPlan> plans;

  private:
    std::vector<std::int64_t> lengths_;
};

std::vector<std::int64_t> const uneven = {1, 2, 3, 5, 7, 1, 8, 13, 16, 31};

}  // namespace

BOOST_AUTO_TEST_CASE(every_causal_pair_is_computed_exactly_once_by_every_method_of_cp_1_to_64) {
    for (int size = 1; size <= 64; ++size) {
        std::vector<std::int64_t> lengths = uneven;
        lengths.insert(lengths.end(), {size, 2 * size - 1, 2 * size, 2 * size + 1, 4 * size});
        for (CpConfig const& config : cp_configs(size)) {
            BOOST_TEST(coverage(lengths, config).causal_exactly_once(lengths), described(config));
        }
    }
}

BOOST_AUTO_TEST_CASE(a_single_sequence_of_any_length_is_covered) {
    for (int const size : {1, 2, 3, 4, 6, 8}) {
        for (CpConfig const& config : cp_configs(size)) {
            for (std::int64_t length = 1; length <= 60; ++length) {
                std::vector<std::int64_t> const lengths = {length};
                BOOST_TEST(coverage(lengths, config).causal_exactly_once(lengths),
                           described(config) << " T " << length);
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(the_coverage_check_sees_a_missing_and_a_doubled_pair) {
    std::vector<std::int64_t> const lengths = {6};
    Coverage checked = coverage(lengths, {.size = 2});
    BOOST_TEST_REQUIRE(checked.causal_exactly_once(lengths));
    checked.counts[0][0] = 0;
    BOOST_TEST(!checked.causal_exactly_once(lengths));
    checked.counts[0][0] = 2;
    BOOST_TEST(!checked.causal_exactly_once(lengths));
    checked.counts[0][0] = 1;
    checked.counts[0][1] = 1;  // query 0 on key 1
    BOOST_TEST(!checked.causal_exactly_once(lengths));
}

BOOST_AUTO_TEST_CASE(zigzag_work_is_equal_on_all_ranks_when_the_length_divides) {
    for (int size = 1; size <= 64; ++size) {
        std::int64_t const chunk = 2;
        std::vector<std::int64_t> const lengths(2, 2 * size * chunk);
        std::int64_t const fair = 2 * chunk * size * (2 * chunk * size + 1) / size;  // both
        for (CpConfig const& config : cp_configs(size)) {
            if (config.layout != CpLayout::zigzag) {
                continue;
            }
            for (int rank = 0; rank < size; ++rank) {
                CpPlan const plan = make_cp_plan(lengths, config, rank);
                std::int64_t pairs = area(plan.gather.own);
                for (GatherGap const& gap : plan.gather.gaps) {
                    pairs += area(gap.segments);
                }
                for (RingStep const& step : plan.ring.steps) {
                    pairs += area(step.segments);
                }
                // A rank of a group has 1/a2a of the heads and a2a times the pairs.
                BOOST_REQUIRE_MESSAGE(pairs == fair * config.a2a, described(config)
                                                                      << " rank " << rank);
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(each_step_of_a_zigzag_ring_costs_the_same) {
    std::int64_t const chunk = 3;
    for (int const size : {2, 3, 4, 8, 64}) {
        std::vector<std::int64_t> const lengths = {2 * size * chunk};
        for (RingPlan const& plan : Rings(lengths, CpLayout::zigzag, size).plans) {
            BOOST_TEST(area(plan.steps[0].segments) == chunk * (2 * chunk + 1));
            for (int i = 1; i < size; ++i) {
                BOOST_TEST(area(plan.steps[i].segments) == 2 * chunk * chunk);
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(what_a_rank_passes_on_is_what_the_next_one_has_at_hand) {
    for (CpLayout const layout : {CpLayout::zigzag, CpLayout::contiguous}) {
        for (int size = 2; size <= 64; ++size) {
            Rings const rings(uneven, layout, size);
            for (RingPlan const& plan : rings.plans) {
                RingPlan const& next = rings.plans[plan.next];
                BOOST_REQUIRE(next.previous == plan.rank);
                for (int i = 0; i + 1 < size; ++i) {
                    RingStep const& arrived = next.steps[i + 1];
                    BOOST_REQUIRE(arrived.owner == plan.steps[i].owner);
                    BOOST_REQUIRE(rings.passed(plan.steps[i]) == rings.at_hand(arrived));
                }
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(only_chunks_the_receiver_needs_are_sent) {
    // With equal chunks zigzag sends N(N-1) low and N(N-1)/2 high ones, three quarters of whole
    // blocks; contiguous N(N-1)/2 chunks (reference: each chunk goes to the ranks that own a later
    // one).
    for (int size = 2; size <= 64; ++size) {
        std::vector<std::int64_t> const lengths = {2 * size};
        for (CpLayout const layout : {CpLayout::zigzag, CpLayout::contiguous}) {
            Rings const rings(lengths, layout, size);
            std::int64_t kv = 0;
            std::int64_t visits = 0;  // rows of foreign blocks that queries look at
            for (RingPlan const& plan : rings.plans) {
                for (int i = 0; i < size; ++i) {
                    kv += std::ssize(rings.passed(plan.steps[i]));
                    std::int64_t seen = 0;
                    for (Segment const& segment : plan.steps[i].segments) {
                        seen = std::max(seen, segment.kv_rows);
                    }
                    visits += i > 0 ? seen : 0;
                }
            }
            BOOST_TEST(
                kv == (layout == CpLayout::zigzag ? 3 * size * (size - 1) / 2 : size * (size - 1)));
            BOOST_TEST(kv == visits);
        }
    }
}

BOOST_AUTO_TEST_CASE(every_share_of_a_gradient_comes_home_exactly_once) {
    for (CpLayout const layout : {CpLayout::zigzag, CpLayout::contiguous}) {
        for (int size = 2; size <= 64; ++size) {
            Rings const rings(uneven, layout, size);
            for (RingPlan const& plan : rings.plans) {
                auto const own = places(make_block(uneven, rings.split, plan.rank));
                // Rows of the last sums, as the ranks that hold them send them.
                RingStep const& by_ring = rings.plans[plan.previous].steps[size - 1];
                BOOST_REQUIRE(by_ring.owner == plan.rank);
                BOOST_REQUIRE(by_ring.next_is_home);
                BOOST_REQUIRE(plan.receives_by_ring == (by_ring.chunks > 0));
                BOOST_REQUIRE(picked(own, plan.home_by_ring) == rings.at_hand(by_ring));
                int straight = 0;
                for (int i = 0; i < size; ++i) {
                    int const from = plan.steps[i].home_from;
                    if (from < 0) {
                        continue;
                    }
                    ++straight;
                    RingStep const& sent = rings.plans[from].steps[i];
                    BOOST_REQUIRE(sent.owner == plan.rank);
                    BOOST_REQUIRE(sent.sends_home);
                    BOOST_REQUIRE(picked(own, plan.home_straight) ==
                                  picked(rings.at_hand(sent), sent.home_rows));
                }
                BOOST_REQUIRE(straight <= 1);
                // Each row that another rank looked at comes home once.
                std::vector<int> comes(own.size());
                for (auto const* rows : {&plan.home_by_ring, &plan.home_straight}) {
                    for (std::int32_t const row : *rows) {
                        ++comes.at(static_cast<std::size_t>(row));
                    }
                }
                std::vector<int> wanted(own.size());
                for (RingPlan const& other : rings.plans) {
                    for (int i = 1; i < size; ++i) {
                        if (other.steps[i].owner == plan.rank) {
                            for (Place const& place : rings.at_hand(other.steps[i])) {
                                wanted[std::ranges::find(own, place) - own.begin()] = 1;
                            }
                        }
                    }
                }
                BOOST_REQUIRE(comes == wanted);
                int sent_home = 0;
                for (RingStep const& step : plan.steps) {
                    sent_home += step.sends_home ? 1 : 0;
                    BOOST_REQUIRE(
                        !step.sends_home ||
                        rings.plans[step.owner].steps[&step - plan.steps.data()].home_from ==
                            plan.rank);
                }
                BOOST_REQUIRE(sent_home == 0 || sent_home == size - 2);
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(joined_streams_are_brought_into_position_order_and_back) {
    for (CpLayout const layout : {CpLayout::zigzag, CpLayout::contiguous}) {
        for (int const size : {2, 3, 4, 6, 8}) {
            for (int count = 1; count <= size; ++count) {
                if (size % count != 0) {
                    continue;
                }
                Split const split{.layout = layout, .ranks = size};
                for (int first = 0; first < size; first += count) {
                    JoinPlan const plan = make_join_plan(uneven, split, first, count);
                    std::vector<Place> joined;
                    for (int rank = first; rank < first + count; ++rank) {
                        auto const part = places(make_block(uneven, split, rank));
                        BOOST_TEST(plan.rows.at(rank - first) == std::ssize(part));
                        joined.insert(joined.end(), part.begin(), part.end());
                    }
                    Split const together{.layout = layout, .ranks = size, .group = count};
                    auto const ordered = places(make_block(uneven, together, first / count));
                    BOOST_TEST((picked(joined, plan.ordered) == ordered));
                    BOOST_TEST((picked(ordered, plan.joined) == joined));
                }
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(a_query_row_is_in_one_segment_of_a_step_and_no_segment_is_empty) {
    std::vector<std::int64_t> const lengths = {1, 9, 2, 30, 1};
    for (CpLayout const layout : {CpLayout::zigzag, CpLayout::contiguous}) {
        for (int const size : {1, 2, 3, 7}) {
            for (RingPlan const& plan : Rings(lengths, layout, size).plans) {
                for (RingStep const& step : plan.steps) {
                    std::int64_t next_row = 0;
                    for (Segment const& segment : step.segments) {
                        BOOST_TEST(segment.q_rows > 0);
                        BOOST_TEST(segment.kv_rows > 0);
                        BOOST_TEST(segment.q_row >= next_row);
                        next_row = segment.q_row + segment.q_rows;
                        BOOST_TEST(segment.kv_row + segment.kv_rows <= step.rows);
                    }
                }
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(two_ranks_have_the_documented_segments) {
    std::vector<std::int64_t> const lengths = {8};
    Rings const rings(lengths, CpLayout::zigzag, 2);
    BOOST_TEST((rings.plans[0].steps[0].segments == std::vector<Segment>{{0, 4, 0, 4, 0}}));
    BOOST_TEST((rings.plans[0].steps[1].segments == std::vector<Segment>{{2, 2, 0, 4, 3}}));
    BOOST_TEST((rings.plans[1].steps[1].segments == std::vector<Segment>{{0, 4, 0, 2, 1}}));
    CpConfig const gather{.size = 2, .method = CpMethod::all_gather};
    GatherPlan const low = make_cp_plan(lengths, gather, 0).gather;
    BOOST_TEST((low.own == std::vector<Segment>{{0, 4, 0, 4, 0}}));
    BOOST_REQUIRE_EQUAL(low.gaps.size(), 1U);
    BOOST_TEST((low.gaps[0].segments == std::vector<Segment>{{2, 2, 0, 4, 3}}));
    BOOST_TEST((low.seen == std::vector<std::int32_t>{4, 5, 6, 7}));
    GatherPlan const high = make_cp_plan(lengths, gather, 1).gather;
    BOOST_REQUIRE_EQUAL(high.gaps.size(), 1U);
    BOOST_TEST((high.gaps[0].segments == std::vector<Segment>{{0, 4, 0, 2, 1}}));
    BOOST_TEST((high.seen == std::vector<std::int32_t>{0, 1}));
}

BOOST_AUTO_TEST_CASE(the_longest_keys_are_those_of_the_longest_call) {
    auto const longest = [](std::vector<std::int64_t> const& lengths, CpConfig const& config,
                            int rank) {
        return make_cp_plan(lengths, config, rank).longest_keys();
    };
    CpConfig const gather{.size = 3, .method = CpMethod::all_gather};
    BOOST_TEST(longest({12}, gather, 0) == 8);  // the gap between its two chunks of 2
    BOOST_TEST(longest({12}, gather, 2) == 4);  // its own, as many as the gap before them
    BOOST_TEST(longest({12}, {.size = 3}, 0) == 4);
    BOOST_TEST(longest({12, 1}, {.size = 3}, 0) == 5);
    BOOST_TEST(longest({12, 1}, {.size = 3}, 2) == 4);  // of rank 0 it needs the low chunks alone
    BOOST_TEST(longest({12, 1}, {.size = 2, .method = CpMethod::a2a, .a2a = 2}, 1) == 13);
    BOOST_TEST(longest({7}, {}, 0) == 7);
}

BOOST_AUTO_TEST_CASE(an_empty_micro_batch_still_has_every_step) {
    RingPlan const plan = make_ring_plan({}, {.ranks = 3}, 2);
    BOOST_TEST(plan.steps.size() == 3u);
    BOOST_CHECK_THROW(make_ring_plan({}, {.ranks = 3}, 3), Error);
}

BOOST_AUTO_TEST_CASE(keys_that_cover_half_of_a_query_range_are_refused) {
    Block const queries{{{{0, 4}}}};
    Block const keys{{{{0, 2}}}};
    BOOST_CHECK_THROW(causal_segments(queries, keys), Error);
}
