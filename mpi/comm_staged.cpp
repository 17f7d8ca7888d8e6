// Comm for the memory of any backend over one of host memory: each call copies down, lets the host
// wire do its work and copies up, so the host waits in every call.
#include <algorithm>
#include <exception>
#include <map>
#include <utility>

#include "mpi/comm_bodies.hpp"

namespace cpstep {
namespace {

/// Host memory that grows to the largest size asked for.
class Staging {
  public:
    /// Contiguous, shaped and typed like `tensor`; the last one is lost.
    Tensor like(Tensor tensor) {
        if (tensor.bytes() > size_) {
            size_ = tensor.bytes();
            memory_ = std::make_unique_for_overwrite<std::byte[]>(size_);
        }
        return {memory_.get(), tensor.dtype, tensor.rows, tensor.cols, tensor.cols};
    }
    /// Memory that MPI may still write to is nobody's any more.
    void leak() { (void)memory_.release(); }

  private:
    std::unique_ptr<std::byte[]> memory_;
    std::size_t size_ = 0;
};

/// What one call sends and receives.
struct Pair {
    Staging send, recv;
};

class StagedComm final : public Comm {
  public:
    StagedComm(Backend& backend, std::unique_ptr<Comm> host)
        : Comm(host->rank(), host->size()), backend_(backend), host_(std::move(host)) {}
    StagedComm(StagedComm const&) = delete;
    StagedComm& operator=(StagedComm const&) = delete;
    ~StagedComm() override {
        if (std::uncaught_exceptions() == 0 && !in_call_ && in_flight_.empty()) {
            return;
        }
        for (auto const& pair : pairs_) {
            pair->send.leak();
            pair->recv.leak();
        }
    }

    int world_rank_of(int group_rank) const override { return host_->world_rank_of(group_rank); }

  private:
    struct Begun {
        Pair* pair = nullptr;
        Tensor arrived, recv;  // on the host, and where it goes
    };

    void do_all_reduce_sum(std::string_view label, Tensor data) override {
        Tensor const staged = down(call_->send, data);
        through([&] { host_->all_reduce_sum(label, staged); });
        up(data, staged);
    }

    int do_begin_all_gather(std::string_view label, Tensor recv, Tensor send,
                            std::span<std::int64_t const> rows) override {
        return begin(recv, send, [&](Tensor arriving, Tensor leaving) {
            return host_->begin_all_gather(label, arriving, leaving, rows);
        });
    }

    int do_begin_reduce_scatter_sum(std::string_view label, Tensor recv, Tensor send,
                                    std::span<std::int64_t const> rows) override {
        return begin(recv, send, [&](Tensor arriving, Tensor leaving) {
            return host_->begin_reduce_scatter_sum(label, arriving, leaving, rows);
        });
    }

    void do_all_to_all(std::string_view label, Tensor recv, Tensor send,
                       std::span<std::int64_t const> send_elements,
                       std::span<std::int64_t const> recv_elements) override {
        Tensor const leaving = down(call_->send, send);
        Tensor const arriving = call_->recv.like(recv);
        through([&] { host_->all_to_all(label, arriving, leaving, send_elements, recv_elements); });
        up(recv, arriving);
    }

    int do_begin_exchange(std::string_view label, Tensor send, int to, Tensor recv,
                          int from) override {
        return begin(from != no_peer ? recv : Tensor{}, to != no_peer ? send : Tensor{},
                     [&](Tensor arriving, Tensor leaving) {
                         return host_->begin_exchange(label, leaving, to, arriving, from);
                     });
    }

    void do_end_call(int ticket) override {
        through([&] { host_->end_call(ticket); });
        Begun const call = in_flight_.extract(ticket).mapped();
        up(call.recv, call.arrived);
        free_.push_back(call.pair);
    }

    /// A call may begin when its buffers are ready: waiting for them is not communication.
    void wire_after_compute() override { backend_.synchronize(); }

    /// Calls the host wire; one that throws leaves MPI with our memory.
    template <class Call>
    void through(Call const& call) {
        in_call_ = true;
        call();
        in_call_ = false;
    }

    /// Begins a call from `send` to `recv` by way of the host.
    template <class Call>
    int begin(Tensor recv, Tensor send, Call const& call) {
        Begun begun{.pair = take_pair(), .arrived = {}, .recv = recv};
        Tensor const leaving = down(begun.pair->send, send);
        begun.arrived = begun.pair->recv.like(recv);
        int ticket = 0;
        through([&] { ticket = call(begun.arrived, leaving); });
        in_flight_.emplace(ticket, begun);
        return ticket;
    }

    Tensor down(Staging& staging, Tensor tensor) {
        Tensor const staged = staging.like(tensor);
        if (tensor.elements() > 0) {
            backend_.download(staged.data, tensor);
        }
        return staged;
    }

    void up(Tensor tensor, Tensor staged) {
        if (tensor.elements() > 0) {
            backend_.upload(tensor, staged.data);
        }
    }

    Pair* take_pair() {
        if (free_.empty()) {
            return pairs_.emplace_back(std::make_unique<Pair>()).get();
        }
        Pair* const pair = free_.back();
        free_.pop_back();
        return pair;
    }

    Backend& backend_;
    std::unique_ptr<Comm> host_;
    std::vector<std::unique_ptr<Pair>> pairs_;  // all there are
    std::vector<Pair*> free_;                   // those that no begun call holds
    Pair* call_ = take_pair();                  // of calls that end where they begin
    std::map<int, Begun> in_flight_;
    bool in_call_ = false;
};

}  // namespace

std::unique_ptr<Comm> make_staged_comm(Backend& backend, std::unique_ptr<Comm> host) {
    return std::make_unique<StagedComm>(backend, std::move(host));
}

}  // namespace cpstep
