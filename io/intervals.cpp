#include "io/intervals.hpp"

#include <algorithm>
#include <cstddef>

namespace cpstep {

std::vector<Interval> merged(std::vector<Interval> intervals) {
    std::sort(intervals.begin(), intervals.end(),
              [](Interval const& a, Interval const& b) { return a.begin < b.begin; });
    std::vector<Interval> out;
    for (Interval const& next : intervals) {
        if (out.empty() || next.begin > out.back().end) {
            out.push_back(next);
        } else {
            out.back().end = std::max(out.back().end, next.end);
        }
    }
    return out;
}

std::int64_t length_ns(std::vector<Interval> const& set) {
    std::int64_t total = 0;
    for (Interval const& interval : set) {
        total += interval.end - interval.begin;
    }
    return total;
}

std::vector<Interval> intersection(std::vector<Interval> const& a, std::vector<Interval> const& b) {
    std::vector<Interval> common;
    for (std::size_t i = 0, j = 0; i < a.size() && j < b.size();) {
        Interval const both{std::max(a[i].begin, b[j].begin), std::min(a[i].end, b[j].end)};
        if (both.end > both.begin) {
            common.push_back(both);
        }
        (a[i].end < b[j].end ? i : j)++;
    }
    return common;
}

std::int64_t overlap_ns(std::vector<Interval> const& a, std::vector<Interval> const& b) {
    return length_ns(intersection(a, b));
}

}  // namespace cpstep
