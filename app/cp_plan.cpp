#include "app/cp_plan.hpp"

#include <algorithm>
#include <optional>

#include "cuda/error.hpp"
#include "cuda/fault.hpp"

namespace cpstep {

namespace {

/// Keys of one sequence, in position order, from row `row` on, seen by queries at [range).
Segment range_segment(std::vector<PositionRange> const& keys, std::int64_t row,
                      PositionRange range) {
    std::int64_t before = 0;
    std::int64_t covered = 0;
    for (PositionRange const& key : keys) {
        before += std::max<std::int64_t>(std::min(key.end, range.begin) - key.begin, 0);
        covered += std::max<std::int64_t>(
            std::min(key.end, range.end) - std::max(key.begin, range.begin), 0);
    }
    require(covered == 0 || covered >= range.size(), ExitCode::internal,
            "keys cover {} of the query positions [{}, {})", covered, range.begin, range.end);
    bool const diagonal = covered > 0;
    std::int64_t const extra = planted(Fault::diagonal_off_by_one) ? 1 : 0;
    return {.q_row = 0,
            .q_rows = range.size(),
            .kv_row = row,
            .kv_rows = before + (diagonal ? range.size() : 0),
            .diagonal = diagonal ? before + extra : before - 1};
}

/// One segment that says the same as a and then b, whose query rows follow those of a.
std::optional<Segment> joined(Segment const& a, Segment const& b) {
    Segment const both{.q_row = a.q_row,
                       .q_rows = a.q_rows + b.q_rows,
                       .kv_row = a.kv_row,
                       .kv_rows = std::max(a.kv_rows, b.kv_rows),
                       .diagonal = a.diagonal};
    bool const follows = a.kv_row == b.kv_row && a.q_row + a.q_rows == b.q_row;
    bool const as_a = visible_keys(both, a.q_rows - 1) == visible_keys(a, a.q_rows - 1);
    bool const as_b = visible_keys(both, a.q_rows) == visible_keys(b, 0) &&
                      visible_keys(both, both.q_rows - 1) == visible_keys(b, b.q_rows - 1);
    return follows && as_a && as_b ? std::optional(both) : std::nullopt;
}

int modulo(int value, int size) {
    return (value % size + size) % size;
}

std::vector<std::int32_t> inverse(std::vector<std::int32_t> const& permutation) {
    std::vector<std::int32_t> result(permutation.size());
    for (std::size_t i = 0; i < permutation.size(); ++i) {
        result.at(static_cast<std::size_t>(permutation[i])) = static_cast<std::int32_t>(i);
    }
    return result;
}

/// Rows of chunks [from, to) of a block in the stream of its leading `at_hand` chunks.
std::vector<std::int32_t> chunk_rows(std::span<std::int64_t const> lengths, Split split, int owner,
                                     int at_hand, int from, int to) {
    Block const whole = make_block(lengths, split, owner, at_hand);
    Block part = make_block(lengths, split, owner, to);
    for (auto& ranges : part.sequences) {
        ranges.erase(ranges.begin(), ranges.begin() + from);
    }
    return rows_in(part, std::span(&whole, 1));
}

struct Ring {
    std::span<std::int64_t const> lengths;
    Split split;

    int size() const { return split.holders(); }
    int after(int rank, int hops) const {
        return modulo(rank + ring_direction(split.layout) * hops, size());
    }
    int needed(int rank, int owner) const {
        return rank == owner ? split.chunks() : needed_chunks(split.layout, rank, owner);
    }
    std::vector<std::int32_t> rows(int owner, int at_hand, int from, int to) const {
        return chunk_rows(lengths, split, owner, at_hand, from, to);
    }

