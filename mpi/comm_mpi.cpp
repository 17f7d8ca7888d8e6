// Comm over MPI for host memory: only non-blocking calls, each polled with the world's deadline.
#include <algorithm>
#include <exception>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

#include "mpi/comm_bodies.hpp"
#include "mpi/mpi_group.hpp"

namespace cpstep {
namespace {

// The non-blocking all-reduce of Open MPI takes scratch memory of the size of one call.
constexpr std::int64_t reduce_chunk_floats = std::int64_t{1} << 24;
constexpr std::int64_t message_chunk_bytes = std::int64_t{1} << 30;  // counts of MPI 3 are int
constexpr int tag_count = 32767;                                     // MPI promises tags 0 .. 32767

/// Of values that are only moved, so bf16 is any type of two bytes.
MPI_Datatype type_of(Tensor tensor) {
    switch (tensor.dtype) {
        case DType::i32:
            return MPI_INT32_T;
        case DType::bf16:
            return MPI_UINT16_T;
        case DType::f32:
            break;
    }
    return MPI_FLOAT;
}

/// Where a collective reads. Open MPI takes equal addresses for MPI_IN_PLACE, also where one side
/// is empty and shares its address with the other.
void const* send_address(Tensor send) {
    static float const nothing = 0;
    return send.elements() == 0 ? &nothing : send.data;
}
void* recv_address(Tensor send, Tensor recv) {
    static float nothing = 0;
    require(send.data != recv.data || send.elements() == 0 || recv.elements() == 0,
            ExitCode::internal, "a collective receives where it sends from");
    return recv.elements() == 0 ? &nothing : recv.data;
}

class MpiComm final : public Comm {
  public:
    /// Owns `comm`, whose ranks are `members` in this order.
    MpiComm(World const& world, MPI_Comm comm, int rank, std::vector<int> const& members)
        : Comm(rank, static_cast<int>(members.size())),
          world_(world),
          comm_(comm),
          members_(members) {}

    MpiComm(MpiComm const&) = delete;
    MpiComm& operator=(MpiComm const&) = delete;
    /// Freeing is collective, so it is left out where peers may not come along: while an exception
    /// unwinds, and after a call that did not finish.
    ~MpiComm() override {
        if (std::uncaught_exceptions() == 0 && unfinished_ == 0) {
            (void)MPI_Comm_free(&comm_);
        }
        for (auto& [ticket, call] : in_flight_) {
            [[maybe_unused]] auto* const kept = call.pieces.release();  // MPI may still read them
        }
    }

    int world_rank_of(int group_rank) const override {
        return members_[static_cast<std::size_t>(group_rank)];
    }

  private:
    struct Part {
        MPI_Request request = MPI_REQUEST_NULL;
        int peer = -1;            // world rank
        int expected_bytes = -1;  // of a receive; -1 for a send
    };
    /// Size and place of every rank's piece, in elements; MPI reads them until a call has finished.
    struct Pieces {
        std::vector<int> counts;
        std::vector<int> offsets;
    };
    /// A begun call: an exchange, or a collective, which has one part and pieces.
    struct Begun {
        std::string_view op;
        std::string label;
        std::vector<Part> parts;
        std::unique_ptr<Pieces> pieces;
    };

    void do_all_reduce_sum(std::string_view label, Tensor data) override {
        std::int64_t const floats = data.elements();
        auto* const begin = static_cast<float*>(data.data);
        for (std::int64_t at = 0; at < floats; at += reduce_chunk_floats) {
            auto const count = static_cast<int>(std::min(reduce_chunk_floats, floats - at));
            MPI_Request request = MPI_REQUEST_NULL;
            ++unfinished_;
            MPI_CHECK(MPI_Iallreduce(MPI_IN_PLACE, begin + at, count, MPI_FLOAT, MPI_SUM, comm_,
                                     &request));
            finish(request, "all_reduce", label);
        }
    }

    int do_begin_all_gather(std::string_view label, Tensor recv, Tensor send,
                            std::span<std::int64_t const> rows) override {
        auto blocks = pieces_of("all_gather", label, rows, recv.cols);
        MPI_Request request = MPI_REQUEST_NULL;
        ++unfinished_;
        MPI_CHECK(MPI_Iallgatherv(send_address(send), blocks->counts[own()], type_of(recv),
                                  recv_address(send, recv), blocks->counts.data(),
                                  blocks->offsets.data(), type_of(recv), comm_, &request));
        return collective_begun("all_gather", label, request, std::move(blocks));
    }

    int do_begin_reduce_scatter_sum(std::string_view label, Tensor recv, Tensor send,
                                    std::span<std::int64_t const> rows) override {
        auto blocks = pieces_of("reduce_scatter", label, rows, send.cols);
        MPI_Request request = MPI_REQUEST_NULL;
        ++unfinished_;
        MPI_CHECK(MPI_Ireduce_scatter(send_address(send), recv_address(send, recv),
                                      blocks->counts.data(), MPI_FLOAT, MPI_SUM, comm_, &request));
        return collective_begun("reduce_scatter", label, request, std::move(blocks));
    }

    int collective_begun(std::string_view op, std::string_view label, MPI_Request request,
                         std::unique_ptr<Pieces> pieces) {
        Begun call{.op = op, .label = std::string(label), .parts = {}, .pieces = std::move(pieces)};
        call.parts.emplace_back().request = request;
        int const ticket = next_ticket_++;
        in_flight_.emplace(ticket, std::move(call));
        return ticket;
    }

