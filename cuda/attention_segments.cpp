#include "cuda/attention_segments.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>

#include "cuda/error.hpp"
#include "cuda/operands.hpp"

namespace cpstep {

namespace {

void sort_by_row(std::vector<RowRange>& ranges) {
    std::sort(ranges.begin(), ranges.end(),
              [](RowRange a, RowRange b) { return a.begin < b.begin; });
}

Piece::Mask mask_of(std::int64_t queries, std::int64_t seen_by_first, std::int64_t keys) {
    if (seen_by_first == keys) {
        return Piece::Mask::full;
    }
    return queries == keys ? Piece::Mask::causal : Piece::Mask::bottom_right;
}

/// Queries [begin, end) of s, all of which see keys.
Piece piece_of(Segment const& s, std::int64_t begin, std::int64_t end) {
    std::int64_t const keys = visible_keys(s, end - 1);
    return {.queries = {s.q_row + begin, end - begin},
            .keys = {s.kv_row, keys},
            .mask = mask_of(end - begin, visible_keys(s, begin), keys)};
}

/// The first query of s that sees key `key`; may be q_rows or more.
std::int64_t first_query_of(Segment const& s, std::int64_t key) {
    return std::max<std::int64_t>(key - s.diagonal, 0);
}

void add_pieces(Pieces& result, Segment const& s) {
    std::int64_t const first = s.kv_rows > 0 ? std::min(first_query_of(s, 0), s.q_rows) : s.q_rows;
    if (first > 0) {
        result.unseeing.push_back({s.q_row, first});
    }
    if (first == s.q_rows) {
        return;
    }
    // Query `exact` and those after it see all keys. It ends the part below the diagonal where
    // there is one, so that the part is square or bottom right without leaving a row over.
    std::int64_t const exact = s.kv_rows - 1 - s.diagonal;
    if (exact <= first || exact >= s.q_rows - 1) {
        result.pieces.push_back(piece_of(s, first, s.q_rows));
        return;
    }
    result.pieces.push_back(piece_of(s, first, exact + 1));
    result.pieces.push_back(piece_of(s, exact + 1, s.q_rows));
}

std::int32_t narrow(std::int64_t value) {
    require(value >= std::numeric_limits<std::int32_t>::min() &&
                value <= std::numeric_limits<std::int32_t>::max(),
            ExitCode::internal, "attention: row {} does not fit 32 bits", value);
    return static_cast<std::int32_t>(value);
}

/// s with no row, key or diagonal beyond what matters.
Tile tile_of(Segment const& s) {
    return {narrow(s.q_row), narrow(s.q_rows), narrow(s.kv_row), narrow(s.kv_rows),
            narrow(std::clamp(s.diagonal, -s.q_rows - 1, s.kv_rows))};
}

/// Scores in units of one, masked ones too.
std::int64_t work_of(Tile const& t) {
    return std::int64_t{t.q_rows} * t.kv_rows;
}

/// Keys [begin, end) of s and the queries that see any of them.
Segment cut_to_keys(Segment const& s, std::int64_t begin, std::int64_t end) {
    std::int64_t const first = std::min(first_query_of(s, begin), s.q_rows);
    return {.q_row = s.q_row + first,
            .q_rows = s.q_rows - first,
            .kv_row = s.kv_row + begin,
            .kv_rows = end - begin,
            .diagonal = s.diagonal - begin + first};
}

struct PlacedPart {
    std::int64_t tile = 0;
    Tile part = {};
};

bool may_follow(Piece const& last, Piece const& next) {
    return last.mask == next.mask && next.queries.begin >= last.queries.end() &&
           next.keys.begin >= last.keys.end();
}

bool is_t(DType dtype) {
    return dtype == DType::f32 || dtype == DType::bf16;
}

void check_inputs(Tensor lse, Tensor q, Tensor k, Tensor v, HeadShape shape,
                  std::span<Segment const> segments) {
    check_attention_shapes(lse, q, k, v, shape, segments);
    require(is_t(q.dtype) && k.dtype == q.dtype && v.dtype == q.dtype && lse.dtype == DType::f32,
            ExitCode::internal, "attention: q, k and v are not of one type, or lse is not f32");
    std::vector<RowRange> queries;
    for (Segment const& s : segments) {
        if (s.q_rows > 0) {
            queries.push_back({s.q_row, s.q_rows});
        }
    }
    require(!any_overlap(std::move(queries)), ExitCode::internal,
            "attention: a query row is in two segments of one call");
}

/// `out` is what a call writes beside inputs like `like`.
void check_output(char const* name, Tensor out, Tensor like, Accumulate mode) {
    require(out.rows == like.rows && out.cols == like.cols, ExitCode::internal,
            "attention: {} ({},{}) instead of ({},{})", name, out.rows, out.cols, like.rows,
            like.cols);
    require(out.dtype == DType::f32 || (mode == Accumulate::overwrite && out.dtype == like.dtype),
            ExitCode::internal, "attention: element type of {}", name);
}

}  // namespace

Segment Piece::segment() const {
    return {.q_row = queries.begin,
            .q_rows = queries.count,
            .kv_row = keys.begin,
            .kv_rows = keys.count,
            .diagonal = mask == Mask::full ? keys.count : keys.count - queries.count};
}

Pieces pieces_of(std::span<Segment const> segments) {
    Pieces result;
    for (Segment const& s : segments) {
        if (s.q_rows > 0) {
            add_pieces(result, s);
        }
    }
    return result;
}

std::vector<std::vector<Piece>> packed_groups(std::span<Piece const> pieces) {
    std::vector<std::vector<Piece>> groups;
    for (Piece const& piece : pieces) {
        auto const group = std::find_if(
            groups.begin(), groups.end(),
            [&](std::vector<Piece> const& open) { return may_follow(open.back(), piece); });
        if (group != groups.end()) {
            group->push_back(piece);
        } else {
            groups.push_back({piece});
        }
    }
    return groups;
}

double forward_flop(std::span<Segment const> segments, HeadShape shape) {
    std::int64_t scores = 0;
    for (Segment const& s : segments) {
        // Queries up to `none` see no key, those from `all` on every key, each between one more.
        std::int64_t const none = std::clamp(-s.diagonal - 1, std::int64_t{-1}, s.q_rows - 1);
        std::int64_t const all = std::clamp(s.kv_rows - s.diagonal - 1, none + 1, s.q_rows);
        std::int64_t const first = visible_keys(s, none + 1);
        std::int64_t const rising = all - none - 1;
        scores += rising * first + rising * (rising - 1) / 2 + (s.q_rows - all) * s.kv_rows;
    }
    return 4 * static_cast<double>(scores * shape.heads * shape.head_dim);
}

std::vector<RowRange> query_rows(std::span<Piece const> pieces) {
    std::vector<RowRange> ranges;
    for (Piece const& piece : pieces) {
        ranges.push_back(piece.queries);
    }
    return ranges;
}

std::vector<RowRange> key_rows(std::span<Piece const> pieces) {
    std::vector<RowRange> ranges;
    for (Piece const& piece : pieces) {
        ranges.push_back(piece.keys);
    }
    return ranges;
}

std::vector<RowRange> rows_outside(std::vector<RowRange> ranges, std::int64_t rows) {
    sort_by_row(ranges);
    std::vector<RowRange> outside;
    std::int64_t covered = 0;
    for (RowRange const range : ranges) {
        if (range.begin > covered) {
            outside.push_back({covered, range.begin - covered});
        }
        covered = std::max(covered, range.end());
    }
    if (covered < rows) {
        outside.push_back({covered, rows - covered});
    }
    return outside;
}

bool any_overlap(std::vector<RowRange> ranges) {
    sort_by_row(ranges);
    for (std::size_t i = 1; i < ranges.size(); ++i) {
        if (ranges[i].begin < ranges[i - 1].end()) {
            return true;
        }
    }
    return false;
}

std::vector<Tile> query_tiles(std::span<Segment const> segments, std::int64_t tile_rows) {
    std::vector<Tile> tiles;
    for (Segment const& s : segments) {
        for (std::int64_t begin = 0; begin < s.q_rows; begin += tile_rows) {
            std::int64_t const count = std::min(tile_rows, s.q_rows - begin);
            tiles.push_back(tile_of({.q_row = s.q_row + begin,
                                     .q_rows = count,
                                     .kv_row = s.kv_row,
                                     .kv_rows = visible_keys(s, begin + count - 1),
                                     .diagonal = s.diagonal + begin}));
        }
    }
    std::stable_sort(tiles.begin(), tiles.end(),
                     [](Tile const& a, Tile const& b) { return work_of(a) > work_of(b); });
    return tiles;
}

KeyTiles key_tiles(std::span<Segment const> segments, std::int64_t tile_rows) {
    std::vector<PlacedPart> placed;
    for (Segment const& s : segments) {
        std::int64_t const end = s.kv_row + s.kv_rows;
        for (std::int64_t row = s.kv_row; row < end;) {
            std::int64_t const next = std::min((row / tile_rows + 1) * tile_rows, end);
            placed.push_back(
                {row / tile_rows, tile_of(cut_to_keys(s, row - s.kv_row, next - s.kv_row))});
            row = next;
        }
    }
    std::stable_sort(placed.begin(), placed.end(),
                     [](PlacedPart const& a, PlacedPart const& b) { return a.tile < b.tile; });
    KeyTiles result;
    std::vector<std::int64_t> work;
    for (PlacedPart const& p : placed) {
        auto const row = narrow(p.tile * tile_rows);
        if (result.tiles.empty() || result.tiles.back().row != row) {
            result.tiles.push_back(
                {row, narrow(static_cast<std::int64_t>(result.parts.size())), 0});
            work.push_back(0);
        }
        result.parts.push_back(p.part);
        ++result.tiles.back().parts;
        work.back() += p.part.q_rows;
    }
    std::vector<std::size_t> order(work.size());
    for (std::size_t i = 0; i < order.size(); ++i) {
        order[i] = i;
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return work[a] > work[b]; });
    std::vector<KeyTile> sorted;
    for (std::size_t const i : order) {
        sorted.push_back(result.tiles[i]);
    }
    result.tiles = std::move(sorted);
    return result;
}

void check_attention(AttentionForward const& call, std::span<Segment const> segments,
                     Accumulate mode) {
    check_inputs(call.lse, call.q, call.k, call.v, call.shape, segments);
    check_output("o", call.o, call.q, mode);
}

void check_attention(AttentionBackward const& call, std::span<Segment const> segments,
                     Accumulate mode) {
    check_inputs(call.lse, call.q, call.k, call.v, call.shape, segments);
    check_output("o", call.o, call.q, Accumulate::overwrite);
    check_output("do", call.d_o, call.q, Accumulate::overwrite);
    require(call.o.dtype == call.q.dtype && call.d_o.dtype == call.q.dtype, ExitCode::internal,
            "attention: o, do and q are not of one type");
    check_output("dq", call.dq, call.q, mode);
    check_output("dk", call.dk, call.k, Accumulate::overwrite);
    check_output("dv", call.dv, call.v, Accumulate::overwrite);
    require(call.dk.dtype == call.dv.dtype, ExitCode::internal,
            "attention: dk and dv are not of one type");
}

}  // namespace cpstep
