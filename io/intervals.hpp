// Unions of time intervals.
#pragma once

#include <cstdint>
#include <vector>

namespace cpstep {

struct Interval {
    std::int64_t begin;
    std::int64_t end;
};

/// Union as disjoint intervals in order of time; the other functions take such.
std::vector<Interval> merged(std::vector<Interval> intervals);
std::int64_t length_ns(std::vector<Interval> const& set);
std::vector<Interval> intersection(std::vector<Interval> const& a, std::vector<Interval> const& b);
/// Length of the intersection.
std::int64_t overlap_ns(std::vector<Interval> const& a, std::vector<Interval> const& b);

}  // namespace cpstep
