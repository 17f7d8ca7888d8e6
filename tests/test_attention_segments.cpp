#define BOOST_TEST_MODULE attention_segments
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "cuda/attention_segments.hpp"

using namespace cpstep;

namespace {

using Segments = std::vector<Segment>;
using Pair = std::pair<std::int64_t, std::int64_t>;  ///< query row, key row

/// Each pair of rows that attend, as often as it does.
std::multiset<Pair> pairs_of(Segment const& s) {
    std::multiset<Pair> pairs;
    for (std::int64_t i = 0; i < s.q_rows; ++i) {
        for (std::int64_t j = 0; j < visible_keys(s, i); ++j) {
            pairs.emplace(s.q_row + i, s.kv_row + j);
        }
    }
    return pairs;
}
std::multiset<Pair> pairs_of(Segments const& segments) {
    std::multiset<Pair> pairs;
    for (Segment const& s : segments) {
        pairs.merge(pairs_of(s));
    }
    return pairs;
}

Segment as_segment(Tile const& t) {
    return {t.q_row, t.q_rows, t.kv_row, t.kv_rows, t.diagonal};
}

class Draw {
  public:
    explicit Draw(unsigned seed) : engine_(seed) {}
    std::int64_t operator()(std::int64_t low, std::int64_t high) {
        return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
    }
    /// Query rows of no two meet; zero rows, diagonals far outside and shared keys occur.
    Segments segments() {
        Segments result;
        std::int64_t row = (*this)(0, 3);
        for (std::int64_t n = (*this)(0, 3); n > 0; --n) {
            std::int64_t const queries = (*this)(0, 12);
            std::int64_t const keys = (*this)(0, 14);
            std::int64_t const far = (*this)(0, 9) == 0 ? 1'000'000'000'000 : 0;
            result.push_back({row, queries, (*this)(0, 9), keys,
                              (*this)(-queries - 2, keys + 2) + ((*this)(0, 1) == 0 ? far : -far)});
            row += queries + (*this)(0, 2);
        }
        return result;
    }

  private:
    std::mt19937 engine_;
};

constexpr int draws = 5000;

/// The mask of a piece by its definition.
bool mask_sees(Piece const& p, std::int64_t i, std::int64_t j) {
    switch (p.mask) {
        case Piece::Mask::full:
            return true;
        case Piece::Mask::causal:
            return j <= i;
        case Piece::Mask::bottom_right:
            return j <= i + p.keys.count - p.queries.count;
    }
    return false;
}

}  // namespace

BOOST_AUTO_TEST_CASE(pieces_attend_exactly_where_segments_do) {
    Draw draw(1);
    for (int n = 0; n < draws; ++n) {
        Segments const segments = draw.segments();
        Pieces const result = pieces_of(segments);
        std::multiset<Pair> got;
        for (Piece const& p : result.pieces) {
            BOOST_REQUIRE(p.queries.count > 0 && p.keys.count > 0);
            BOOST_REQUIRE(p.mask != Piece::Mask::causal || p.queries.count == p.keys.count);
            BOOST_REQUIRE(p.mask != Piece::Mask::bottom_right || p.queries.count < p.keys.count);
            for (std::int64_t i = 0; i < p.queries.count; ++i) {
                for (std::int64_t j = 0; j < p.keys.count; ++j) {
                    if (mask_sees(p, i, j)) {
                        got.emplace(p.queries.begin + i, p.keys.begin + j);
                    }
                }
            }
            BOOST_REQUIRE(pairs_of(p.segment()).size() > 0);
        }
        BOOST_REQUIRE(got == pairs_of(segments));
        Segments again;
        for (Piece const& p : result.pieces) {
            again.push_back(p.segment());
        }
        BOOST_REQUIRE(pairs_of(again) == got);
    }
}

