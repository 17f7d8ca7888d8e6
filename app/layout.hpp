// Which rows of a sequence a CP rank owns. Pure functions.
#pragma once

#include <cstdint>
#include <vector>

namespace cpstep {

/// Positions [begin, end) of one sequence.
struct PositionRange {
    std::int64_t begin = 0;
    std::int64_t end = 0;

    std::int64_t size() const { return end - begin; }
    friend bool operator==(PositionRange const&, PositionRange const&) = default;
};

/// Zigzag: with q = ceil(T / 2N), chunk k is [kq, (k+1)q) cut at T (never padded, possibly empty);
/// rank r owns chunks r and 2N-1-r, in this order, so that causal areas are equal on all ranks when
/// 2N divides T. (Megatron/TE "dual chunk swap".)
std::vector<PositionRange> owned_ranges(std::int64_t length, int cp_size, int cp_rank);

/// Number of rows rank r owns of a sequence.
std::int64_t owned_rows(std::int64_t length, int cp_size, int cp_rank);

}  // namespace cpstep
