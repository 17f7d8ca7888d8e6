#include "app/layout.hpp"

#include <algorithm>

#include "cuda/error.hpp"

namespace cpstep {

std::vector<PositionRange> owned_ranges(std::int64_t length, int cp_size, int cp_rank) {
    require(length >= 0, ExitCode::internal, "sequence length {} is negative", length);
    require(cp_size >= 1 && cp_rank >= 0 && cp_rank < cp_size, ExitCode::internal,
            "CP rank {} is outside a group of {}", cp_rank, cp_size);
    std::int64_t const chunks = 2 * std::int64_t{cp_size};
    std::int64_t const rows = (length + chunks - 1) / chunks;
    auto const chunk = [&](std::int64_t k) {
        return PositionRange{std::min(k * rows, length), std::min((k + 1) * rows, length)};
    };
    return {chunk(cp_rank), chunk(chunks - 1 - cp_rank)};
}

std::int64_t owned_rows(std::int64_t length, int cp_size, int cp_rank) {
    std::int64_t rows = 0;
    for (PositionRange const& range : owned_ranges(length, cp_size, cp_rank)) {
        rows += range.size();
    }
    return rows;
}

}  // namespace cpstep
