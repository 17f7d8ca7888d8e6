#include "app/cp_plan.hpp"

#include <utility>

#include "app/layout.hpp"
#include "cuda/error.hpp"

namespace cpstep {

namespace {

// One sequence's place in a rank's packed local stream: its low chunk begins at `row`, the high one
// follows.
struct LocalPiece {
    std::int64_t row = 0;
    std::int64_t low_rows = 0;
    std::int64_t high_rows = 0;

    std::int64_t rows() const { return low_rows + high_rows; }
};

struct LocalStream {
    std::vector<LocalPiece> pieces;
    std::int64_t rows = 0;
};

LocalStream local_stream(std::span<std::int64_t const> lengths, int cp_size, int rank) {
    LocalStream stream;
    stream.pieces.reserve(lengths.size());
    for (std::int64_t const length : lengths) {
        std::vector<PositionRange> const ranges = owned_ranges(length, {.ranks = cp_size}, rank);
        LocalPiece const piece{stream.rows, ranges[0].size(), ranges[1].size()};
        stream.pieces.push_back(piece);
        stream.rows += piece.rows();
    }
    return stream;
}

// Both local chunks are in position order, so one causal mask over their concatenation is exact.
Segment own_block(LocalPiece const& own) {
    return {.q_row = own.row,
            .q_rows = own.rows(),
            .kv_row = own.row,
            .kv_rows = own.rows(),
            .diagonal = 0};
}

// The low chunk of an earlier rank precedes both local chunks, its high chunk follows both.
Segment earlier_owner(LocalPiece const& query, LocalPiece const& owner) {
    return {.q_row = query.row,
            .q_rows = query.rows(),
            .kv_row = owner.row,
            .kv_rows = owner.low_rows,
            .diagonal = owner.low_rows - 1};
}

// Both chunks of a later rank lie between the local low chunk and the local high chunk.
Segment later_owner(LocalPiece const& query, LocalPiece const& owner) {
    return {.q_row = query.row + query.low_rows,
            .q_rows = query.high_rows,
            .kv_row = owner.row,
            .kv_rows = owner.rows(),
            .diagonal = owner.rows() - 1};
}

}  // namespace

RingPlan make_ring_plan(std::span<std::int64_t const> lengths, int cp_size, int cp_rank) {
    require(cp_size >= 1 && cp_rank >= 0 && cp_rank < cp_size, ExitCode::internal,
            "CP rank {} is outside a group of {}", cp_rank, cp_size);
    std::vector<LocalStream> streams;
    RingPlan plan{.cp_size = cp_size, .cp_rank = cp_rank, .block_rows = {}, .steps = {}};
    for (int rank = 0; rank < cp_size; ++rank) {
        streams.push_back(local_stream(lengths, cp_size, rank));
        plan.block_rows.push_back(streams.back().rows);
    }
    for (int i = 0; i < cp_size; ++i) {
        RingStep step{.owner = (cp_rank - i + cp_size) % cp_size, .segments = {}};
        for (std::size_t j = 0; j < lengths.size(); ++j) {
            LocalPiece const& query = streams[cp_rank].pieces[j];
            LocalPiece const& owner = streams[step.owner].pieces[j];
            Segment const segment = step.owner == cp_rank  ? own_block(query)
                                    : step.owner < cp_rank ? earlier_owner(query, owner)
                                                           : later_owner(query, owner);
            if (segment.q_rows > 0 && segment.kv_rows > 0) {
                step.segments.push_back(segment);
            }
        }
        plan.steps.push_back(std::move(step));
    }
    return plan;
}

}  // namespace cpstep
