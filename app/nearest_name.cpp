#include "app/nearest_name.hpp"

#include <algorithm>
#include <cstddef>

namespace cpstep {

namespace {

/// Optimal string alignment: insert, delete, replace, swap neighbours (Damerau 1964).
std::size_t edit_distance(std::string const& a, std::string const& b) {
    std::vector<std::vector<std::size_t>> d(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
    for (std::size_t i = 0; i <= a.size(); ++i) {
        for (std::size_t j = 0; j <= b.size(); ++j) {
            if (i == 0 || j == 0) {
                d[i][j] = i + j;
                continue;
            }
            std::size_t const changed = a[i - 1] != b[j - 1] ? 1 : 0;
            d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + changed});
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
                d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
            }
        }
    }
    return d[a.size()][b.size()];
}

}  // namespace

std::string nearest_name(std::string const& name, std::vector<std::string> const& names) {
    std::size_t best_distance = std::max<std::size_t>(2, name.size() / 3) + 1;
    std::string best;
    for (std::string const& candidate : names) {
        std::size_t const distance = edit_distance(name, candidate);
        // A distance of the whole length shares no letter.
        if (distance < best_distance && distance < std::max(name.size(), candidate.size())) {
            best_distance = distance;
            best = candidate;
        }
    }
    return best;
}

}  // namespace cpstep
