#include "mpi/comm_device.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

namespace cpstep {
namespace {

/// By so many calls the host may be ahead of the device. A stream that waits for a peer takes no
/// more than about 1000 launches, and the next one has no deadline; a call stands for up to 60
/// (backward pass of a layer, all_gather).
constexpr std::ptrdiff_t most_calls_ahead = 12;

int place_of(World const& world, std::vector<int> const& members) {
    auto const at = std::ranges::find(members, world.rank());
    require(at != members.end(), ExitCode::internal,
            "rank {} forms a group that it is not a member of", world.rank());
    return static_cast<int>(at - members.begin());
}

/// Errors of earlier work count as reached: who waits for the queue is told of them.
bool reached(EventHandle const& event) {
    if (cudaEventQuery(event.get()) != cudaErrorNotReady) {
        return true;
    }
    (void)cudaGetLastError();  // "not ready" would be taken for the failure of the next launch
    return false;
}

}  // namespace

DeviceComm::DeviceComm(World const& world, Backend& backend, std::vector<int> const& members)
    : Comm(place_of(world, members), static_cast<int>(members.size())),
      world_(world),
      backend_(backend),
      queues_(*backend.queues()),
      members_(members) {
    queues_.watch(this);
}

std::string DeviceComm::describe(std::string_view op, std::string_view label, int peer,
                                 int other) const {
    std::string peers;
    if (peer != no_peer && other != no_peer && peer != other) {
        peers = fmt::format(" with ranks {} and {}", world_rank_of(peer), world_rank_of(other));
    } else if (peer != no_peer || other != no_peer) {
        peers = fmt::format(" with rank {}", world_rank_of(std::max(peer, other)));
    }
    return fmt::format("{} '{}'{} (group of {})", op, label, peers, size());
}

int DeviceComm::exchange_skipped() {
    return add({}, true);
}

int DeviceComm::add(std::string what, bool open) {
    forget_finished();
    int const ticket = next_ticket_++;
    calls_.emplace(ticket, Call{.what = std::move(what), .finished = {}, .done = 0, .open = open});
    return ticket;
}

int DeviceComm::add_queued(std::string what, bool open) {
    int const ticket = add(std::move(what), open);
    queued(ticket);
    return ticket;
}

void DeviceComm::queued(int ticket) {
    if (idle_events_.empty()) {
        idle_events_.push_back(ordering_event());
    }
    Call& call = calls_.at(ticket);
    call.finished = std::move(idle_events_.back());
    idle_events_.pop_back();
    CUDA_CHECK(cudaEventRecord(call.finished.get(), queues_.wire()));
    if (call.open && wants_times()) {
        call.done = backend_.mark(Queue::wire);
    }
}

bool DeviceComm::finished(Call const& call) {
    return call.what.empty() || (call.finished && reached(call.finished));
}

/// The wire stream finishes calls in their order.
void DeviceComm::forget_finished() {
    for (auto at = calls_.begin(); at != calls_.end();) {
        Call& call = at->second;
        if (call.open) {
            ++at;
            continue;
        }
        if (!finished(call)) {
            return;
        }
        if (call.finished) {
            idle_events_.push_back(std::move(call.finished));
        }
        at = calls_.erase(at);
    }
}

/// Before a call: waits for the one that is too far behind, with the deadline of the queues.
void DeviceComm::stay_within_reach() {
    if (std::ssize(calls_) < most_calls_ahead) {
        return;
    }
    Call const& call = std::prev(calls_.end(), most_calls_ahead)->second;
    if (call.finished) {
        queues_.wait(call.finished.get());
    }
}

void DeviceComm::do_end_call(int ticket) {
    settle();
    Call& call = calls_.at(ticket);
    if (call.finished) {
        CUDA_CHECK(cudaStreamWaitEvent(queues_.compute(), call.finished.get(), 0));
    }
    call.open = false;
}

void DeviceComm::drain() {
    settle();
    for (auto const& [ticket, call] : calls_) {
        if (call.finished) {
            queues_.wait(call.finished.get());
        }
    }
}

std::string DeviceComm::pending() const {
    for (auto const& [ticket, call] : calls_) {
        if (!finished(call)) {
            return call.what;
        }
    }
    return "";
}

}  // namespace cpstep
