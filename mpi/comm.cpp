#include "mpi/comm.hpp"

#include <algorithm>
#include <numeric>

namespace cpstep {
namespace {

std::int64_t bytes_of(Tensor tensor) {
    return static_cast<std::int64_t>(tensor.bytes());
}

void require_company(std::string_view op, Comm const& comm, std::string_view label) {
    require(comm.size() > 1, ExitCode::internal, "{} '{}' in a group of one", op, label);
}

void require_floats(std::string_view op, std::string_view label, Tensor tensor) {
    require(tensor.dtype == DType::f32 && tensor.contiguous(), ExitCode::internal,
            "{} '{}' takes contiguous float tensors", op, label);
}

/// Both are contiguous and hold elements of one type; an empty one may be of any.
void require_alike(std::string_view op, std::string_view label, Tensor a, Tensor b) {
    bool const alike = a.dtype == b.dtype || a.elements() == 0 || b.elements() == 0;
    require(alike && a.contiguous() && b.contiguous(), ExitCode::internal,
            "{} '{}' takes contiguous tensors of one type", op, label);
}

/// One size a rank, none negative, that add up to `total`.
void require_pieces(std::string_view op, Comm const& comm, std::string_view label,
                    std::int64_t total, std::span<std::int64_t const> sizes) {
    require_company(op, comm, label);
    require(std::ssize(sizes) == comm.size() &&
                std::ranges::all_of(sizes, [](std::int64_t size) { return size >= 0; }),
            ExitCode::internal, "{} '{}' takes one size for each of {} ranks, none negative", op,
            label, comm.size());
    auto const sum = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
    require(sum == total, ExitCode::internal,
            "{} '{}': the pieces of all ranks add up to {}, the tensor holds {}", op, label, sum,
            total);
}

/// `whole` holds the blocks of all ranks in rank order, `part` is the one of this rank.
void require_blocks(std::string_view op, Comm const& comm, std::string_view label, Tensor whole,
                    Tensor part, std::span<std::int64_t const> rows) {
    require_pieces(op, comm, label, whole.rows, rows);
    require_alike(op, label, whole, part);
    std::int64_t const own = rows[static_cast<std::size_t>(comm.rank())];
    require(part.rows == own && (own == 0 || part.cols == whole.cols), ExitCode::internal,
            "{} '{}': the block of rank {} is {} x {}, not {} x {}", op, label, comm.rank(),
            part.rows, part.cols, own, whole.cols);
}

/// A label stands for one kind of call: a ledger line that mixed two could not be compared with a
/// plan.
void require_same_op(Ledger const& ledger, std::string_view label, std::string_view op) {
    auto const entry = ledger.find(std::string(label));
    require(entry == ledger.end() || entry->second.op == op, ExitCode::internal,
            "label '{}' is used for {} and for {}; give each its own label", label,
            entry == ledger.end() ? "" : entry->second.op, op);
}

}  // namespace

void Comm::count(CommRecord const& record) {
    require_same_op(ledger_, record.label, record.op);
    LedgerEntry& entry = ledger_[std::string(record.label)];
    entry.op = record.op;
    entry.group_size = record.group_size;
    ++entry.calls;
    entry.bytes += record.bytes;
}

void Comm::tell(CommRecord const& record) const {
    if (observer_ != nullptr) {
        observer_->on_comm(record);
    }
}

template <class Work>
void Comm::collective(std::string_view label, std::string_view op, std::int64_t bytes,
                      Work const& work) {
    require_same_op(ledger_, label, op);
    CommRecord record{.label = label, .op = op, .group_size = size_, .bytes = bytes};
    wire_after_compute();
    record.posted = record.waited = time(&Comm::mark_posted);
    work();
    record.done = time(&Comm::mark_done);
    compute_after_wire();
    count(record);
    tell(record);
}

void Comm::all_reduce_sum(std::string_view label, Tensor data) {
    if (size_ == 1) {
        return;
    }
    require_floats("all_reduce", label, data);
    collective(label, "all_reduce", bytes_of(data), [&] { do_all_reduce_sum(label, data); });
}

/// Begins a call whose end is end_call(ticket).
template <class Begin>
int Comm::begin(Open open, Begin const& work) {
    require_same_op(ledger_, open.label, open.op);
    if (open.takes_part) {
        wire_after_compute();
        open.posted = time(&Comm::mark_posted);
    }
    int const ticket = work();
    open_.emplace(ticket, std::move(open));
    return ticket;
}

int Comm::begin_all_gather(std::string_view label, Tensor recv, Tensor send,
                           std::span<std::int64_t const> rows) {
    require_blocks("all_gather", *this, label, recv, send, rows);
    return begin({.label = std::string(label),
                  .op = "all_gather",
                  .takes_part = true,
                  .counts = true,
                  .bytes = bytes_of(recv) - bytes_of(send)},
                 [&] { return do_begin_all_gather(label, recv, send, rows); });
}

int Comm::begin_reduce_scatter_sum(std::string_view label, Tensor recv, Tensor send,
                                   std::span<std::int64_t const> rows) {
    require_blocks("reduce_scatter", *this, label, send, recv, rows);
    require_floats("reduce_scatter", label, send);
    require_floats("reduce_scatter", label, recv);
    return begin({.label = std::string(label),
                  .op = "reduce_scatter",
                  .takes_part = true,
                  .counts = true,
                  .bytes = bytes_of(send) - bytes_of(recv)},
                 [&] { return do_begin_reduce_scatter_sum(label, recv, send, rows); });
}

void Comm::all_to_all(std::string_view label, Tensor recv, Tensor send,
                      std::span<std::int64_t const> send_elements,
                      std::span<std::int64_t const> recv_elements) {
    require_pieces("all_to_all", *this, label, send.elements(), send_elements);
    require_pieces("all_to_all", *this, label, recv.elements(), recv_elements);
    require_alike("all_to_all", label, send, recv);
    auto const own = static_cast<std::size_t>(rank_);
    require(send_elements[own] == recv_elements[own], ExitCode::internal,
            "all_to_all '{}' sends {} elements to its own rank, which expects {}", label,
            send_elements[own], recv_elements[own]);
    auto const kept = send_elements[own] * static_cast<std::int64_t>(element_bytes(send.dtype));
    collective(label, "all_to_all", bytes_of(send) - kept,
               [&] { do_all_to_all(label, recv, send, send_elements, recv_elements); });
}

int Comm::begin_exchange(std::string_view label, Tensor send, int to, Tensor recv, int from) {
    require_company("exchange", *this, label);
    require(to >= no_peer && to < size_ && from >= no_peer && from < size_, ExitCode::internal,
            "exchange '{}' to rank {} and from rank {} of a group of {}", label, to, from, size_);
    require(to != rank_ && from != rank_, ExitCode::internal,
            "exchange '{}' of rank {} with itself", label, rank_);
    bool const sends = to != no_peer;
    bool const receives = from != no_peer;
    require((!sends || send.contiguous()) && (!receives || recv.contiguous()), ExitCode::internal,
            "exchange '{}' takes contiguous tensors", label);
    return begin({.label = std::string(label),
                  .op = "exchange",
                  .peer = sends ? world_rank_of(to) : no_peer,
                  .takes_part = sends || receives,
                  .counts = sends,
                  .bytes = sends ? bytes_of(send) : 0},
                 [&] { return do_begin_exchange(label, send, to, recv, from); });
}

void Comm::end_call(int ticket) {
    auto const node = open_.extract(ticket);
    require(!node.empty(), ExitCode::internal, "no call is open under ticket {}", ticket);
    Open const& open = node.mapped();
    if (!open.takes_part) {
        do_end_call(ticket);
        return;
    }
    CommRecord record{.label = open.label, .op = open.op, .group_size = size_, .peer = open.peer};
    record.bytes = open.bytes;
    record.posted = open.posted;
    record.waited = time(&Comm::mark_waited);
    do_end_call(ticket);
    record.done = wants_times() ? mark_ended(ticket) : 0;
    if (open.counts) {
        count(record);
    }
    tell(record);
}

}  // namespace cpstep
