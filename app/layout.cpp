#include "app/layout.hpp"

#include <algorithm>
#include <limits>

#include "cuda/error.hpp"
#include "cuda/fault.hpp"

namespace cpstep {

std::vector<PositionRange> owned_ranges(std::int64_t length, Split split, int holder) {
    require(length >= 0, ExitCode::internal, "sequence length {} is negative", length);
    require(split.group >= 1 && split.ranks >= 1 && split.ranks % split.group == 0,
            ExitCode::internal, "{} CP ranks in groups of {}", split.ranks, split.group);
    require(holder >= 0 && holder < split.holders(), ExitCode::internal,
            "CP rank {} is outside a group of {}", holder, split.holders());
    std::int64_t const fine = std::int64_t{split.chunks()} * split.ranks;
    std::int64_t const rows = (length + fine - 1) / fine * split.group;
    auto const chunk = [&](std::int64_t k) {
        return PositionRange{std::min(k * rows, length), std::min((k + 1) * rows, length)};
    };
    if (split.layout == CpLayout::contiguous) {
        return {chunk(holder)};
    }
    if (planted(Fault::zigzag_chunk_of_another_rank) && holder == 0 && split.holders() > 1) {
        holder = 1;
    }
    std::int64_t const last =
        2 * std::int64_t{split.holders()} - (planted(Fault::zigzag_partner_off_by_one) ? 2 : 1);
    return {chunk(holder), chunk(last - holder)};
}

std::int64_t owned_rows(std::int64_t length, Split split, int holder) {
    std::int64_t rows = 0;
    for (PositionRange const& range : owned_ranges(length, split, holder)) {
        rows += range.size();
    }
    return rows;
}

std::int64_t Block::rows() const {
    std::int64_t sum = 0;
    for (auto const& ranges : sequences) {
        for (PositionRange const& range : ranges) {
            sum += range.size();
        }
    }
    return sum;
}

Block make_block(std::span<std::int64_t const> lengths, Split split, int holder, int chunks) {
    Block block;
    for (std::int64_t const length : lengths) {
        auto ranges = owned_ranges(length, split, holder);
        if (chunks >= 0) {
            ranges.resize(std::min(ranges.size(), static_cast<std::size_t>(chunks)));
        }
        block.sequences.push_back(std::move(ranges));
    }
    return block;
}

std::vector<std::int32_t> rows_in(Block const& whole, std::span<Block const> parts) {
    // For each sequence: where each range of the parts begins in the joined streams.
    struct Piece {
        PositionRange range;
        std::int64_t row;
    };
    std::vector<std::vector<Piece>> pieces(whole.sequences.size());
    std::int64_t row = 0;
    for (Block const& part : parts) {
        for (std::size_t j = 0; j < part.sequences.size(); ++j) {
            for (PositionRange const& range : part.sequences[j]) {
                pieces.at(j).push_back({range, row});
                row += range.size();
            }
        }
    }
    require(row <= std::numeric_limits<std::int32_t>::max(), ExitCode::internal,
            "{} rows in one micro-batch", row);
    std::vector<std::int32_t> index;
    index.reserve(static_cast<std::size_t>(whole.rows()));
    for (std::size_t j = 0; j < whole.sequences.size(); ++j) {
        for (PositionRange const& range : whole.sequences[j]) {
            for (std::int64_t t = range.begin; t < range.end;) {
                auto const piece = std::find_if(
                    pieces[j].begin(), pieces[j].end(),
                    [&](Piece const& p) { return p.range.begin <= t && t < p.range.end; });
                require(piece != pieces[j].end(), ExitCode::internal,
                        "position {} of sequence {} is in no part", t, j);
                for (std::int64_t const end = std::min(range.end, piece->range.end); t < end; ++t) {
                    index.push_back(static_cast<std::int32_t>(piece->row + t - piece->range.begin));
                }
            }
        }
    }
    return index;
}

}  // namespace cpstep