    void do_all_to_all(std::string_view label, Tensor recv, Tensor send,
                       std::span<std::int64_t const> send_elements,
                       std::span<std::int64_t const> recv_elements) override {
        auto leaving = pieces_of("all_to_all", label, send_elements, 1);
        auto arriving = pieces_of("all_to_all", label, recv_elements, 1);
        MPI_Request request = MPI_REQUEST_NULL;
        ++unfinished_;
        MPI_CHECK(MPI_Ialltoallv(send_address(send), leaving->counts.data(),
                                 leaving->offsets.data(), type_of(send), recv_address(send, recv),
                                 arriving->counts.data(), arriving->offsets.data(), type_of(recv),
                                 comm_, &request));
        finish(request, "all_to_all", label, leaving, arriving);
    }

    int do_begin_exchange(std::string_view label, Tensor send, int to, Tensor recv,
                          int from) override {
        int const ticket = next_ticket_++;
        int const tag = ticket % tag_count;
        Begun exchange{
            .op = "exchange", .label = std::string(label), .parts = {}, .pieces = nullptr};
        ++unfinished_;
        if (from != no_peer) {
            for_each_chunk(recv, [&](std::byte* data, int bytes) {
                Part& part = exchange.parts.emplace_back();
                part.peer = world_rank_of(from);
                part.expected_bytes = bytes;
                MPI_CHECK(MPI_Irecv(data, bytes, MPI_BYTE, from, tag, comm_, &part.request));
            });
        }
        if (to != no_peer) {
            for_each_chunk(send, [&](std::byte* data, int bytes) {
                Part& part = exchange.parts.emplace_back();
                part.peer = world_rank_of(to);
                MPI_CHECK(MPI_Isend(data, bytes, MPI_BYTE, to, tag, comm_, &part.request));
            });
        }
        in_flight_.emplace(ticket, std::move(exchange));
        return ticket;
    }

    void do_end_call(int ticket) override {
        auto node = in_flight_.extract(ticket);
        Begun& call = node.mapped();
        for (Part& part : call.parts) {
            wait_for([&] { return test(call, part); }, world_.deadline(),
                     [&] { return describe(call, part); }, call.pieces);
        }
        --unfinished_;
    }

    std::size_t own() const { return static_cast<std::size_t>(rank()); }

    /// The pieces of `sizes` units each that lie one behind the other.
    static std::unique_ptr<Pieces> pieces_of(std::string_view op, std::string_view label,
                                             std::span<std::int64_t const> sizes,
                                             std::int64_t unit) {
        auto const total = unit * std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
        constexpr int most = std::numeric_limits<int>::max();
        require(total <= most, ExitCode::communication,
                "{} '{}' of {} elements exceeds the {} of one MPI call; use smaller micro batches",
                op, label, total, most);
        auto pieces = std::make_unique<Pieces>();
        int offset = 0;
        for (std::int64_t const size : sizes) {
            pieces->counts.push_back(static_cast<int>(size * unit));
            pieces->offsets.push_back(offset);
            offset += pieces->counts.back();
        }
        return pieces;
    }

    /// Waits for a collective, which reads `kept`.
    template <class... Kept>
    void finish(MPI_Request request, std::string_view op, std::string_view label, Kept&... kept) {
        auto const done = [&] {
            int flag = 0;
            MPI_CHECK(MPI_Test(&request, &flag, MPI_STATUS_IGNORE));
            return flag != 0;
        };
        wait_for(
            done, world_.deadline(),
            [&] { return fmt::format("{} '{}' (group of {})", op, label, size()); }, kept...);
        --unfinished_;
    }

    /// An empty tensor makes one empty message, so that both sides know the exchange took place.
    template <class F>
    static void for_each_chunk(Tensor tensor, F const& f) {
        auto const total = static_cast<std::int64_t>(tensor.bytes());
        std::int64_t at = 0;
        do {
            auto const bytes = static_cast<int>(std::min(message_chunk_bytes, total - at));
            f(static_cast<std::byte*>(tensor.data) + at, bytes);
            at += bytes;
        } while (at < total);
    }

    std::string describe(Begun const& call, Part const& part) const {
        std::string const peer = part.peer < 0 ? "" : fmt::format(" with rank {}", part.peer);
        return fmt::format("{} '{}'{} (group of {})", call.op, call.label, peer, size());
    }

    bool test(Begun const& call, Part& part) const {
        int flag = 0;
        MPI_Status status{};
        int const rc = MPI_Test(&part.request, &flag, &status);
        require(rc != MPI_ERR_TRUNCATE, ExitCode::communication,
                "{}: a message longer than the expected {} bytes arrived", describe(call, part),
                part.expected_bytes);
        check_mpi(rc, "MPI_Test");
        if (flag != 0 && part.expected_bytes >= 0) {
            int bytes = 0;
            MPI_CHECK(MPI_Get_count(&status, MPI_BYTE, &bytes));
            require(bytes == part.expected_bytes, ExitCode::communication,
                    "{}: {} bytes arrived where {} were expected", describe(call, part), bytes,
                    part.expected_bytes);
        }
        return flag != 0;
    }

    World const& world_;
    MPI_Comm comm_;
    std::vector<int> members_;
    std::map<int, Begun> in_flight_;
    int next_ticket_ = 0;
    int unfinished_ = 0;  // calls begun and not ended well
};

}  // namespace

std::unique_ptr<Comm> make_mpi_comm(World const& world, std::vector<int> const& members) {
    MPI_Comm const comm = form_mpi_group(world, members);
    int rank = 0;
    MPI_CHECK(MPI_Comm_rank(comm, &rank));
    return std::make_unique<MpiComm>(world, comm, rank, members);
}

}  // namespace cpstep
