// A wire between the ranks of one group, for the memory of one backend. Calls are collective.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>

#include "cuda/backend.hpp"
#include "cuda/clock.hpp"
#include "cuda/tensor.hpp"
#include "mpi/ledger.hpp"

namespace cpstep {

/// One communication call that has returned, as observers see it. Times are for
/// Backend::mark_ns(): a wire on a device marks its queues, where the call may go on for long; the
/// others give the host's clock.
struct CommRecord {
    std::string_view label;
    std::string_view op;
    int group_size = 0;
    int peer = -1;           ///< world rank sent to; -1 if nothing is, and for a collective
    std::int64_t bytes = 0;  ///< as in LedgerEntry
    Mark posted = 0;         ///< compute queue: what was queued before is done, the call may begin
    Mark done = 0;           ///< wire queue: has ended
    Mark waited = 0;         ///< compute queue: waits for `done` from here on, if it is yet to come
};

/// Told of every call that has returned (the trace is one).
class CommObserver {
  public:
    CommObserver() = default;
    CommObserver(CommObserver const&) = delete;
    CommObserver& operator=(CommObserver const&) = delete;
    virtual ~CommObserver() = default;
    virtual void on_comm(CommRecord const& record) = 0;
    /// Whether records need their times, asked when a call is made; where not, they are 0.
    virtual bool wants_times() const { return true; }
};

/// Public calls record (ledger, observer), then do the work in the virtual ones. In a group of one
/// the all-reduce does nothing and records nothing; the other calls are errors there. Sums are of
/// f32; what is only moved may have any type, the same on sender and receiver. Every wait has a
/// deadline and throws Error(communication) past it, naming label, op, peer and group. An empty
/// tensor may be default constructed. Buffers of one call never overlap.
/// On a device calls queue work and return: it comes after all that the backend has queued before,
/// and what the backend queues after the call (after end_call) finds it done.
/// A begun call leaves its buffers alone from end_call(ticket) on, not before. Several may be open;
/// all ranks begin calls in the same order.
class Comm {
  public:
    static constexpr int no_peer = -1;

    Comm(int rank, int size) : rank_(rank), size_(size) {}
    Comm(Comm const&) = delete;
    Comm& operator=(Comm const&) = delete;
    virtual ~Comm() = default;

    int rank() const { return rank_; }
    int size() const { return size_; }
    virtual int world_rank_of(int group_rank) const = 0;

    /// In place elementwise sum over the group; f32, contiguous.
    void all_reduce_sum(std::string_view label, Tensor data);

    /// Every rank's block on every rank: `recv` holds those of all ranks in rank order, rows[r]
    /// rows each, `send` is block rank(); one type, contiguous. `rows` is the same on all ranks.
    int begin_all_gather(std::string_view label, Tensor recv, Tensor send,
                         std::span<std::int64_t const> rows);
    void all_gather(std::string_view label, Tensor recv, Tensor send,
                    std::span<std::int64_t const> rows) {
        end_call(begin_all_gather(label, recv, send, rows));
    }

    /// The reverse: `send` holds a block for each rank in rank order, rows[r] rows each, `recv`
    /// becomes the elementwise sum over ranks of block rank(); f32, contiguous.
    int begin_reduce_scatter_sum(std::string_view label, Tensor recv, Tensor send,
                                 std::span<std::int64_t const> rows);
    void reduce_scatter_sum(std::string_view label, Tensor recv, Tensor send,
                            std::span<std::int64_t const> rows) {
        end_call(begin_reduce_scatter_sum(label, recv, send, rows));
    }

    /// Piece r of `send` goes to rank r, piece r of `recv` comes from rank r; both flat, in rank
    /// order, one type, contiguous. Sizes of sender and receiver agree.
    void all_to_all(std::string_view label, Tensor recv, Tensor send,
                    std::span<std::int64_t const> send_elements,
                    std::span<std::int64_t const> recv_elements);

    /// Start sending `send` to group rank `to` and receiving `recv` from group rank `from`, never
    /// this rank itself; contiguous, sizes of sender and receiver agree, empty tensors are sent
    /// too. With no_peer nothing is sent (or received) and that tensor is ignored; a rank that does
    /// neither begins the exchange too.
    int begin_exchange(std::string_view label, Tensor send, int to, Tensor recv, int from);

    void end_call(int ticket);

    Ledger const& ledger() const { return ledger_; }
    void clear_ledger() { ledger_.clear(); }
    void set_observer(CommObserver* observer) { observer_ = observer; }

  protected:
    bool wants_times() const { return observer_ != nullptr && observer_->wants_times(); }

  private:
    virtual void do_all_reduce_sum(std::string_view label, Tensor data) = 0;
    virtual void do_all_to_all(std::string_view label, Tensor recv, Tensor send,
                               std::span<std::int64_t const> send_elements,
                               std::span<std::int64_t const> recv_elements) = 0;
    virtual int do_begin_all_gather(std::string_view label, Tensor recv, Tensor send,
                                    std::span<std::int64_t const> rows) = 0;
    virtual int do_begin_reduce_scatter_sum(std::string_view label, Tensor recv, Tensor send,
                                            std::span<std::int64_t const> rows) = 0;
    virtual int do_begin_exchange(std::string_view label, Tensor send, int to, Tensor recv,
                                  int from) = 0;
    virtual void do_end_call(int ticket) = 0;

    // Of wires whose calls queue work on a device; the host's have done theirs when they return.
    virtual void wire_after_compute() {}
    virtual void compute_after_wire() {}
    virtual Mark mark_posted() { return now_ns(); }
    virtual Mark mark_waited() { return now_ns(); }
    virtual Mark mark_done() { return now_ns(); }
    /// When the begun call was done that do_end_call(ticket) has just ended.
    virtual Mark mark_ended(int /*ticket*/) { return now_ns(); }

    struct Open {
        std::string label;
        std::string_view op;
        int peer = no_peer;  // world rank sent to in an exchange
        bool takes_part = false;
        bool counts = false;     // sends something
        std::int64_t bytes = 0;  // sent
        Mark posted = 0;
    };
    /// A mark, or 0 where no observer wants times.
    Mark time(Mark (Comm::*mark)()) { return wants_times() ? (this->*mark)() : 0; }
    template <class Work>
    void collective(std::string_view label, std::string_view op, std::int64_t bytes,
                    Work const& work);
    template <class Begin>
    int begin(Open open, Begin const& work);
    void count(CommRecord const& record);
    void tell(CommRecord const& record) const;

    int rank_;
    int size_;
    Ledger ledger_;
    CommObserver* observer_ = nullptr;
    std::map<int, Open> open_;
};

}  // namespace cpstep
