// The ring as data: which block is at hand at each step and which segments are computed. Pure
// functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cuda/attention.hpp"

namespace cpstep {

/// Step i of rank r works on the K/V block of rank `owner` = (r - i) mod N.
struct RingStep {
    int owner = 0;
    std::vector<Segment> segments;  ///< rows local to the query rank and to the owner's block
};

/// The ring of one micro-batch (several sequences packed) on one rank.
struct RingPlan {
    int cp_size = 1;
    int cp_rank = 0;
    std::vector<std::int64_t> block_rows;  ///< rows of each rank's block
    std::vector<RingStep> steps;           ///< N steps; step 0 is the rank's own block
};

/// `lengths`: T of each packed sequence, in stream order. Local streams hold each sequence's owned
/// ranges one after another (layout.hpp).
RingPlan make_ring_plan(std::span<std::int64_t const> lengths, int cp_size, int cp_rank);

}  // namespace cpstep
