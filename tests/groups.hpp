// What tests of communicators share.
#pragma once

#include <numeric>

#include "mpi/wires.hpp"
#include "tests/mpi_test_main.hpp"

namespace cpstep::test {

/// A vector as a tensor of `cols` columns.
template <class T>
Tensor tensor_of(std::vector<T>& values, std::int64_t cols = 1) {
    auto const n = static_cast<std::int64_t>(values.size());
    return {values.data(), dtype_of<T>::value, n / cols, cols, cols};
}

inline std::unique_ptr<Comm> everyone() {
    std::vector<int> ranks(static_cast<std::size_t>(test_world().size()));
    std::iota(ranks.begin(), ranks.end(), 0);
    return test_world().make_host_comm(ranks);
}

/// The wires of host memory; the first call is collective.
inline Wires& host_wires() {
    static std::unique_ptr<Backend> const backend = make_host_backend(1);
    static std::unique_ptr<Wires> const wires = make_wires(test_world(), *backend, {});
    return *wires;
}

inline bool alone() {
    return test_world().size() == 1;
}

inline int next(Comm const& comm) {
    return (comm.rank() + 1) % comm.size();
}

inline int previous(Comm const& comm) {
    return (comm.rank() + comm.size() - 1) % comm.size();
}

struct Recorder : CommObserver {
    std::vector<CommRecord> records;
    std::vector<std::string> labels;
    bool timed = true;
    void on_comm(CommRecord const& record) override {
        records.push_back(record);
        labels.emplace_back(record.label);
    }
    bool wants_times() const override { return timed; }
};

}  // namespace cpstep::test
