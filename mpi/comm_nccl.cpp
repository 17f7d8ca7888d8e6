// Comm over NCCL: the world's communicator and its splits, non-blocking, every call polled with the
// world's deadline, so that it can be aborted at any time. NCCL puts a call on the stream from a
// thread of its own; a begun call is waited for no sooner than its result or the stream is needed,
// and its end is marked then.
#include <nccl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>
#include <utility>

#include "mpi/comm_bodies.hpp"
#include "mpi/comm_device.hpp"
#include "mpi/nccl_facts.hpp"
#include "mpi/wire_bodies.hpp"

static_assert(NCCL_VERSION_CODE >= NCCL_VERSION(2, 18, 0), "ncclCommSplit came with NCCL 2.18");

namespace cpstep {
namespace {

using Sizes = std::span<std::int64_t const>;

/// Throws Error(communication) with NCCL's own texts, unless rc is success or "in progress".
void check_nccl(ncclResult_t rc, std::string_view call) {
    if (rc == ncclSuccess || rc == ncclInProgress) {
        return;
    }
    char const* const last = ncclGetLastError(nullptr);
    std::string_view const more = last == nullptr ? "" : last;
    fail(ExitCode::communication, "{}: {}{}{}", call.substr(0, call.find('(')),
         ncclGetErrorString(rc), more.empty() ? "" : "; ", more);
}
#define NCCL_CHECK(call) check_nccl((call), #call)

/// Owns a communicator. Teardown in order finalizes it; while an exception unwinds, or after a
/// failure, it is aborted, which needs no peer.
class Communicator {
  public:
    Communicator(World const& world, std::shared_ptr<Communicator> parent)
        : world_(world), parent_(std::move(parent)) {}
    Communicator(Communicator const&) = delete;
    Communicator& operator=(Communicator const&) = delete;
    ~Communicator() {
        bool const in_order = comm_ != nullptr && !aborted_ && std::uncaught_exceptions() == 0;
        if (!in_order || !finalized()) {
            abort();
        }
    }

    /// Where NCCL puts the handle; it may write there until settle() has returned.
    ncclComm_t* slot() { return &comm_; }
    ncclComm_t get() const {
        require(!aborted_, ExitCode::communication, "NCCL was given up after an earlier failure");
        return comm_;
    }

    /// Waits until the communicator has done what it was asked on the host's side.
    template <class What>
    void settle(What const& what) const {
        auto const settled = [&] {
            ncclResult_t state = ncclInProgress;
            NCCL_CHECK(ncclCommGetAsyncError(get(), &state));
            check_nccl(state, "NCCL");
            return state == ncclSuccess;
        };
        wait_for(settled, world_.deadline(), what);
    }
    void check() const {
        if (comm_ != nullptr && !aborted_) {
            ncclResult_t state = ncclSuccess;
            NCCL_CHECK(ncclCommGetAsyncError(comm_, &state));
            check_nccl(state, "NCCL");
        }
    }
    void abort() noexcept {
        if (comm_ != nullptr && !std::exchange(aborted_, true)) {
            (void)ncclCommAbort(comm_);
        }
    }

  private:
    /// All members come along, and the handle is gone.
    bool finalized() noexcept {
        try {
            NCCL_CHECK(ncclCommFinalize(comm_));
            settle([] { return std::string("ncclCommFinalize"); });
        } catch (Error const&) {
            return false;
        }
        (void)ncclCommDestroy(comm_);
        return true;
    }

    World const& world_;
    std::shared_ptr<Communicator> parent_;  // goes after its children
    ncclComm_t comm_ = nullptr;
    bool aborted_ = false;
};

class NcclComm final : public DeviceComm {
  public:
    NcclComm(World const& world, Backend& backend, std::vector<int> const& members,
             std::shared_ptr<Communicator> communicator)
        : DeviceComm(world, backend, members), communicator_(std::move(communicator)) {}
    NcclComm(NcclComm const&) = delete;
    NcclComm& operator=(NcclComm const&) = delete;
    ~NcclComm() override {
        try {
            if (std::uncaught_exceptions() == 0) {
                drain();
            }
        } catch (Error const&) {
            communicator_->abort();
        }
    }

