// Comm between ranks of one host: each opens the others' memory and reads it, so that nothing is
// staged and moves take no multiprocessor. The host tells peers where a call's memory is (Mailbox)
// and finds skipped and mismatched calls; streams meet through flags in device memory.
#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <numeric>
#include <span>

#include "mpi/comm_device.hpp"
#include "mpi/ipc_memory.cuh"
#include "mpi/mailbox.hpp"
#include "mpi/wire_bodies.hpp"

namespace cpstep {
namespace {

using Sizes = std::span<std::int64_t const>;

/// What a rank tells each rank that will read its memory in a call. Texts are cut to fit.
struct Announcement {
    std::uint64_t call = 0;  ///< counted in each group
    std::array<char, 16> op{};
    std::array<char, 48> label{};
    std::int64_t bytes = 0;
    IpcAddress at;
};

template <std::size_t n>
std::array<char, n> cut(std::string_view text) {
    std::array<char, n> kept{};
    std::copy_n(text.begin(), std::min(text.size(), n - 1), kept.begin());
    return kept;
}

/// Where pieces begin that lie one behind the other.
std::vector<std::int64_t> begins_of(Sizes sizes) {
    std::vector<std::int64_t> begins(sizes.size());
    std::exclusive_scan(sizes.begin(), sizes.end(), begins.begin(), std::int64_t{0});
    return begins;
}

class IpcComm final : public DeviceComm {
  public:
    IpcComm(World const& world, Backend& backend, std::vector<int> const& members);
    IpcComm(IpcComm const&) = delete;
    IpcComm& operator=(IpcComm const&) = delete;
    ~IpcComm() override;

  private:
    struct Call {
        std::uint64_t number = 0;
        std::string_view op, label;
    };
    using Ranks = std::span<int const>;

    void do_all_reduce_sum(std::string_view label, Tensor data) override;
    int do_begin_all_gather(std::string_view label, Tensor recv, Tensor send, Sizes rows) override;
    int do_begin_reduce_scatter_sum(std::string_view label, Tensor recv, Tensor send,
                                    Sizes rows) override;
    void do_all_to_all(std::string_view label, Tensor recv, Tensor send, Sizes send_elements,
                       Sizes recv_elements) override;
    int do_begin_exchange(std::string_view label, Tensor send, int to, Tensor recv,
                          int from) override;

    void check() override { mailbox_->progress(); }
    void give_up() noexcept override;

    void open_flags();
    Call begin_call(std::string_view op, std::string_view label) {
        return {.number = ++calls_, .op = op, .label = label};
    }
    void tell(int to, Call const& call, void const* data, std::int64_t bytes);
    std::byte* hear(int from, Call const& call, std::int64_t bytes);
    std::vector<std::byte*> tell_and_hear_all(Call const& call, Tensor data);
    void ready(Ranks readers, Ranks sources);
    void done(Ranks readers, Ranks sources);
    void copy(void* to, void const* from, std::int64_t bytes);

    std::size_t own() const { return static_cast<std::size_t>(rank()); }
    /// Flags of a rank: the latest round in which peer p's memory is ready, and in which peer p has
    /// read this rank's memory.
    std::uint32_t* ready_flag(std::uint32_t* flags, int p) const { return flags + p; }
    std::uint32_t* done_flag(std::uint32_t* flags, int p) const { return flags + size() + p; }
    std::size_t flag_bytes() const {
        return 2 * sizeof(std::uint32_t) * static_cast<std::size_t>(size());
    }

    std::unique_ptr<Mailbox> mailbox_;
    PeerMemory memory_;
    std::unique_ptr<Buffer> flags_memory_;
    std::vector<std::uint32_t*> flags_;  ///< of each rank, as this process sees them
    std::vector<int> others_;  ///< from the next rank on, so that all read from different ones
    int multiprocessors_ = 0;
    std::uint64_t calls_ = 0;
    std::uint32_t round_ = 0;  ///< handshakes so far, equal on all ranks
    bool broken_ = false;      ///< peers may not come along any more
};

IpcComm::IpcComm(World const& world, Backend& backend, std::vector<int> const& members)
    : DeviceComm(world, backend, members),
      mailbox_(make_mailbox(world, members)),
      memory_(queues()),
      flags_memory_(std::make_unique<Buffer>(backend, 2 * std::ssize(members), 1, DType::i32,
                                             "the flags of an ipc group")),
      flags_(members.size()) {
    require(size() <= most_sum_sources, ExitCode::environment,
            "the ipc wire is for groups of at most {} ranks, this one has {}; use --transport nccl",
            most_sum_sources, size());
    for (int i = 1; i < size(); ++i) {
        others_.push_back((rank() + i) % size());
    }
    CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount,
                                      queues().ordinal()));
    load_sums();  // later they would be loaded behind a wait for a peer
    open_flags();
    // Shows that flags arrive before anything depends on it.
    ready(others_, others_);
    done(others_, others_);
    call_queued(fmt::format("the first handshake over CUDA IPC (group of {})", size()));
    drain();
}

