// The wires of this machine under one roof, for tests that hold them against each other. Without a
// GPU the staged wire runs over the host's memory; with fewer GPUs than ranks they share.
#pragma once

#include <cstdio>
#include <optional>

#include "cuda/cuda_device.hpp"
#include "mpi/comm_bodies.hpp"
#include "mpi/wires.hpp"
#include "tests/groups.hpp"

namespace cpstep::test {

using Sizes = std::vector<std::int64_t>;

inline std::size_t at(std::int64_t i) {
    return static_cast<std::size_t>(i);
}

inline std::int64_t total(Sizes const& sizes) {
    return std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
}

inline bool has_gpu() {
    std::string why;
    return cuda_device_count(why) > 0;
}

inline std::unique_ptr<Backend> make_backend(std::chrono::milliseconds deadline) {
    std::string why;
    int const count = cuda_device_count(why);
    if (count == 0) {
        return make_host_backend(1);
    }
    return make_cuda_backend({.ordinal = test_world().local_rank() % count,
                              .precision = Precision::fp32,
                              .attention = AttentionBackend::reference,
                              .deadline = deadline});
}

/// One wire for the memory of one backend.
struct Wire {
    std::string name;
    Backend& backend;
    std::unique_ptr<Wires> wires;  // none: staged over the host's wire
    bool tells_sizes = true;       // a size that does not fit is an error
    bool tells_calls = false;      // so is another call than the peer's

    std::unique_ptr<Comm> group(std::vector<int> const& members) const {
        if (wires != nullptr) {
            return wires->form(members);
        }
        return make_staged_comm(backend, test_world().make_host_comm(members));
    }
    std::unique_ptr<Comm> everyone() const {
        std::vector<int> ranks(at(test_world().size()));
        std::iota(ranks.begin(), ranks.end(), 0);
        return group(ranks);
    }
};

inline std::vector<Wire> wires_of(Backend& backend) {
    std::vector<Wire> all;
    if (backend.queues() == nullptr) {
        all.push_back(
            {.name = "host", .backend = backend, .wires = make_wires(test_world(), backend, {})});
        all.push_back({.name = "staged", .backend = backend, .wires = nullptr});
        return all;
    }
    for (Transport const transport : {Transport::mpi, Transport::ipc, Transport::nccl}) {
        try {
            all.push_back({.name = std::string(name_of(transport)),
                           .backend = backend,
                           .wires = make_wires(test_world(), backend,
                                               {.transport = transport, .allow_gpu_sharing = true}),
                           .tells_sizes = transport != Transport::nccl,
                           .tells_calls = transport == Transport::ipc});
        } catch (AgreedError const& error) {
            BOOST_REQUIRE_MESSAGE(error.code() == ExitCode::environment, error.what());
            std::printf("SKIPPED: wire %s: %s\n", std::string(name_of(transport)).c_str(),
                        error.what());
        }
    }
    return all;
}

/// Lives until the last test, so that wires end before MPI does.
struct Bench {
    std::unique_ptr<Backend> backend = make_backend(std::chrono::seconds(60));
    std::vector<Wire> wires = wires_of(*backend);
};
inline std::optional<Bench> bench;

/// f(wire, communicator of all ranks) for each wire of this machine.
template <class F>
void for_each_wire(F const& f) {
    if (alone()) {
        return;
    }
    if (!bench) {
        bench.emplace();
    }
    for (Wire& wire : bench->wires) {
        BOOST_TEST_CONTEXT("wire " << wire.name) {
            f(wire, *wire.everyone());
        }
    }
}

template <class T>
constexpr DType type_of() {
    if constexpr (sizeof(T) == 2) {
        return DType::bf16;
    } else {
        return dtype_of<T>::value;
    }
}

/// Values in a backend's memory, from element `skew` of a block on. bf16 is bits.
template <class T>
class Array {
  public:
    Array(Backend& backend, std::vector<T> const& values, std::int64_t cols = 1,
          std::int64_t skew = 0)
        : backend_(backend),
          memory_(backend, std::ssize(values) + skew, 1, type_of<T>(), "a test array"),
          cols_(cols),
          skew_(skew) {
        put(values);
    }
    void put(std::vector<T> const& values) {
        if (!values.empty()) {
            backend_.upload(tensor(), values.data());
        }
    }
    /// Empty ones may be no tensor at all.
    Tensor tensor() const {
        Tensor const all = memory_.tensor();
        std::int64_t const elements = all.rows - skew_;
        if (elements == 0) {
            return {};
        }
        auto* const data = static_cast<T*>(all.data) + skew_;
        return {data, all.dtype, elements / cols_, cols_, cols_};
    }
    operator Tensor() const { return tensor(); }
    std::vector<T> values() const {
        std::vector<T> values(at(tensor().elements()));
        if (!values.empty()) {
            backend_.download(values.data(), tensor());
        }
        return values;
    }

  private:
    Backend& backend_;
    Buffer memory_;
    std::int64_t cols_, skew_;
};

/// Small whole numbers that depend on place, rank and turn.
template <class T>
std::vector<T> numbers(std::int64_t count, int rank, int turn = 0) {
    std::vector<T> values(at(count));
    for (std::int64_t i = 0; i < count; ++i) {
        values[at(i)] =
            static_cast<T>((7 * i + std::int64_t{131} * rank + std::int64_t{17} * turn) % 1009);
    }
    return values;
}

}  // namespace cpstep::test
