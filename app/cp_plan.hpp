// What a CP rank computes and sends for one micro-batch, as data. Pure functions, no device.
#pragma once

#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "app/cp_config.hpp"
#include "app/layout.hpp"
#include "cuda/attention.hpp"

namespace cpstep {

/// The causal segments of queries `q` over keys `k`, streams of the same sequences. Keys must cover
/// each query range wholly or not at all, and each sequence's rows be in position order: else
/// Error(internal). At most one segment a query row; neighbours that one mask describes are joined.
std::vector<Segment> causal_segments(Block const& q, Block const& k);

/// Leading chunks of `owner`'s block that `rank`'s queries look at. zigzag: the low chunk precedes
/// everybody's high chunk, the high one only that of lower ranks; contiguous: the chunk of an
/// earlier rank.
int needed_chunks(CpLayout layout, int rank, int owner);

/// Where blocks travel: zigzag to rank - 1, contiguous to rank + 1. In that direction the ranks
/// that need a chunk follow each other from its owner on, so it is sent no further than to them.
int ring_direction(CpLayout layout);

/// Step i of rank r works on leading chunks of the block of `owner` = (r - direction * i) mod N,
/// which has come over from rank r - direction; step 0 is the rank's own block.
struct RingStep {
    int owner = 0;
    int chunks = 0;                 ///< leading chunks at hand; 0: nothing to do here
    std::int64_t rows = 0;          ///< rows at hand
    std::vector<Segment> segments;  ///< key rows local to the rows at hand

    int pass_on = 0;                      ///< leading chunks that the next rank needs; 0: none
    std::vector<std::int32_t> pass_rows;  ///< their rows, where they are not all rows at hand
    /// Backward: chunks of the owner's dK/dV that no further rank adds to go straight home, unless
    /// the next rank is the owner: then all rows at hand go to it.
    bool next_is_home = false;
    std::vector<std::int32_t> home_rows;  ///< rows at hand that go straight home
    bool sends_home = false;
    int home_from = -1;  ///< rank whose straight message with this rank's dK/dV ends this step
};

/// The ring of one micro-batch on one rank; a ring of one has one step.
struct RingPlan {
    int size = 1;
    int rank = 0;
    int next = 0;      ///< blocks go there
    int previous = 0;  ///< and come from there
    std::vector<RingStep> steps;
    std::vector<std::int32_t> home_by_ring;   ///< own rows whose dK/dV comes from `previous` last
    std::vector<std::int32_t> home_straight;  ///< own rows of the message from home_from
    bool receives_by_ring = false;            ///< the last hop brings dK/dV home
};

RingPlan make_ring_plan(std::span<std::int64_t const> lengths, Split split, int rank);

/// Streams of several ranks joined in rank order and brought into position order, and back.
struct JoinPlan {
    std::vector<std::int64_t> rows;     ///< of each rank's stream; all_gather needs no more
    std::vector<std::int32_t> ordered;  ///< row i in position order is row ordered[i] as joined
    std::vector<std::int32_t> joined;   ///< the inverse
    std::int64_t all_rows() const {
        return std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
    }
};

/// Ranks first .. first + count - 1 of a split with group 1.
JoinPlan make_join_plan(std::span<std::int64_t const> lengths, Split split, int first, int count);

/// Keys that lie in a gap between this rank's own rows of a sequence: before its g-th range of
/// positions and after the one before. Queries from that range on see them all.
struct GatherGap {
    std::int64_t rows = 0;          ///< over all sequences
    std::vector<Segment> segments;  ///< key rows local to the gap
};

/// all_gather of one micro-batch on one rank: own keys, then gaps, no key in two of them, so that
/// no two calls add to the same dK/dV and the own keys need no wire.
struct GatherPlan {
    std::vector<Segment> own;        ///< own queries over own keys
    std::vector<GatherGap> gaps;     ///< those that hold keys
    std::vector<std::int32_t> seen;  ///< rows of the joined streams that lie in gaps, gap after gap

    std::int64_t seen_rows() const { return static_cast<std::int64_t>(seen.size()); }
};

/// One micro-batch on one CP rank.
struct CpPlan {
    CpConfig config;
    int rank = 0;
    std::vector<std::int64_t> lengths;
    std::int64_t own_rows = 0;
    JoinPlan join;      ///< all_gather: all ranks; a2a, a2a+p2p: the ranks that scatter heads
    GatherPlan gather;  ///< all_gather
    RingPlan ring;      ///< the other methods; a ring of one for a2a and CP 1

    /// Rows of the longest K/V that an attention call of this rank works on.
    std::int64_t longest_keys() const;
};

/// `lengths`: T of each packed sequence, in stream order.
CpPlan make_cp_plan(std::span<std::int64_t const> lengths, CpConfig const& config, int cp_rank);

}  // namespace cpstep