/// Mappings go before the memory they show: a rank frees its flags when all have closed them.
IpcComm::~IpcComm() {
    if (std::uncaught_exceptions() == 0 && !broken_) {
        try {
            drain();
            memory_.close();
            mailbox_->meet(rank(), size(),
                           [&] { return fmt::format("the end of a group of {}", size()); });
            return;
        } catch (Error const&) {
            broken_ = true;  // destructors do not throw; who waits next is told
        }
    }
    // Peers may still write to the flags, and may not come along to free the group.
    [[maybe_unused]] Buffer const* const flags = flags_memory_.release();
    [[maybe_unused]] Mailbox const* const mailbox = mailbox_.release();
}

void IpcComm::open_flags() {
    auto* const mine = static_cast<std::uint32_t*>(flags_memory_->tensor().data);
    queues().wire_after_compute();  // the memory may have been used before
    CUDA_CHECK(cudaMemsetAsync(mine, 0, flag_bytes(), queues().wire()));
    call_queued("the flags of an ipc group");
    drain();
    flags_[own()] = mine;
    Call const call = begin_call("forming", "flags");
    auto const bytes = static_cast<std::int64_t>(flag_bytes());
    for (int const peer : others_) {
        tell(peer, call, mine, bytes);
    }
    for (int const peer : others_) {
        flags_[static_cast<std::size_t>(peer)] =
            reinterpret_cast<std::uint32_t*>(hear(peer, call, bytes));
    }
}

/// Waits end as soon as their flags hold a later round than any. The memset needs a stream that no
/// wait blocks, and the stream lives as long as the process, which is about to end.
void IpcComm::give_up() noexcept {
    broken_ = true;
    cudaStream_t aside = nullptr;
    if (cudaStreamCreateWithFlags(&aside, cudaStreamNonBlocking) == cudaSuccess) {
        (void)cudaMemsetAsync(flags_memory_->tensor().data, 0x3f, flag_bytes(), aside);
    }
}

void IpcComm::tell(int to, Call const& call, void const* data, std::int64_t bytes) {
    Announcement const announcement{.call = call.number,
                                    .op = cut<16>(call.op),
                                    .label = cut<48>(call.label),
                                    .bytes = bytes,
                                    .at = memory_.address_of(bytes == 0 ? nullptr : data)};
    mailbox_->send(to, std::as_bytes(std::span(&announcement, 1)));
}

/// Where `from` has the `bytes` that this rank reads in this call.
std::byte* IpcComm::hear(int from, Call const& call, std::int64_t bytes) {
    auto const what = [&] { return describe(call.op, call.label, from); };
    Announcement told;
    broken_ = true;  // until the peer is known to be in the same call
    try {
        mailbox_->receive(from, std::as_writable_bytes(std::span(&told, 1)), what);
    } catch (Error const&) {
        queues().give_up();
        throw;
    }
    bool const same = told.call == call.number && told.op == cut<16>(call.op) &&
                      told.label == cut<48>(call.label);
    require(same, ExitCode::communication,
            "{}: that rank is in its call {}, {} '{}', where this one is in its call {}", what(),
            told.call, told.op.data(), told.label.data(), call.number);
    require(told.bytes == bytes, ExitCode::communication,
            "{}: {} bytes arrived where {} were expected", what(), told.bytes, bytes);
    std::byte* const at = memory_.at(world_rank_of(from), told.at);
    broken_ = false;
    return at;
}

