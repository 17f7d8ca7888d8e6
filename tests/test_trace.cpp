#define BOOST_TEST_MODULE trace
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "io/trace.hpp"
#include "tests/scratch.hpp"

namespace {

namespace fs = std::filesystem;
using namespace cpstep;
using cpstep::test::Folder;

template <class T>
std::vector<T> records(H5File const& in, std::string const& path,
                       std::vector<H5Column> const& columns) {
    std::vector<std::byte> const bytes = in.read_records(path, columns);
    std::vector<T> rows(bytes.size() / sizeof(T));
    BOOST_REQUIRE_EQUAL(rows.size() * sizeof(T), bytes.size());
    if (!rows.empty()) {
        std::memcpy(rows.data(), bytes.data(), bytes.size());
    }
    return rows;
}

Event event(SpanKind kind, std::int16_t stream, std::int64_t begin, std::int64_t end) {
    return {.kind = kind, .stream = stream, .t0_ns = begin, .dur_ns = end - begin};
}
Event comm(std::int64_t begin, std::int64_t end) {
    return event(SpanKind::comm, 1, begin, end);
}
Event compute(std::int64_t begin, std::int64_t end) {
    return event(SpanKind::compute, 0, begin, end);
}

CommRecord ring_record(std::int64_t posted, std::int64_t waited, std::int64_t done) {
    CommRecord record{
        .label = "ring.kv", .op = "exchange", .group_size = 2, .peer = 1, .bytes = 4096};
    record.posted = posted;
    record.waited = waited;
    record.done = done;
    return record;
}

RankFileInfo info_of(int rank) {
    return {.rank = rank,
            .world = 4,
            .host = "node",
            .run_id = "run-1",
            .epoch_ns = now_ns(),
            .epoch_unix_ns = 1700000000000000000};
}

/// Two spans and a communication call; 5 events with the step itself.
void one_step(Trace& trace, std::string const& variant, int block = -1) {
    trace.begin_step(variant, TraceDetail::layers, block);
    {
        Span const pass = trace.span(SpanKind::pass, "forward");
        Span const work = trace.span(SpanKind::compute, "attention");
        std::int64_t const now = now_ns();
        trace.on_comm(ring_record(now, now + 10, now + 30));
    }
    trace.end_step();
}

/// Runs the reader in Python, where there is one.
void read_with_h5py(fs::path const& file, int steps) {
    if (!test::has_h5py()) {
        BOOST_TEST_MESSAGE(
            "SKIPPED: no /usr/bin/python3 with h5py; the rank file was not read from Python");
        return;
    }
    std::string const command = std::string("/usr/bin/python3 ") + CPSTEP_SOURCE_DIR +
                                "/tests/read_rank_file.py " + file.string() + " " +
                                std::to_string(steps);
    BOOST_TEST(std::system(command.c_str()) == 0, command);
}

}  // namespace

BOOST_AUTO_TEST_CASE(exposed_communication_is_what_no_compute_covers) {
    BOOST_TEST(exposed_comm_ns({}) == 0);
    BOOST_TEST(exposed_comm_ns({compute(0, 100)}) == 0);
    BOOST_TEST(exposed_comm_ns({comm(0, 100)}) == 100);
    BOOST_TEST(exposed_comm_ns({comm(0, 100), compute(100, 200)}) == 100);
    BOOST_TEST(exposed_comm_ns({comm(10, 20), compute(0, 100)}) == 0);
    BOOST_TEST(exposed_comm_ns({comm(0, 100), compute(10, 20), compute(30, 50)}) == 70);
    BOOST_TEST(exposed_comm_ns({comm(50, 150), compute(0, 60), compute(140, 200)}) == 80);
}

BOOST_AUTO_TEST_CASE(overlapping_spans_are_counted_once) {
    BOOST_TEST(exposed_comm_ns({comm(0, 60), comm(40, 100), comm(10, 20)}) == 100);
    BOOST_TEST(exposed_comm_ns({comm(0, 100), compute(0, 60), compute(50, 70), compute(10, 20)}) ==
               30);
    BOOST_TEST(
        exposed_comm_ns({comm(200, 300), comm(0, 100), compute(250, 400), compute(50, 210)}) == 90);
    // Only leaves count: passes, waits and steps cover nothing.
    BOOST_TEST(exposed_comm_ns({comm(0, 100), event(SpanKind::pass, 0, 0, 100),
                                event(SpanKind::wait, 0, 0, 100),
                                event(SpanKind::step, 0, 0, 100)}) == 100);
}

