#include "mpi/mailbox.hpp"

#include <algorithm>
#include <exception>
#include <list>
#include <utility>

#include "mpi/comm_bodies.hpp"
#include "mpi/mpi_group.hpp"

namespace cpstep {
namespace {

using Bytes = std::vector<std::byte>;

bool finished(MPI_Request& request) {
    int flag = 0;
    MPI_CHECK(MPI_Test(&request, &flag, MPI_STATUS_IGNORE));
    return flag != 0;
}

class MpiMailbox final : public Mailbox {
  public:
    /// Owns `comm`.
    MpiMailbox(World const& world, MPI_Comm comm) : world_(world), comm_(comm) {}
    MpiMailbox(MpiMailbox const&) = delete;
    MpiMailbox& operator=(MpiMailbox const&) = delete;
    /// Where peers may not come along, memory and group are left to the end of the process.
    ~MpiMailbox() override {
        if (std::uncaught_exceptions() > 0 || broken_ || !all_left()) {
            for (Letter& letter : leaving_) {
                [[maybe_unused]] Bytes const* const leaked = letter.bytes.release();
            }
            return;
        }
        (void)MPI_Comm_free(&comm_);
    }

    void send(int to, std::span<std::byte const> message) override {
        progress();
        Letter& letter = leaving_.emplace_back();
        letter.bytes = std::make_unique<Bytes>(message.begin(), message.end());
        MPI_CHECK(MPI_Isend(letter.bytes->data(), static_cast<int>(letter.bytes->size()), MPI_BYTE,
                            to, tag, comm_, &letter.request));
    }

    void receive(int from, std::span<std::byte> message, What const& what) override {
        auto arriving = std::make_unique<Bytes>(message.size());
        MPI_Request request = MPI_REQUEST_NULL;
        broken_ = true;  // until it has arrived
        MPI_CHECK(MPI_Irecv(arriving->data(), static_cast<int>(arriving->size()), MPI_BYTE, from,
                            tag, comm_, &request));
        wait_for([&] { return finished(request); }, world_.deadline(), what, arriving);
        broken_ = false;
        std::ranges::copy(*arriving, message.begin());
    }

    void progress() override {
        leaving_.remove_if([](Letter& letter) { return finished(letter.request); });
    }

  private:
    static constexpr int tag = 0;
    struct Letter {
        MPI_Request request = MPI_REQUEST_NULL;
        std::unique_ptr<Bytes> bytes;
    };

    bool all_left() noexcept {
        try {
            return poll_until(
                [&] {
                    progress();
                    return leaving_.empty();
                },
                world_.deadline());
        } catch (Error const&) {
            return false;
        }
    }

    World const& world_;
    MPI_Comm comm_;
    std::list<Letter> leaving_;
    bool broken_ = false;
};

}  // namespace

std::unique_ptr<Mailbox> make_mailbox(World const& world, std::vector<int> const& members) {
    return std::make_unique<MpiMailbox>(world, form_mpi_group(world, members));
}

}  // namespace cpstep
