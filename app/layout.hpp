// Which rows of a sequence a CP rank owns, and where they lie in packed streams. Pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "app/cp_config.hpp"

namespace cpstep {

/// Positions [begin, end) of one sequence.
struct PositionRange {
    std::int64_t begin = 0;
    std::int64_t end = 0;

    std::int64_t size() const { return end - begin; }
    friend bool operator==(PositionRange const&, PositionRange const&) = default;
};

/// A sequence split over `ranks` ranks; `group` adjacent ones hold their rows together (a2a), so
/// that there are ranks / group holders. A split with group 1 is what the ranks own themselves.
struct Split {
    CpLayout layout = CpLayout::zigzag;
    int ranks = 1;
    int group = 1;

    int holders() const { return ranks / group; }
    /// Chunks a holder has of each sequence: zigzag 2, contiguous 1.
    int chunks() const { return layout == CpLayout::zigzag ? 2 : 1; }
};

/// The chunks of holder h in position order, Split::chunks() of them, cut at T, never padded,
/// possibly empty. With H holders and N ranks:
///   zigzag:     2H chunks of group * ceil(T / 2N) rows; h owns chunks h and 2H-1-h, so that causal
///               areas are equal when 2N divides T (Megatron/TE "dual chunk swap");
///   contiguous: H chunks of group * ceil(T / N) rows; h owns chunk h.
/// The rows of a holder are those of its ranks h*group .. (h+1)*group-1.
std::vector<PositionRange> owned_ranges(std::int64_t length, Split split, int holder);

/// Number of rows holder h owns of a sequence.
std::int64_t owned_rows(std::int64_t length, Split split, int holder);

/// A packed stream of rows: of each sequence its ranges in position order, one sequence after
/// another.
struct Block {
    std::vector<std::vector<PositionRange>> sequences;

    std::int64_t rows() const;
};

/// The stream of one holder for sequences of these lengths. `chunks` >= 0: only the leading chunks
/// of each sequence.
Block make_block(std::span<std::int64_t const> lengths, Split split, int holder, int chunks = -1);

/// Row i of `whole` is row result[i] of the streams `parts` laid one after another. Every row of
/// `whole` must be in one of them: else Error(internal).
std::vector<std::int32_t> rows_in(Block const& whole, std::span<Block const> parts);

}  // namespace cpstep
