// A wire between the ranks of one group, for the memory of one backend. Calls are collective.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "cuda/tensor.hpp"
#include "mpi/ledger.hpp"

namespace cpstep {

/// One finished communication call, as observers see it.
struct CommRecord {
    std::string_view label;
    std::string_view op;
    int group_size = 0;
    int peer = -1;               ///< world rank sent to; -1 for a collective
    std::int64_t bytes = 0;      ///< as in LedgerEntry
    std::int64_t posted_ns = 0;  ///< steady clock
    std::int64_t waited_ns = 0;  ///< when the wait began
    std::int64_t done_ns = 0;
};

/// Told of every finished call (the trace is one).
class CommObserver {
  public:
    CommObserver() = default;
    CommObserver(CommObserver const&) = delete;
    CommObserver& operator=(CommObserver const&) = delete;
    virtual ~CommObserver() = default;
    virtual void on_comm(CommRecord const& record) = 0;
};

/// Public calls record (ledger, observer), then do the work in the virtual ones. A group of one
/// does nothing and records nothing. Every wait has a deadline and throws Error(communication) past
/// it, naming label, op, peer and group.
class Comm {
  public:
    Comm(int rank, int size) : rank_(rank), size_(size) {}
    Comm(Comm const&) = delete;
    Comm& operator=(Comm const&) = delete;
    virtual ~Comm() = default;

    int rank() const { return rank_; }
    int size() const { return size_; }

    /// In place elementwise sum over the group; f32, contiguous.
    void all_reduce_sum(std::string_view label, Tensor data);

    /// Start sending `send` to group rank `to` and receiving `recv` from group rank `from`;
    /// contiguous, sizes of sender and receiver agree, empty tensors are sent too. Buffers stay
    /// untouched until end_exchange(ticket). Several exchanges may be open; all ranks open them in
    /// the same order.
    int begin_exchange(std::string_view label, Tensor send, int to, Tensor recv, int from);
    void end_exchange(int ticket);

    Ledger const& ledger() const { return ledger_; }
    void clear_ledger() { ledger_.clear(); }
    void set_observer(CommObserver* observer) { observer_ = observer; }

  private:
    virtual void do_all_reduce_sum(std::string_view label, Tensor data) = 0;
    virtual int do_begin_exchange(std::string_view label, Tensor send, int to, Tensor recv,
                                  int from) = 0;
    virtual void do_end_exchange(int ticket) = 0;
    virtual int world_rank_of(int group_rank) const = 0;

    struct Open {
        std::string label;
        int peer = -1;
        std::int64_t bytes = 0;
        std::int64_t posted_ns = 0;
    };
    void account(CommRecord const& record);

    int rank_;
    int size_;
    Ledger ledger_;
    CommObserver* observer_ = nullptr;
    std::map<int, Open> open_;
};

/// Monotonic host time in nanoseconds.
std::int64_t now_ns();

}  // namespace cpstep