  private:
    void do_all_reduce_sum(std::string_view label, Tensor data) override {
        queue_collective("all_reduce", label, [&] {
            auto const count = static_cast<std::size_t>(data.elements());
            if (count > 0) {
                NCCL_CHECK(ncclAllReduce(data.data, data.data, count, ncclFloat32, ncclSum, comm(),
                                         wire()));
            }
        });
    }

    int do_begin_all_gather(std::string_view label, Tensor recv, Tensor send, Sizes rows) override {
        auto const row_bytes = recv.cols * static_cast<std::int64_t>(element_bytes(recv.dtype));
        return begin_collective("all_gather", label, [&] {
            if (rows[own()] * row_bytes > 0 && equal(rows)) {
                NCCL_CHECK(ncclAllGather(send.data, recv.data, bytes_of(rows[own()] * row_bytes),
                                         ncclUint8, comm(), wire()));
                return;
            }
            std::byte* to = static_cast<std::byte*>(recv.data);
            for (int r = 0; r < size(); ++r) {
                std::int64_t const bytes = rows[static_cast<std::size_t>(r)] * row_bytes;
                move(r, send.data, rows[own()] * row_bytes, to, bytes);
                to += bytes;
            }
        });
    }

    int do_begin_reduce_scatter_sum(std::string_view label, Tensor recv, Tensor send,
                                    Sizes rows) override {
        return begin_collective("reduce_scatter", label, [&] {
            auto const* from = static_cast<float const*>(send.data);
            if (rows[own()] * send.cols > 0 && equal(rows)) {
                NCCL_CHECK(ncclReduceScatter(from, recv.data, bytes_of(rows[own()] * send.cols),
                                             ncclFloat32, ncclSum, comm(), wire()));
                return;
            }
            for (int r = 0; r < size(); ++r) {
                std::int64_t const floats = rows[static_cast<std::size_t>(r)] * send.cols;
                if (floats > 0) {
                    NCCL_CHECK(ncclReduce(from, r == rank() ? recv.data : nullptr,
                                          static_cast<std::size_t>(floats), ncclFloat32, ncclSum, r,
                                          comm(), wire()));
                }
                from += floats;
            }
        });
    }

    void do_all_to_all(std::string_view label, Tensor recv, Tensor send, Sizes send_elements,
                       Sizes recv_elements) override {
        auto const send_unit = static_cast<std::int64_t>(element_bytes(send.dtype));
        auto const recv_unit = static_cast<std::int64_t>(element_bytes(recv.dtype));
        queue_collective("all_to_all", label, [&] {
            auto const* from = static_cast<std::byte const*>(send.data);
            auto* to = static_cast<std::byte*>(recv.data);
            for (int r = 0; r < size(); ++r) {
                auto const p = static_cast<std::size_t>(r);
                move(r, from, send_elements[p] * send_unit, to, recv_elements[p] * recv_unit);
                from += send_elements[p] * send_unit;
                to += recv_elements[p] * recv_unit;
            }
        });
    }

    int do_begin_exchange(std::string_view label, Tensor send, int to, Tensor recv,
                          int from) override {
        if (to == no_peer && from == no_peer) {
            return exchange_skipped();
        }
        return begin_call(describe("exchange", label, from, to), [&] {
            if (to != no_peer) {
                send_to(to, send.data, static_cast<std::int64_t>(send.bytes()));
            }
            if (from != no_peer) {
                receive_from(from, recv.data, static_cast<std::int64_t>(recv.bytes()));
            }
        });
    }

    void check() override { communicator_->check(); }
    void give_up() noexcept override {
        begun_.reset();
        communicator_->abort();
    }
    void settle() override {
        if (begun_) {
            int const ticket = *std::exchange(begun_, std::nullopt);
            wait_for_nccl(what(ticket));
            queued(ticket);
        }
    }

