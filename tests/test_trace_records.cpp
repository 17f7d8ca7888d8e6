#define BOOST_TEST_MODULE trace_records
#include <boost/test/unit_test.hpp>

#include "io/intervals.hpp"
#include "io/trace_records.hpp"

namespace {

using namespace cpstep;

Event event(SpanKind kind, std::int16_t stream, std::int64_t begin, std::int64_t end,
            std::uint64_t bytes = 0) {
    return {.kind = kind, .stream = stream, .t0_ns = begin, .dur_ns = end - begin, .bytes = bytes};
}

}  // namespace

BOOST_AUTO_TEST_CASE(unions_and_intersections_count_each_moment_once) {
    std::vector<Interval> const a = merged({{30, 40}, {0, 10}, {5, 20}, {20, 25}, {32, 35}});
    BOOST_TEST(a.size() == 2U);
    BOOST_TEST(length_ns(a) == 35);
    BOOST_TEST(overlap_ns(a, merged({{24, 31}, {39, 100}})) == 3);
    BOOST_TEST(overlap_ns(a, {}) == 0);
}

BOOST_AUTO_TEST_CASE(a_step_of_leaves_adds_up_by_hand) {
    // compute 0-40 50-70, comm 30-60, wait 40-60, step of 100: idle is 70-100.
    std::vector<Event> const events{
        event(SpanKind::compute, 0, 0, 40),   event(SpanKind::compute, 0, 50, 70),
        event(SpanKind::comm, 1, 30, 60, 64), event(SpanKind::wait, 0, 40, 60),
        event(SpanKind::pass, 0, 0, 90),      event(SpanKind::step, 0, 0, 100)};
    StepSums const sums = sums_of(events, 100);
    BOOST_TEST(sums.compute_ns == 60);
    BOOST_TEST(sums.comm_ns == 30);
    BOOST_TEST(sums.exposed_ns == 10);
    BOOST_TEST(sums.wait_ns == 20);
    BOOST_TEST(sums.idle_ns == 30);
    BOOST_TEST(sums.bytes == 64U);
}

BOOST_AUTO_TEST_CASE(a_step_of_passes_computes_where_they_do_not_wait) {
    std::vector<Event> const events{
        event(SpanKind::pass, 0, 0, 80), event(SpanKind::comm, 1, 30, 60, 64),
        event(SpanKind::wait, 0, 50, 65), event(SpanKind::step, 0, 0, 100)};
    StepSums const sums = sums_of(events, 100);
    BOOST_TEST(sums.compute_ns == 65);
    BOOST_TEST(sums.exposed_ns == 10);
    BOOST_TEST(sums.wait_ns == 15);
    BOOST_TEST(sums.idle_ns == 20);
}

BOOST_AUTO_TEST_CASE(an_untraced_step_is_all_idle) {
    StepSums const sums = sums_of({event(SpanKind::step, 0, 0, 100)}, 100);
    BOOST_TEST((sums.compute_ns == 0 && sums.comm_ns == 0 && sums.idle_ns == 100));
}