/// Every rank's `data`, which has one size on all ranks.
std::vector<std::byte*> IpcComm::tell_and_hear_all(Call const& call, Tensor data) {
    auto const bytes = static_cast<std::int64_t>(data.bytes());
    for (int const peer : others_) {
        tell(peer, call, data.data, bytes);
    }
    std::vector<std::byte*> all(static_cast<std::size_t>(size()));
    all[own()] = static_cast<std::byte*>(data.data);
    for (int const peer : others_) {
        all[static_cast<std::size_t>(peer)] = hear(peer, call, bytes);
    }
    return all;
}

/// A new round: `readers` may read this rank's memory as it is here in the stream; goes on when the
/// memory of `sources` may be read.
void IpcComm::ready(Ranks readers, Ranks sources) {
    ++round_;
    FlagOps ops;
    for (int const peer : readers) {
        ops.write(ready_flag(flags_[static_cast<std::size_t>(peer)], rank()), round_);
    }
    for (int const peer : sources) {
        ops.wait(ready_flag(flags_[own()], peer), round_);
    }
    ops.queue_on(queues().wire());
}

/// Ends the round: `sources` may change what this rank has read; goes on when `readers` have read.
void IpcComm::done(Ranks readers, Ranks sources) {
    FlagOps ops;
    for (int const peer : sources) {
        ops.write(done_flag(flags_[static_cast<std::size_t>(peer)], rank()), round_);
    }
    for (int const peer : readers) {
        ops.wait(done_flag(flags_[own()], peer), round_);
    }
    ops.queue_on(queues().wire());
}

void IpcComm::copy(void* to, void const* from, std::int64_t bytes) {
    if (bytes > 0 && to != from) {
        CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault,
                                   queues().wire()));
    }
}

/// Rank r sums slice r of all arrays into its own array, where the others then read it. Slices are
/// disjoint, so a rank that still reads is never in the way of one that sums already; the second
/// handshake says both "summed" and "read".
void IpcComm::do_all_reduce_sum(std::string_view label, Tensor data) {
    Call const call = begin_call("all_reduce", label);
    std::vector<std::byte*> const arrays = tell_and_hear_all(call, data);
    std::int64_t const elements = data.elements();
    auto const slice_begin = [&](int r) {  // multiples of 4, so that slices stay aligned
        return r == size() ? elements : elements / 4 * r / size() * 4;
    };
    auto const array = [&](int r) {
        return reinterpret_cast<float*>(arrays[static_cast<std::size_t>(r)]);
    };
    ready(others_, others_);
    std::int64_t const begin = slice_begin(rank());
    std::int64_t const count = slice_begin(rank() + 1) - begin;
    if (count > 0) {
        std::vector<float const*> slices;
        for (int r = 0; r < size(); ++r) {
            slices.push_back(array(r) + begin);
        }
        queue_sum(array(rank()) + begin, slices, count, multiprocessors_, queues().wire());
    }
    ready(others_, others_);
    for (int const peer : others_) {
        std::int64_t const at = slice_begin(peer);
        std::int64_t const floats = slice_begin(peer + 1) - at;
        if (floats > 0) {
            copy(array(rank()) + at, array(peer) + at,
                 floats * static_cast<std::int64_t>(sizeof(float)));
        }
    }
    done(others_, others_);
    call_queued(describe(call.op, label));
}

int IpcComm::do_begin_all_gather(std::string_view label, Tensor recv, Tensor send, Sizes rows) {
    Call const call = begin_call("all_gather", label);
    auto const row_bytes = recv.cols * static_cast<std::int64_t>(element_bytes(recv.dtype));
    for (int const peer : others_) {
        tell(peer, call, send.data, rows[own()] * row_bytes);
    }
    std::vector<std::byte*> blocks(rows.size());
    blocks[own()] = static_cast<std::byte*>(send.data);
    for (int const peer : others_) {
        auto const p = static_cast<std::size_t>(peer);
        blocks[p] = hear(peer, call, rows[p] * row_bytes);
    }
    std::vector<std::int64_t> const begins = begins_of(rows);
    ready(others_, others_);
    auto const place = [&](int r) {
        auto const p = static_cast<std::size_t>(r);
        if (rows[p] > 0) {
            copy(static_cast<std::byte*>(recv.data) + begins[p] * row_bytes, blocks[p],
                 rows[p] * row_bytes);
        }
    };
    std::ranges::for_each(others_, place);
    place(rank());
    done(others_, others_);
    return begun_queued(describe(call.op, label));
}