    ncclComm_t comm() const { return communicator_->get(); }
    cudaStream_t wire() { return queues().wire(); }
    std::size_t own() const { return static_cast<std::size_t>(rank()); }
    static bool equal(Sizes sizes) {
        return std::ranges::adjacent_find(sizes, std::ranges::not_equal_to{}) == sizes.end();
    }
    static std::size_t bytes_of(std::int64_t n) { return static_cast<std::size_t>(n); }

    /// What is empty is not sent, and not received on the other side, which knows the size.
    void send_to(int peer, void const* data, std::int64_t bytes) {
        if (bytes > 0) {
            NCCL_CHECK(ncclSend(data, bytes_of(bytes), ncclUint8, peer, comm(), wire()));
        }
    }
    void receive_from(int peer, void* data, std::int64_t bytes) {
        if (bytes > 0) {
            NCCL_CHECK(ncclRecv(data, bytes_of(bytes), ncclUint8, peer, comm(), wire()));
        }
    }
    /// Both ways with a rank; with this one it is a copy.
    void move(int peer, void const* from, std::int64_t sent, void* to, std::int64_t received) {
        if (peer != rank()) {
            send_to(peer, from, sent);
            receive_from(peer, to, received);
        } else if (sent > 0 && from != to) {
            CUDA_CHECK(cudaMemcpyAsync(to, from, bytes_of(sent), cudaMemcpyDeviceToDevice, wire()));
        }
    }

    /// The calls of `add` become one NCCL call, which has yet to come to the stream.
    template <class Add>
    void launch(Add const& add) {
        bool in_group = false;
        try {
            NCCL_CHECK(ncclGroupStart());
            in_group = true;
            add();
            in_group = false;
            NCCL_CHECK(ncclGroupEnd());
        } catch (Error const&) {
            if (in_group) {
                (void)ncclGroupEnd();  // an abort inside a group would wait for its end
            }
            queues().give_up();
            throw;
        }
    }
    /// What was launched last is on the stream when this returns.
    void wait_for_nccl(std::string const& what) {
        try {
            communicator_->settle([&] { return what; });
        } catch (Error const&) {
            queues().give_up();
            throw;
        }
    }
    template <class Add>
    void queue_collective(std::string_view op, std::string_view label, Add const& add) {
        std::string what = describe(op, label);
        launch(add);
        wait_for_nccl(what);
        call_queued(std::move(what));
    }
    template <class Add>
    int begin_call(std::string what, Add const& add) {
        launch(add);
        begun_ = begun(std::move(what));
        return *begun_;
    }
    template <class Add>
    int begin_collective(std::string_view op, std::string_view label, Add const& add) {
        return begin_call(describe(op, label), add);
    }

    std::shared_ptr<Communicator> communicator_;
    std::optional<int> begun_;  ///< the call that may not be on the stream yet
};

/// Without these NCCL refuses two ranks on one GPU; set before its first call, where the user has
/// not set them.
void let_ranks_share_gpus(World const& world, int version) {
    auto const set = [](char const* name, std::string const& value) {
        (void)setenv(name, value.c_str(), 0);
    };
    if (version >= NCCL_VERSION(2, 30, 0)) {
        set("NCCL_MULTI_RANK_GPU_ENABLE", "1");
        return;
    }
    // Each rank counts as a host of its own, with one GPU; hosts talk over sockets.
    set("NCCL_HOSTID", fmt::format("{}-r{}", world.host(), world.rank()));
    set("NCCL_NET", "Socket");
    set("NCCL_IB_DISABLE", "1");
    set("NCCL_MNNVL_ENABLE", "0");
    if (world.local_size() == world.size()) {
        set("NCCL_SOCKET_IFNAME", "lo");
    }
}

int library_version() {
    NcclFacts const nccl = nccl_facts();
    require(nccl.library.known(), ExitCode::environment, "{}", nccl.library.why);
    int const version = *nccl.library.value;
    require(version / 100 >= NCCL_VERSION_CODE / 100, ExitCode::environment,
            "NCCL {} ({}) is older than the {} this program was built with; put that library first "
            "in LD_LIBRARY_PATH, or use --transport ipc or mpi",
            nccl_version_text(version), nccl.path, nccl_version_text(NCCL_VERSION_CODE));
    return version;
}

class NcclWires final : public Wires {
  public:
    NcclWires(World& world, Backend& backend, bool shared, int max_ctas)
        : world_(world), backend_(backend), shared_(shared), ranks_(describe_ranks(world)) {
        world.collectively([&] { version_ = library_version(); });
        if (shared) {
            let_ranks_share_gpus(world, version_);
        }
        // Ranks of one GPU take turns on it; fewer blocks wait less for each other.
        constexpr int shared_max_ctas = 4;
        config_.blocking = 0;
        config_.splitShare = 0;
        if (max_ctas > 0 || shared) {
            config_.maxCTAs = max_ctas > 0 ? max_ctas : shared_max_ctas;
        }
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)
        config_.commName = "cpstep";
#endif
        begin();
    }

