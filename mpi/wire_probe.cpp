#include "mpi/wire_probe.hpp"

#include <algorithm>
#include <limits>

namespace cpstep {
namespace {

constexpr std::int64_t smoke_floats = std::int64_t{1} << 18;
constexpr double series_seconds = 0.1;
constexpr int most_calls = 200;
constexpr int series = 3;

/// Element i of a rank's message; sums over 2^16 ranks stay exact in a float.
float element(int rank, std::int64_t i) {
    return static_cast<float>(i % 251 + rank);
}

std::vector<float> message_of(int rank, std::int64_t count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) {
        values[static_cast<std::size_t>(i)] = element(rank, i);
    }
    return values;
}

/// NaN is wrong.
template <class Expected>
std::int64_t count_wrong(Backend& backend, Tensor tensor, Expected const& expected) {
    std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
    backend.download(values.data(), tensor);
    std::int64_t wrong = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
        wrong += values[i] == expected(static_cast<std::int64_t>(i)) ? 0 : 1;
    }
    return wrong;
}

void ring(Comm& wire, Tensor send, Tensor receive) {
    int const next = (wire.rank() + 1) % wire.size();
    int const before = (wire.rank() + wire.size() - 1) % wire.size();
    wire.end_call(wire.begin_exchange("doctor.ring", send, next, receive, before));
}

/// Seconds of a call on the slowest rank.
template <class Call>
double time_calls(World& world, Backend& backend, int calls, Call const& call) {
    backend.synchronize();
    world.barrier();
    std::int64_t const begin = now_ns();
    for (int i = 0; i < calls; ++i) {
        call();
    }
    backend.synchronize();
    return world.max(1e-9 * static_cast<double>(now_ns() - begin) / calls);
}

template <class Call>
double best_time(World& world, Backend& backend, Call const& call) {
    (void)time_calls(world, backend, 1, call);  // the first connects
    double const once = time_calls(world, backend, 1, call);
    int const calls = static_cast<int>(
        std::clamp(series_seconds / std::max(once, 1e-9), 1.0, double{most_calls}));
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < series; ++i) {
        best = std::min(best, time_calls(world, backend, calls, call));
    }
    return best;
}

}  // namespace

std::int64_t wrong_values(Backend& backend, Comm& wire) {
    Buffer const own(backend, smoke_floats, 1, DType::f32, "wire test");
    Buffer const received(backend, smoke_floats, 1, DType::f32, "wire test");
    std::vector<float> const message = message_of(wire.rank(), smoke_floats);
    backend.upload(own, message.data());
    backend.zero(received);
    ring(wire, own, received);
    int const before = (wire.rank() + wire.size() - 1) % wire.size();
    std::int64_t wrong =
        count_wrong(backend, received, [&](std::int64_t i) { return element(before, i); });
    wire.all_reduce_sum("doctor.all_reduce", own);
    wrong += count_wrong(backend, own, [&](std::int64_t i) {
        auto const n = static_cast<std::int64_t>(wire.size());
        std::int64_t const of_ranks = n * (n - 1) / 2;
        return static_cast<float>(n * (i % 251) + of_ranks);
    });
    return wrong;
}

std::vector<WireRate> measure_wire(World& world, Backend& backend, Comm& wire,
                                   std::int64_t largest) {
    std::vector<WireRate> rates;
    std::int64_t const floats = largest / 4;
    Buffer const send(backend, floats, 1, DType::f32, "wire benchmark");
    Buffer const receive(backend, floats, 1, DType::f32, "wire benchmark");
    backend.zero(send);
    backend.zero(receive);
    double const n = wire.size();
    for (std::int64_t bytes = smallest_message; bytes <= largest; bytes *= 4) {
        Tensor const sent = send.tensor().row_range(0, bytes / 4);
        Tensor const received = receive.tensor().row_range(0, bytes / 4);
        auto const add = [&](char const* op, double links, double seconds) {
            rates.push_back({.op = op,
                             .bytes = bytes,
                             .seconds = seconds,
                             .bus_gb_per_s = 1e-9 * links * static_cast<double>(bytes) / seconds});
        };
        add("ring", 1, best_time(world, backend, [&] { ring(wire, sent, received); }));
        add("all_reduce", 2 * (n - 1) / n,
            best_time(world, backend, [&] { wire.all_reduce_sum("doctor.all_reduce", sent); }));
    }
    return rates;
}

}  // namespace cpstep
