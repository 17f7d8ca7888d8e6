#include "mpi/comm.hpp"

#include <chrono>

namespace cpstep {
namespace {

/// A label stands for one kind of call: a ledger line that mixed two could not be compared with a
/// plan.
void require_same_op(Ledger const& ledger, std::string_view label, std::string_view op) {
    auto const entry = ledger.find(std::string(label));
    require(entry == ledger.end() || entry->second.op == op, ExitCode::internal,
            "label '{}' is used for {} and for {}; give each its own label", label,
            entry == ledger.end() ? "" : entry->second.op, op);
}

}  // namespace

std::int64_t now_ns() {
    auto const now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

void Comm::account(CommRecord const& record) {
    require_same_op(ledger_, record.label, record.op);
    LedgerEntry& entry = ledger_[std::string(record.label)];
    entry.op = record.op;
    entry.group_size = record.group_size;
    ++entry.calls;
    entry.bytes += record.bytes;
    if (observer_ != nullptr) {
        observer_->on_comm(record);
    }
}

void Comm::all_reduce_sum(std::string_view label, Tensor data) {
    if (size_ == 1) {
        return;
    }
    require(data.dtype == DType::f32 && data.contiguous(), ExitCode::internal,
            "all_reduce '{}' takes a contiguous float tensor", label);
    require_same_op(ledger_, label, "all_reduce");
    CommRecord record{.label = label, .op = "all_reduce", .group_size = size_};
    record.bytes = static_cast<std::int64_t>(data.bytes());
    record.posted_ns = now_ns();
    record.waited_ns = record.posted_ns;
    do_all_reduce_sum(label, data);
    record.done_ns = now_ns();
    account(record);
}

int Comm::begin_exchange(std::string_view label, Tensor send, int to, Tensor recv, int from) {
    require(size_ > 1, ExitCode::internal, "exchange '{}' in a group of one", label);
    require(send.contiguous() && recv.contiguous(), ExitCode::internal,
            "exchange '{}' takes contiguous tensors", label);
    require(to >= 0 && to < size_ && from >= 0 && from < size_, ExitCode::internal,
            "exchange '{}' to rank {} and from rank {} of a group of {}", label, to, from, size_);
    require_same_op(ledger_, label, "exchange");
    Open open{.label = std::string(label), .peer = world_rank_of(to)};
    open.bytes = static_cast<std::int64_t>(send.bytes());
    open.posted_ns = now_ns();
    int const ticket = do_begin_exchange(label, send, to, recv, from);
    open_.emplace(ticket, std::move(open));
    return ticket;
}

void Comm::end_exchange(int ticket) {
    auto const node = open_.extract(ticket);
    require(!node.empty(), ExitCode::internal, "no exchange is open under ticket {}", ticket);
    Open const& open = node.mapped();
    CommRecord record{
        .label = open.label, .op = "exchange", .group_size = size_, .peer = open.peer};
    record.bytes = open.bytes;
    record.posted_ns = open.posted_ns;
    record.waited_ns = now_ns();
    do_end_exchange(ticket);
    record.done_ns = now_ns();
    account(record);
}

}  // namespace cpstep