    RingStep step(int rank, int i) const {
        RingStep step;
        step.owner = after(rank, -i);
        step.chunks = needed(rank, step.owner);
        Block const keys = make_block(lengths, split, step.owner, step.chunks);
        step.rows = keys.rows();
        step.segments = causal_segments(make_block(lengths, split, rank), keys);
        int const next = after(rank, 1);
        step.next_is_home = next == step.owner;
        step.pass_on = step.next_is_home ? 0 : std::min(needed(next, step.owner), step.chunks);
        if (step.pass_on > 0 && step.pass_on < step.chunks) {
            step.pass_rows = rows(step.owner, step.chunks, 0, step.pass_on);
        }
        step.sends_home = i > 0 && !step.next_is_home && step.chunks > step.pass_on;
        if (step.sends_home) {
            step.home_rows = rows(step.owner, step.chunks, step.pass_on, step.chunks);
        }
        int const visitor = after(rank, i);  // works on this rank's block at step i
        int const further = after(visitor, 1);
        bool const straight =
            i > 0 && further != rank && needed(visitor, rank) > needed(further, rank);
        step.home_from = straight ? visitor : -1;
        return step;
    }
};

/// The g-th gap of each sequence.
Block gap_block(Block const& own, std::size_t g) {
    Block gap;
    for (std::vector<PositionRange> const& ranges : own.sequences) {
        std::int64_t const begin = g == 0 ? 0 : ranges.at(g - 1).end;
        PositionRange const range = ranges.at(g);
        bool const seen = range.size() > 0 && range.begin > begin;
        gap.sequences.push_back({{begin, seen ? range.begin : begin}});
    }
    return gap;
}

/// What ranks first .. first + count - 1 own.
std::vector<Block> streams_of(std::span<std::int64_t const> lengths, Split split, int first,
                              int count) {
    std::vector<Block> streams;
    for (int rank = first; rank < first + count; ++rank) {
        streams.push_back(make_block(lengths, split, rank));
    }
    return streams;
}

std::vector<std::int64_t> rows_of(std::vector<Block> const& streams) {
    std::vector<std::int64_t> rows;
    for (Block const& stream : streams) {
        rows.push_back(stream.rows());
    }
    return rows;
}

/// `streams`: of all ranks.
GatherPlan make_gather_plan(std::vector<Block> const& streams, Split split, int rank) {
    Block const& own = streams.at(static_cast<std::size_t>(rank));
    GatherPlan plan;
    plan.own = causal_segments(own, own);
    for (std::size_t g = 0; g < static_cast<std::size_t>(split.chunks()); ++g) {
        Block const gap = gap_block(own, g);
        if (gap.rows() > 0) {
            plan.gaps.push_back({gap.rows(), causal_segments(own, gap)});
            std::vector<std::int32_t> const rows = rows_in(gap, streams);
            plan.seen.insert(plan.seen.end(), rows.begin(), rows.end());
        }
    }
    return plan;
}

}  // namespace

std::vector<Segment> causal_segments(Block const& q, Block const& k) {
    std::vector<Segment> segments;
    std::int64_t q_row = 0;
    std::int64_t kv_row = 0;
    for (std::size_t j = 0; j < q.sequences.size(); ++j) {
        std::size_t const first = segments.size();
        for (PositionRange const& range : q.sequences[j]) {
            Segment segment = range_segment(k.sequences.at(j), kv_row, range);
            segment.q_row = q_row;
            q_row += range.size();
            if (segment.q_rows == 0 || segment.kv_rows == 0) {
                continue;
            }
            auto const both = segments.size() > first ? joined(segments.back(), segment)
                                                      : std::optional<Segment>();
            if (both) {
                segments.back() = *both;
            } else {
                segments.push_back(segment);
            }
        }
        for (PositionRange const& range : k.sequences[j]) {
            kv_row += range.size();
        }
    }
    return segments;
}

int needed_chunks(CpLayout layout, int rank, int owner) {
    if (layout == CpLayout::zigzag) {
        return rank < owner ? 2 : 1;
    }
    return owner < rank ? 1 : 0;
}

int ring_direction(CpLayout layout) {
    return layout == CpLayout::zigzag ? -1 : 1;
}

RingPlan make_ring_plan(std::span<std::int64_t const> lengths, Split split, int rank) {
    Ring const ring{lengths, split};
    require(rank >= 0 && rank < ring.size(), ExitCode::internal,
            "CP rank {} is outside a group of {}", rank, ring.size());
    RingPlan plan;
    plan.size = ring.size();
    plan.rank = rank;
    plan.next = ring.after(rank, 1);
    plan.previous = ring.after(rank, -1);
    for (int i = 0; i < plan.size; ++i) {
        plan.steps.push_back(ring.step(rank, i));
    }
    if (plan.size == 1) {
        return plan;
    }
    int const by_ring = ring.needed(plan.previous, rank);
    plan.receives_by_ring = by_ring > 0;
    plan.home_by_ring = ring.rows(rank, split.chunks(), 0, by_ring);
    for (RingStep const& step : plan.steps) {
        if (step.home_from >= 0) {
            int const to = ring.needed(step.home_from, rank);
            int const from = ring.needed(ring.after(step.home_from, 1), rank);
            plan.home_straight = ring.rows(rank, split.chunks(), from, to);
        }
    }
    return plan;
}

JoinPlan make_join_plan(std::span<std::int64_t const> lengths, Split split, int first, int count) {
    JoinPlan plan;
    std::vector<Block> const parts = streams_of(lengths, split, first, count);
    plan.rows = rows_of(parts);
    split.group = count;
    plan.ordered = rows_in(make_block(lengths, split, first / count), parts);
    plan.joined = inverse(plan.ordered);
    return plan;
}

CpPlan make_cp_plan(std::span<std::int64_t const> lengths, CpConfig const& config, int cp_rank) {
    Split const own{.layout = config.layout, .ranks = config.size};
    CpPlan plan;
    plan.config = config;
    plan.rank = cp_rank;
    plan.lengths.assign(lengths.begin(), lengths.end());
    Block const queries = make_block(lengths, own, cp_rank);
    plan.own_rows = queries.rows();
    if (config.method == CpMethod::all_gather && config.size > 1) {
        std::vector<Block> const streams = streams_of(lengths, own, 0, config.size);
        plan.join.rows = rows_of(streams);
        plan.gather = make_gather_plan(streams, own, cp_rank);
        return plan;
    }
    if (config.a2a > 1) {
        plan.join = make_join_plan(lengths, own, cp_rank / config.a2a * config.a2a, config.a2a);
    }
    Split const ring{.layout = own.layout, .ranks = own.ranks, .group = config.a2a};
    plan.ring = make_ring_plan(lengths, ring, cp_rank / config.a2a);
    return plan;
}

std::int64_t CpPlan::longest_keys() const {
    std::int64_t longest = own_rows;
    for (GatherGap const& gap : gather.gaps) {
        longest = std::max(longest, gap.rows);
    }
    for (RingStep const& step : ring.steps) {
        longest = std::max(longest, step.rows);
    }
    return longest;
}

}  // namespace cpstep