BOOST_AUTO_TEST_CASE(a_step_of_passes_is_exposed_where_it_waits) {
    auto const wait = [](std::int64_t begin, std::int64_t end) {
        return event(SpanKind::wait, 0, begin, end);
    };
    BOOST_TEST(exposed_comm_ns({comm(0, 100), wait(60, 100)}) == 40);
    BOOST_TEST(exposed_comm_ns({comm(0, 100), comm(50, 150), wait(90, 100), wait(90, 160)}) == 60);
    BOOST_TEST(exposed_comm_ns({comm(0, 100), wait(100, 100), event(SpanKind::pass, 0, 0, 200)}) ==
               0);
    Trace trace;
    trace.begin_step("cp2", TraceDetail::passes);
    {
        Span const pass = trace.span(SpanKind::pass, "backward");
        Span const layer = trace.span(SpanKind::pass, "layer.attention");
        Span const leaf = trace.span(SpanKind::compute, "attention.forward");
    }
    trace.end_step();
    BOOST_REQUIRE_EQUAL(trace.last_step().size(), 2U);
    BOOST_TEST(trace.names().at(trace.last_step()[0].name) == "backward");
    trace.begin_step("cp2");
    {
        Span const leaf = trace.span(SpanKind::compute, "attention.forward");
    }
    trace.end_step();
    BOOST_TEST(trace.last_step().size() == 2U);
}

BOOST_AUTO_TEST_CASE(calls_of_one_queue_begin_where_the_one_before_ends) {
    std::vector<Event> events{comm(50, 200), comm(0, 100), comm(60, 220), comm(300, 310)};
    one_after_another({&events[0], &events[1], &events[2], &events[3]});
    std::vector<std::pair<std::int64_t, std::int64_t>> const expected{
        {100, 100}, {0, 100}, {200, 20}, {300, 10}};
    for (std::size_t i = 0; i < events.size(); ++i) {
        BOOST_TEST(events[i].t0_ns == expected[i].first);
        BOOST_TEST(events[i].dur_ns == expected[i].second);
    }
    one_after_another({});
}

BOOST_AUTO_TEST_CASE(a_step_without_a_trace_asks_for_no_times_and_has_its_own) {
    Trace trace;
    BOOST_TEST(!trace.wants_times());
    trace.begin_step("cp2", TraceDetail::off);
    BOOST_TEST(!trace.wants_times());
    {
        Span const pass = trace.span(SpanKind::pass, "backward");
    }
    trace.on_comm(ring_record(1000, 1400, 1500));
    trace.end_step();
    BOOST_REQUIRE_EQUAL(trace.last_step().size(), 1U);
    BOOST_TEST((trace.last_step()[0].kind == SpanKind::step));
    trace.begin_step("cp2", TraceDetail::passes);
    BOOST_TEST(trace.wants_times());
    trace.end_step();
}

BOOST_AUTO_TEST_CASE(a_call_gives_its_time_on_the_wire_and_the_time_stood_waiting) {
    Trace trace;
    trace.begin_step("cp2");
    trace.on_comm(ring_record(1000, 1400, 1500));
    trace.end_step();
    std::vector<Event> const& events = trace.last_step();
    BOOST_REQUIRE_EQUAL(events.size(), 3U);
    BOOST_TEST((events[0].kind == SpanKind::comm && events[1].kind == SpanKind::wait));
    BOOST_TEST(events[0].stream == 1);
    BOOST_TEST(events[0].t0_ns == 1000);
    BOOST_TEST(events[0].dur_ns == 500);
    BOOST_TEST(events[0].bytes == 4096U);
    BOOST_TEST(events[0].peer == 1);
    BOOST_TEST(trace.names().at(events[0].name) == "ring.kv");
    BOOST_TEST(events[1].stream == 0);
    BOOST_TEST(events[1].t0_ns == 1400);
    BOOST_TEST(events[1].dur_ns == 100);
    BOOST_TEST((events[2].kind == SpanKind::step));
}

