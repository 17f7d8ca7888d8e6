// Private to mpi/, builds with CUDA: what wires on a device's memory share. A call queues its work
// on the wire stream, after what the compute stream holds, and returns.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cuda/cuda_backend.hpp"
#include "mpi/comm.hpp"
#include "mpi/world.hpp"

namespace cpstep {

class DeviceComm : public Comm, protected QueueWatcher {
  public:
    /// `members` are world ranks in group order; world and backend must outlive this.
    DeviceComm(World const& world, Backend& backend, std::vector<int> const& members);
    DeviceComm(DeviceComm const&) = delete;
    DeviceComm& operator=(DeviceComm const&) = delete;
    ~DeviceComm() override { queues_.unwatch(this); }

    int world_rank_of(int group_rank) const override {
        return members_[static_cast<std::size_t>(group_rank)];
    }

  protected:
    World const& world() const { return world_; }
    CudaQueues& queues() { return queues_; }
    std::vector<int> const& members() const { return members_; }

    /// "exchange 'cp.kv' with rank 1 (group of 2)"; peers are group ranks, no_peer for none.
    std::string describe(std::string_view op, std::string_view label, int peer = no_peer,
                         int other = no_peer) const;
    /// All work of a collective is on the wire stream; `what` names the call while it is
    /// unfinished.
    void call_queued(std::string what) { add_queued(std::move(what), false); }
    /// The same for a begun call, which a later do_end_call(ticket) ends.
    int begun_queued(std::string what) { return add_queued(std::move(what), true); }
    /// A begun call whose work is yet to come to the wire stream: settle(), which comes before any
    /// other use of that stream, then says queued(ticket).
    int begun(std::string what) { return add(std::move(what), true); }
    void queued(int ticket);
    std::string const& what(int ticket) const { return calls_.at(ticket).what; }
    /// An exchange in which this rank has no part.
    int exchange_skipped();
    /// Waits until all calls have finished, with the deadline of the queues.
    void drain();

    void check() override {}
    std::string pending() const override;

  private:
    struct Call {
        std::string what;      ///< "" where there is nothing to do
        EventHandle finished;  ///< none before the call is queued
        Mark done = 0;         ///< of a begun call, where times are wanted
        bool open = false;     ///< begun and not ended
    };

    void do_end_call(int ticket) override;
    void wire_after_compute() override {
        stay_within_reach();
        queues_.wire_after_compute();
    }
    void compute_after_wire() override { queues_.compute_after_wire(); }
    Mark mark_posted() override { return backend_.mark_posted(); }
    Mark mark_waited() override { return backend_.mark_waited(); }
    Mark mark_done() override { return backend_.mark(Queue::wire); }
    Mark mark_ended(int ticket) override { return calls_.at(ticket).done; }

    int add(std::string what, bool open);
    int add_queued(std::string what, bool open);
    static bool finished(Call const& call);
    void forget_finished();
    void stay_within_reach();

    World const& world_;
    Backend& backend_;
    CudaQueues& queues_;
    std::vector<int> members_;
    std::map<int, Call> calls_;  ///< by ticket, oldest first; those that may not have finished
    std::vector<EventHandle> idle_events_;
    int next_ticket_ = 0;
};

}  // namespace cpstep
