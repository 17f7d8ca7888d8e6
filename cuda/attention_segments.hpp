// What the device's attention makes of a list of segments: pieces that a library's masks describe,
// groups of pieces for one call of it, and tiles for blocks of threads. Pure, no device.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cuda/attention.hpp"
#include "cuda/tensor.hpp"

namespace cpstep {

/// Rows [begin, begin + count).
struct RowRange {
    std::int64_t begin = 0;
    std::int64_t count = 0;

    std::int64_t end() const { return begin + count; }
    friend bool operator==(RowRange const&, RowRange const&) = default;
};

/// A block of scores under a mask that does not name a diagonal.
struct Piece {
    enum class Mask : std::uint8_t {
        full,          ///< every query sees every key
        causal,        ///< as many queries as keys, query i sees keys 0 .. i
        bottom_right,  ///< more keys than queries, the last query sees every key
    };
    RowRange queries, keys;
    Mask mask = Mask::full;

    /// The same as a segment.
    Segment segment() const;
    friend bool operator==(Piece const&, Piece const&) = default;
};

struct Pieces {
    std::vector<Piece> pieces;
    std::vector<RowRange> unseeing;  ///< query rows of segments that see no key
};

/// Segments as pieces without keys that no query sees.
Pieces pieces_of(std::span<Segment const> segments);

/// Pieces in groups that one call over packed sequences may take: of one mask, each one's rows of
/// queries and of keys after those of the one before.
std::vector<std::vector<Piece>> packed_groups(std::span<Piece const> pieces);

/// Floating-point operations of a forward call: two products for each query and key that it sees.
double forward_flop(std::span<Segment const> segments, HeadShape shape);

std::vector<RowRange> query_rows(std::span<Piece const> pieces);
std::vector<RowRange> key_rows(std::span<Piece const> pieces);
/// Rows of [0, rows) in none of the ranges.
std::vector<RowRange> rows_outside(std::vector<RowRange> ranges, std::int64_t rows);
/// Some row is in two of the ranges.
bool any_overlap(std::vector<RowRange> ranges);

/// A segment in 32 bits, for a device: visible keys of query i are min(kv_rows, diagonal + i + 1).
struct Tile {
    std::int32_t q_row, q_rows, kv_row, kv_rows, diagonal;

    friend bool operator==(Tile const&, Tile const&) = default;
};

/// The queries of the segments in tiles of at most `tile_rows`, keys cut to those that a tile sees;
/// those with most work first, so that blocks of threads end together.
std::vector<Tile> query_tiles(std::span<Segment const> segments, std::int64_t tile_rows);

/// Key rows [row, row + tile_rows) and which of KeyTiles::parts reach them.
struct KeyTile {
    std::int32_t row, first_part, parts;
};
struct KeyTiles {
    std::vector<KeyTile> tiles;  ///< most work first; none without parts
    std::vector<Tile> parts;     ///< segments cut to a tile's keys and the queries that see them
};

/// The keys of the segments in tiles that begin at multiples of tile_rows. A part without queries
/// stands for keys that no query sees.
KeyTiles key_tiles(std::span<Segment const> segments, std::int64_t tile_rows);

/// What a forward call reads and writes, as Backend::attention_forward.
struct AttentionForward {
    Tensor o, lse, q, k, v;
    HeadShape shape;
};
/// What a backward call reads and writes, as Backend::attention_backward.
struct AttentionBackward {
    Tensor dq, dk, dv, q, k, v, o, d_o, lse;
    HeadShape shape;
};

/// Error(internal) unless shapes and element types agree and segments lie inside, no query row in
/// two of them.
void check_attention(AttentionForward const& call, std::span<Segment const> segments,
                     Accumulate mode);
void check_attention(AttentionBackward const& call, std::span<Segment const> segments,
                     Accumulate mode);

}  // namespace cpstep
