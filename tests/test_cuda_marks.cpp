// Marks of a CUDA backend: the device's clock beside the host's, marks aside beside those on a
// queue.
#define BOOST_TEST_MODULE cuda_marks
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cstdint>
#include <cstdlib>
#include <utility>
#include <vector>

#include "cuda/clock.hpp"
#include "cuda/cuda_backend.hpp"
#include "tests/gpu_fixture.hpp"

using namespace cpstep;

namespace {

/// 256 MiB: tens of microseconds to write.
Buffer large_buffer(Backend& backend) {
    return Buffer(backend, std::int64_t{64} << 20, 1, DType::f32);
}

}  // namespace

BOOST_AUTO_TEST_CASE(marks_are_in_order_and_on_the_clock_of_the_host) {
    if (!gpu_present()) {
        return;
    }
    Backend& backend = gpu(Precision::fp32);
    CudaQueues& queues = *backend.queues();
    Buffer const large = large_buffer(backend);
    for (int turn = 0; turn < 3; ++turn) {
        backend.begin_marks();
        std::int64_t const before = now_ns();
        std::vector<Mark> marks{backend.mark(Queue::compute)};
        for (int i = 0; i < 20; ++i) {
            backend.zero(large);
            marks.push_back(backend.mark(Queue::compute));
        }
        queues.wire_after_compute();
        Mark const posted = backend.mark_posted();
        Mark const waited = backend.mark_waited();
        marks.push_back(backend.mark(Queue::wire));
        backend.synchronize();
        std::int64_t const after = now_ns();
        // The clocks are set beside each other within the time of one empty round trip.
        std::int64_t const alignment = 200'000;
        std::int64_t const aside_error = 10'000;  // what is subtracted from a mark aside is less
        BOOST_TEST(backend.mark_ns(marks.front()) >= before - alignment);
        BOOST_TEST(backend.mark_ns(marks.back()) <= after + alignment);
        for (std::size_t i = 1; i < marks.size(); ++i) {
            BOOST_TEST(marks[i] < 0);
            BOOST_TEST(backend.mark_ns(marks[i]) >= backend.mark_ns(marks[i - 1]));
        }
        BOOST_TEST(backend.mark_ns(marks[20]) - backend.mark_ns(marks[0]) > 20 * 20'000);
        BOOST_TEST(backend.mark_ns(posted) >= backend.mark_ns(marks[20]) - aside_error);
        BOOST_TEST(backend.mark_ns(waited) >= backend.mark_ns(posted));
        BOOST_TEST(backend.mark_ns(waited) <= after + alignment);
        BOOST_TEST(backend.mark_ns(before) == before);
        backend.begin_marks();
        BOOST_CHECK_THROW((void)backend.mark_ns(marks.back()), Error);
    }
    backend.push_range("outer");
    backend.push_range("inner");
    backend.pop_range();
    backend.pop_range();
}

// Medians, since other programs may use the GPU in turns. With work of one length all marks can be
// late by much the same: it varies by more than the 7 us by which they differ.
BOOST_AUTO_TEST_CASE(marks_aside_are_on_average_those_on_the_queue) {
    if (!gpu_present()) {
        return;
    }
    Backend& backend = gpu(Precision::fp32);
    Buffer const large = large_buffer(backend);
    constexpr int turns = 200;
    auto const work = [&](int turn) {  // half of it to all
        backend.zero(large.tensor().row_range(0, large.tensor().rows / 128 * (64 + turn % 64)));
    };
    backend.begin_marks();
    std::vector<std::pair<Mark, Mark>> marks;
    for (int i = 0; i < turns; ++i) {
        work(2 * i);
        Mark here = backend.mark(Queue::compute);
        backend.queues()->wire_after_compute();
        marks.emplace_back(here, backend.mark_posted());
        work(2 * i + 1);  // long enough for the mark aside to be taken
        here = backend.mark(Queue::compute);
        marks.emplace_back(here, backend.mark_waited());
    }
    backend.synchronize();
    std::vector<std::int64_t> late;
    for (auto const& [here, aside] : marks) {
        late.push_back(backend.mark_ns(aside) - backend.mark_ns(here));
    }
    std::ranges::sort(late);
    std::int64_t const first = late[turns / 2];
    std::int64_t const median = late[turns];
    std::int64_t const third = late[turns + turns / 2];
    BOOST_TEST_MESSAGE("quartiles of lateness " << first << ", " << median << ", " << third
                                                << " ns");
    BOOST_TEST(std::abs(median) < 2'000);
    BOOST_TEST(third - first < 8'000);
}