BOOST_AUTO_TEST_CASE(nobody_waits_for_a_call_that_has_ended_before) {
    Trace trace;
    trace.begin_step("cp2");
    trace.on_comm(ring_record(1000, 1400, 1300));
    trace.end_step();
    BOOST_TEST(trace.last_step().at(0).dur_ns == 300);
    BOOST_TEST(trace.last_step().at(1).t0_ns == 1400);
    BOOST_TEST(trace.last_step().at(1).dur_ns == 0);
}

BOOST_AUTO_TEST_CASE(spans_nest_and_steps_are_numbered_without_a_file) {
    Trace trace;
    {
        Span const outside = trace.span(SpanKind::compute, "load");
    }
    {
        Span const nothing(nullptr, SpanKind::compute, "untraced");
    }
    one_step(trace, "cp1");
    one_step(trace, "cp2");
    std::vector<Event> const& events = trace.last_step();
    BOOST_REQUIRE_EQUAL(events.size(), 5U);
    BOOST_TEST(trace.event_count() == 10);
    Event const& compute_event = events[2];
    Event const& pass_event = events[3];
    Event const& step_event = events[4];
    BOOST_TEST((compute_event.kind == SpanKind::compute && pass_event.kind == SpanKind::pass));
    BOOST_TEST(compute_event.t0_ns >= pass_event.t0_ns);
    BOOST_TEST(pass_event.t0_ns >= step_event.t0_ns);
    BOOST_TEST(pass_event.t0_ns + pass_event.dur_ns <= step_event.t0_ns + step_event.dur_ns);
    BOOST_TEST(trace.names().at(step_event.name) == "cp2");
    for (Event const& each : events) {
        BOOST_TEST(each.step == 1U);
    }
    BOOST_CHECK_THROW(trace.end_step(), Error);
    trace.begin_step("cp1");
    BOOST_CHECK_THROW(trace.begin_step("cp1"), Error);
}

BOOST_AUTO_TEST_CASE(the_rank_file_holds_events_names_steps_and_shards) {
    Folder const folder;
    fs::path const path = folder.path / "ranks/001/rank00258.h5";
    BOOST_TEST(rank_file_name(258) == "ranks/001/rank00258.h5");
    BOOST_TEST(rank_file_name(0) == "ranks/000/rank00000.h5");
    RankFileInfo const info = info_of(258);
    {
        Trace trace(folder.path, info,
                    {{"cp2/log_probs", 3, "nat"}, {"cp2/entropy", 2, "nat"}, {"cp1/none", 0, "1"}},
                    {{"cp2/response_index", {0, 1, 16777217}}});
        one_step(trace, "cp1");
        one_step(trace, "cp2", 3);
        trace.write_shard("cp2/log_probs", std::vector<float>{-1, -2, -3});
        BOOST_CHECK_THROW(trace.write_shard("cp2/nope", std::vector<float>{1}), Error);
        trace.close();
        trace.close();
    }
    H5File const in = H5File::open(path);
    BOOST_TEST(std::get<std::string>(in.read_attribute("/", "format")) == "cpstep-trace");
    BOOST_TEST(std::get<std::int64_t>(in.read_attribute("/", "format_version")) == 1);
    BOOST_TEST(std::get<std::int64_t>(in.read_attribute("/", "rank")) == 258);
    BOOST_TEST(std::get<std::int64_t>(in.read_attribute("/", "epoch_ns")) == info.epoch_ns);
    BOOST_TEST(std::get<std::string>(in.read_attribute("/", "run_id")) == "run-1");
    BOOST_TEST(in.read_strings("/names") ==
               (std::vector<std::string>{"forward", "attention", "ring.kv", "cp1", "cp2"}));
    auto const events = records<Event>(in, "/events", event_columns());
    auto const steps = records<StepRecord>(in, "/steps", step_columns());
    BOOST_REQUIRE_EQUAL(events.size(), 10U);
    BOOST_REQUIRE_EQUAL(steps.size(), 2U);
    BOOST_TEST(steps[1].step == 1U);
    BOOST_TEST(steps[1].variant == 4U);
    BOOST_TEST(steps[1].events == 5U);
    BOOST_TEST((steps[0].block == -1 && steps[1].block == 3));
    BOOST_TEST((steps[0].detail == 0U && steps[1].sums.bytes == 4096U));
    BOOST_TEST(steps[1].sums.comm_ns == 30);
    BOOST_TEST((events[4].kind == SpanKind::step && events[9].kind == SpanKind::step));
    BOOST_TEST(events[9].t0_ns == steps[1].t0_ns);
    BOOST_TEST(events[9].dur_ns == steps[1].dur_ns);
    BOOST_TEST(events[0].t0_ns >= 0);  // since the epoch, not the boot
    BOOST_TEST(events[0].t0_ns < std::int64_t{60} * 1000000000);
    BOOST_TEST(in.read_f32("/tensors/cp2/log_probs") == (std::vector<float>{-1, -2, -3}));
    std::vector<float> const unwritten = in.read_f32("/tensors/cp2/entropy");
    BOOST_REQUIRE_EQUAL(unwritten.size(), 2U);
    BOOST_TEST((std::isnan(unwritten[0]) && std::isnan(unwritten[1])));
    BOOST_TEST(in.read_i64("/tensors/cp2/response_index") ==
               (std::vector<std::int64_t>{0, 1, 16777217}));  // float would lose the last one
    BOOST_TEST(in.read_f32("/tensors/cp1/none").empty());
    read_with_h5py(path, 2);
}