int IpcComm::do_begin_reduce_scatter_sum(std::string_view label, Tensor recv, Tensor send,
                                         Sizes rows) {
    Call const call = begin_call("reduce_scatter", label);
    std::vector<std::byte*> const arrays = tell_and_hear_all(call, send);
    std::int64_t const begin = begins_of(rows)[own()] * send.cols;
    std::int64_t const count = rows[own()] * send.cols;
    ready(others_, others_);
    if (count > 0) {
        std::vector<float const*> blocks;
        for (std::byte* const array : arrays) {
            blocks.push_back(reinterpret_cast<float*>(array) + begin);
        }
        queue_sum(static_cast<float*>(recv.data), blocks, count, multiprocessors_, queues().wire());
    }
    done(others_, others_);
    return begun_queued(describe(call.op, label));
}

void IpcComm::do_all_to_all(std::string_view label, Tensor recv, Tensor send, Sizes send_elements,
                            Sizes recv_elements) {
    Call const call = begin_call("all_to_all", label);
    auto const send_unit = static_cast<std::int64_t>(element_bytes(send.dtype));
    auto const recv_unit = static_cast<std::int64_t>(element_bytes(recv.dtype));
    std::vector<std::int64_t> const leaving = begins_of(send_elements);
    std::vector<std::int64_t> const arriving = begins_of(recv_elements);
    auto const piece = [&](std::size_t p) {  // null stays null: an empty one is not used
        return send.data == nullptr ? nullptr
                                    : static_cast<std::byte*>(send.data) + leaving[p] * send_unit;
    };
    for (int const peer : others_) {
        auto const p = static_cast<std::size_t>(peer);
        tell(peer, call, piece(p), send_elements[p] * send_unit);
    }
    std::vector<std::byte*> pieces(recv_elements.size());
    pieces[own()] = piece(own());
    for (int const peer : others_) {
        auto const p = static_cast<std::size_t>(peer);
        pieces[p] = hear(peer, call, recv_elements[p] * recv_unit);
    }
    ready(others_, others_);
    auto const place = [&](int r) {
        auto const p = static_cast<std::size_t>(r);
        if (recv_elements[p] > 0) {
            copy(static_cast<std::byte*>(recv.data) + arriving[p] * recv_unit, pieces[p],
                 recv_elements[p] * recv_unit);
        }
    };
    std::ranges::for_each(others_, place);
    place(rank());
    done(others_, others_);
    call_queued(describe(call.op, label));
}

int IpcComm::do_begin_exchange(std::string_view label, Tensor send, int to, Tensor recv, int from) {
    Call const call = begin_call("exchange", label);
    Ranks const readers = to == no_peer ? Ranks{} : Ranks(&to, 1);
    Ranks const sources = from == no_peer ? Ranks{} : Ranks(&from, 1);
    if (readers.empty() && sources.empty()) {
        ++round_;
        return exchange_skipped();
    }
    if (to != no_peer) {
        tell(to, call, send.data, static_cast<std::int64_t>(send.bytes()));
    }
    std::byte const* const source =
        from == no_peer ? nullptr : hear(from, call, static_cast<std::int64_t>(recv.bytes()));
    ready(readers, sources);
    if (source != nullptr) {
        copy(recv.data, source, static_cast<std::int64_t>(recv.bytes()));
    }
    done(readers, sources);
    return begun_queued(describe(call.op, label, from, to));
}

class IpcWires final : public Wires {
  public:
    IpcWires(World& world, Backend& backend)
        : world_(world), backend_(backend), ranks_(describe_ranks(world)) {}
    std::unique_ptr<Comm> form(std::vector<int> const& members) override {
        if (members.size() == 1) {
            return world_.make_host_comm(members);
        }
        return std::make_unique<IpcComm>(world_, backend_, members);
    }
    std::string description() const override { return fmt::format("ipc ({})", ranks_); }

  private:
    World& world_;
    Backend& backend_;
    std::string ranks_;
};

}  // namespace

std::unique_ptr<Wires> make_ipc_wires(World& world, Backend& backend) {
    return std::make_unique<IpcWires>(world, backend);
}

}  // namespace cpstep