    std::unique_ptr<Comm> form(std::vector<int> const& members) override {
        bool const alone = members.size() == 1;
        // A split is collective over the world; where no rank needs one there is none.
        if (world_.max(alone ? 0.0 : 1.0) == 0.0) {
            return world_.make_host_comm(members);
        }
        if (is_whole_world(members)) {
            return std::make_unique<NcclComm>(world_, backend_, members, all_);
        }
        std::shared_ptr<Communicator> group = split(members);
        if (alone) {
            return world_.make_host_comm(members);
        }
        return std::make_unique<NcclComm>(world_, backend_, members, std::move(group));
    }

    std::string description() const override {
        return fmt::format("nccl {} ({}, {}{})", nccl_version_text(version_), nccl_facts().path,
                           ranks_, shared_ ? ", shared GPUs" : "");
    }
    bool timing_valid() const override { return !shared_; }

  private:
    void begin() {
        ncclUniqueId id{};
        world_.collectively([&] {
            if (world_.root()) {
                NCCL_CHECK(ncclGetUniqueId(&id));
            }
        });
        std::string const bytes = world_.broadcast({id.internal, sizeof id.internal});
        std::memcpy(id.internal, bytes.data(), sizeof id.internal);
        auto all = std::make_unique<Communicator>(world_, nullptr);
        settled(all, *all, [&] {
            NCCL_CHECK(
                ncclCommInitRankConfig(all->slot(), world_.size(), id, world_.rank(), &config_));
        });
        all_ = std::move(all);
    }

    std::shared_ptr<Communicator> split(std::vector<int> const& members) {
        int const color = members.size() == 1 ? NCCL_SPLIT_NOCOLOR : std::ranges::min(members);
        auto const key =
            static_cast<int>(std::ranges::find(members, world_.rank()) - members.begin());
        auto group = std::make_unique<Communicator>(world_, all_);
        // The parent tells when the new handle is there.
        settled(group, *all_, [&] {
            NCCL_CHECK(ncclCommSplit(all_->get(), color, key, group->slot(), &config_));
        });
        if (group->get() != nullptr) {
            group->settle([] { return std::string("NCCL to form a group"); });
        }
        return group;
    }

    /// Runs `call` and waits for `asked`; NCCL may write to `made` for as long as it has not come.
    template <class Call>
    void settled(std::unique_ptr<Communicator>& made, Communicator const& asked, Call const& call) {
        try {
            call();
            asked.settle([&] { return fmt::format("NCCL to connect {} ranks", world_.size()); });
        } catch (Error const&) {
            [[maybe_unused]] Communicator const* const leaked = made.release();
            throw;
        }
    }

    bool is_whole_world(std::vector<int> const& members) const {
        return static_cast<int>(members.size()) == world_.size() && std::ranges::is_sorted(members);
    }

    World& world_;
    Backend& backend_;
    bool shared_;
    int version_ = 0;
    std::string ranks_;
    ncclConfig_t config_ = NCCL_CONFIG_INITIALIZER;
    std::shared_ptr<Communicator> all_;
};

}  // namespace

std::unique_ptr<Wires> make_nccl_wires(World& world, Backend& backend, bool shared, int max_ctas) {
    return std::make_unique<NcclWires>(world, backend, shared, max_ctas);
}

}  // namespace cpstep