BOOST_AUTO_TEST_CASE(a_kill_in_the_fourth_step_leaves_three_whole_steps) {
    Folder const folder;
    ::pid_t const child = ::fork();
    if (child == 0) {
        Trace trace(folder.path, info_of(0), {{"cp1/log_probs", 100, "nat"}}, {});
        for (int step = 0; step < 3; ++step) {
            one_step(trace, "cp1");
        }
        trace.begin_step("cp1");
        Span const span = trace.span(SpanKind::compute, "attention");
        ::raise(SIGKILL);
    }
    test::wait_for_kill(child);
    fs::path const path = folder.path / rank_file_name(0);
    read_with_h5py(path, 3);
    H5File const in = H5File::open(path);
    auto const events = records<Event>(in, "/events", event_columns());
    BOOST_TEST(records<StepRecord>(in, "/steps", step_columns()).size() == 3U);
    BOOST_REQUIRE_EQUAL(events.size(), 15U);
    BOOST_TEST(events[14].step == 2U);
    BOOST_TEST(in.read_strings("/names").size() == 4U);
    BOOST_TEST(std::isnan(in.read_f32("/tensors/cp1/log_probs").at(99)));
}

BOOST_AUTO_TEST_CASE(a_kill_at_any_moment_leaves_every_listed_step_whole) {
    for (int const milliseconds : {3, 7, 11, 19, 31}) {
        Folder const folder;
        fs::path const path = folder.path / rank_file_name(0);
        int ready[2];
        BOOST_REQUIRE(::pipe(ready) == 0);
        ::pid_t const child = ::fork();
        if (child == 0) {
            Trace trace(folder.path, info_of(0), {}, {});
            one_step(trace, "cp1");
            ::close(ready[1]);
            for (;;) {
                one_step(trace, "cp1");
            }
        }
        ::close(ready[1]);
        char none = 0;
        BOOST_REQUIRE(::read(ready[0], &none, 1) == 0);  // the first step is in the file
        ::close(ready[0]);
        std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
        ::kill(child, SIGKILL);
        test::wait_for_kill(child);
        H5File const in = H5File::open(path);
        auto const events = records<Event>(in, "/events", event_columns());
        std::uint64_t listed = 0;
        for (StepRecord const& row : records<StepRecord>(in, "/steps", step_columns())) {
            BOOST_REQUIRE(listed + row.events <= events.size());
            BOOST_TEST(events[listed].step == row.step);
            listed += row.events;
            BOOST_TEST((events[listed - 1].kind == SpanKind::step));
        }
        BOOST_TEST(listed > 0U);
    }
}

BOOST_AUTO_TEST_CASE(a_folder_that_cannot_be_made_is_an_output_error) {
    BOOST_CHECK_EXCEPTION(Trace("/dev/null/run", info_of(0), {}, {}), Error,
                          [](Error const& error) { return error.code() == ExitCode::output; });
}