BOOST_AUTO_TEST_CASE(every_query_is_in_a_piece_or_sees_no_key) {
    Draw draw(2);
    for (int n = 0; n < draws; ++n) {
        Segments const segments = draw.segments();
        Pieces const result = pieces_of(segments);
        std::set<std::int64_t> seeing;
        for (Pair const& pair : pairs_of(segments)) {
            seeing.insert(pair.first);
        }
        std::map<std::int64_t, int> times;
        for (RowRange const range : query_rows(result.pieces)) {
            for (std::int64_t row = range.begin; row < range.end(); ++row) {
                BOOST_REQUIRE(seeing.contains(row));
                ++times[row];
            }
        }
        for (RowRange const range : result.unseeing) {
            for (std::int64_t row = range.begin; row < range.end(); ++row) {
                BOOST_REQUIRE(!seeing.contains(row));
                ++times[row];
            }
        }
        for (Segment const& s : segments) {
            for (std::int64_t i = 0; i < s.q_rows; ++i) {
                BOOST_REQUIRE(times[s.q_row + i] == 1);
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(common_segments_are_one_piece) {
    using Mask = Piece::Mask;
    auto const only = [](Segment const& s) {
        Pieces const result = pieces_of(std::span(&s, 1));
        BOOST_REQUIRE(result.pieces.size() == 1);
        BOOST_TEST(result.unseeing.empty());
        return result.pieces.front();
    };
    BOOST_TEST((only({0, 9, 0, 9, 0}) == Piece{{0, 9}, {0, 9}, Mask::causal}));
    BOOST_TEST((only({0, 1, 0, 1, 0}) == Piece{{0, 1}, {0, 1}, Mask::full}));
    BOOST_TEST((only({3, 9, 5, 20, 11}) == Piece{{3, 9}, {5, 20}, Mask::bottom_right}));
    BOOST_TEST((only({3, 9, 5, 20, 19}) == Piece{{3, 9}, {5, 20}, Mask::full}));  // last key - 1
    BOOST_TEST((only({3, 9, 5, 20, 4}) == Piece{{3, 9}, {5, 13}, Mask::bottom_right}));
    BOOST_TEST((only({3, 9, 5, 20, 0}) == Piece{{3, 9}, {5, 9}, Mask::causal}));
}

BOOST_AUTO_TEST_CASE(diagonals_that_leave_the_keys_make_two_pieces) {
    using Mask = Piece::Mask;
    Segment const s{2, 10, 4, 6, -1};  // query 0 sees nothing, 1 .. 6 are square, 7 .. 9 see all
    Pieces const result = pieces_of(std::span(&s, 1));
    BOOST_TEST((result.unseeing == std::vector<RowRange>{{2, 1}}));
    BOOST_TEST((result.pieces ==
                std::vector<Piece>{{{3, 6}, {4, 6}, Mask::causal}, {{9, 3}, {4, 6}, Mask::full}}));
}

BOOST_AUTO_TEST_CASE(floating_point_operations_are_those_of_visible_keys) {
    HeadShape const shape = {.heads = 3, .kv_heads = 1, .head_dim = 8};
    std::vector<Segment> const segments = {
        {0, 5, 0, 5, 0},   {5, 4, 5, 7, 3},    {9, 6, 0, 20, 20}, {15, 9, 30, 4, -2},
        {24, 3, 40, 0, 5}, {27, 4, 40, 5, -9}, {31, 1, 45, 1, 0}, {32, 0, 46, 3, 0}};
    double visible = 0;
    for (Segment const& s : segments) {
        for (std::int64_t i = 0; i < s.q_rows; ++i) {
            visible += static_cast<double>(visible_keys(s, i));
        }
    }
    BOOST_TEST(forward_flop(segments, shape) == 4 * visible * 3 * 8);
    BOOST_TEST(forward_flop({}, shape) == 0.0);
}

BOOST_AUTO_TEST_CASE(packed_groups_hold_one_mask_and_rows_in_order) {
    Draw draw(3);
    for (int n = 0; n < draws; ++n) {
        std::vector<Piece> const pieces = pieces_of(draw.segments()).pieces;
        std::size_t count = 0;
        for (std::vector<Piece> const& group : packed_groups(pieces)) {
            count += group.size();
            for (std::size_t i = 0; i < group.size(); ++i) {
                BOOST_REQUIRE(std::count(pieces.begin(), pieces.end(), group[i]) == 1);
                BOOST_REQUIRE(i == 0 || (group[i].mask == group[i - 1].mask &&
                                         group[i].queries.begin >= group[i - 1].queries.end() &&
                                         group[i].keys.begin >= group[i - 1].keys.end()));
            }
        }
        BOOST_REQUIRE(count == pieces.size());
    }
    // Two query chunks over prefixes of the same keys, two sequences: chunks of one index go
    // together.
    std::vector<Piece> const gathered =
        pieces_of(Segments{{0, 4, 0, 6, 2}, {4, 4, 0, 16, 12}, {8, 2, 16, 5, 3}, {10, 2, 16, 9, 7}})
            .pieces;
    BOOST_TEST(packed_groups(gathered).size() == 2);
}

BOOST_AUTO_TEST_CASE(rows_outside_and_overlap_are_complements) {
    Draw draw(4);
    for (int n = 0; n < draws; ++n) {
        std::int64_t const rows = draw(0, 20);
        std::vector<RowRange> ranges;
        std::vector<int> times(static_cast<std::size_t>(rows));
        for (std::int64_t i = draw(0, 4); i > 0; --i) {
            std::int64_t const begin = draw(0, rows);
            ranges.push_back({begin, draw(0, rows - begin)});
            for (std::int64_t row = begin; row < ranges.back().end(); ++row) {
                ++times[static_cast<std::size_t>(row)];
            }
        }
        std::vector<int> outside(times.size());
        for (RowRange const range : rows_outside(ranges, rows)) {
            for (std::int64_t row = range.begin; row < range.end(); ++row) {
                ++outside.at(static_cast<std::size_t>(row));
            }
        }
        for (std::size_t i = 0; i < times.size(); ++i) {
            BOOST_REQUIRE(outside[i] == (times[i] == 0 ? 1 : 0));
        }
        std::erase_if(ranges, [](RowRange range) { return range.count == 0; });
        BOOST_REQUIRE(any_overlap(ranges) ==
                      std::any_of(times.begin(), times.end(), [](int t) { return t > 1; }));
    }
}

BOOST_AUTO_TEST_CASE(query_tiles_attend_exactly_where_segments_do_largest_first) {
    Draw draw(5);
    for (int n = 0; n < draws; ++n) {
        Segments const segments = draw.segments();
        std::multiset<Pair> got;
        std::int64_t queries = 0;
        std::int64_t before = 1'000'000;
        for (Tile const& t : query_tiles(segments, 4)) {
            got.merge(pairs_of(as_segment(t)));
            queries += t.q_rows;
            BOOST_REQUIRE(t.q_rows > 0);
            BOOST_REQUIRE(t.q_rows <= 4);
            BOOST_REQUIRE(std::int64_t{t.q_rows} * t.kv_rows <= before);
            before = std::int64_t{t.q_rows} * t.kv_rows;
        }
        BOOST_REQUIRE(got == pairs_of(segments));
        std::int64_t wanted = 0;
        for (Segment const& s : segments) {
            wanted += s.q_rows;
        }
        BOOST_REQUIRE(queries == wanted);  // those that see no key too
    }
}

BOOST_AUTO_TEST_CASE(key_tiles_attend_exactly_where_segments_do_and_name_every_key) {
    Draw draw(6);
    for (int n = 0; n < draws; ++n) {
        Segments const segments = draw.segments();
        KeyTiles const tiles = key_tiles(segments, 4);
        std::multiset<Pair> got;
        std::multiset<std::int64_t> keys;
        std::set<std::int32_t> rows;
        std::size_t parts = 0;
        for (KeyTile const& tile : tiles.tiles) {
            BOOST_REQUIRE(tile.row % 4 == 0);
            BOOST_REQUIRE(rows.insert(tile.row).second);
            parts += static_cast<std::size_t>(tile.parts);
            for (std::int32_t i = 0; i < tile.parts; ++i) {
                Tile const& t = tiles.parts.at(static_cast<std::size_t>(tile.first_part + i));
                BOOST_REQUIRE(t.kv_row >= tile.row);
                BOOST_REQUIRE(t.kv_row + t.kv_rows <= tile.row + 4);
                BOOST_REQUIRE(t.q_rows == 0 || visible_keys(as_segment(t), 0) > 0);
                got.merge(pairs_of(as_segment(t)));
                for (std::int32_t key = t.kv_row; key < t.kv_row + t.kv_rows; ++key) {
                    keys.insert(key);
                }
            }
        }
        BOOST_REQUIRE(parts == tiles.parts.size());
        BOOST_REQUIRE(got == pairs_of(segments));
        std::multiset<std::int64_t> wanted;
        for (Segment const& s : segments) {
            for (std::int64_t key = s.kv_row; key < s.kv_row + s.kv_rows; ++key) {
                wanted.insert(key);
            }
        }
        BOOST_REQUIRE(keys == wanted);
    }
}

BOOST_AUTO_TEST_CASE(calls_with_wrong_shapes_types_or_segments_are_refused) {
    constexpr HeadShape shape = {.heads = 4, .kv_heads = 2, .head_dim = 8};
    constexpr Tensor q{nullptr, DType::bf16, 10, 32, 32};
    constexpr Tensor k{nullptr, DType::bf16, 12, 16, 16};
    constexpr Tensor lse{nullptr, DType::f32, 10, 4, 4};
    AttentionForward const good{q, lse, q, k, k, shape};
    Segments const inside = {{0, 5, 0, 12, 3}, {5, 5, 2, 10, 3}};
    check_attention(good, inside, Accumulate::overwrite);
    auto const refused = [](AttentionForward const& call, Segments const& segments,
                            Accumulate mode) {
        BOOST_CHECK_EXCEPTION(check_attention(call, segments, mode), Error,
                              [](Error const& e) { return e.code() == ExitCode::internal; });
    };
    refused(good, inside, Accumulate::merge);  // into bf16
    refused(good, {{0, 5, 0, 12, 3}, {4, 5, 2, 10, 3}}, Accumulate::overwrite);
    refused(good, {{6, 5, 0, 12, 3}}, Accumulate::overwrite);
    refused(good, {{0, 5, 1, 12, 3}}, Accumulate::overwrite);
    AttentionForward bad = good;
    bad.k.rows = 11;
    refused(bad, inside, Accumulate::overwrite);
    bad = good;
    bad.v.dtype = DType::f32;
    refused(bad, inside, Accumulate::overwrite);
    bad = good;
    bad.shape.kv_heads = 3;
    refused(bad, inside, Accumulate::overwrite);

    AttentionBackward const back{q, k, k, q, k, k, q, q, lse, shape};
    check_attention(back, inside, Accumulate::overwrite);
    auto const refused_back = [](AttentionBackward const& call, Segments const& segments,
                                 Accumulate mode) {
        BOOST_CHECK_EXCEPTION(check_attention(call, segments, mode), Error,
                              [](Error const& e) { return e.code() == ExitCode::internal; });
    };
    refused_back(back, inside, Accumulate::merge);
    AttentionBackward mixed = back;
    mixed.dk.dtype = DType::f32;
    refused_back(mixed, inside, Accumulate::overwrite);
    mixed = back;
    mixed.o.dtype = DType::f32;
    refused_back(mixed, inside, Accumulate::overwrite);
}
