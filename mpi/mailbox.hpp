// Private to mpi/: small host messages between the members of a group, for wires whose data takes
// another way.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "mpi/world.hpp"

namespace cpstep {

class Mailbox {
  public:
    /// What a wait is for, as its Error says.
    using What = std::function<std::string()>;

    Mailbox() = default;
    Mailbox(Mailbox const&) = delete;
    Mailbox& operator=(Mailbox const&) = delete;
    virtual ~Mailbox() = default;

    /// Returns at once. Messages from one member to another arrive in order.
    virtual void send(int to, std::span<std::byte const> message) = 0;
    /// Waits for the next message of `from`, which has this size. Error(communication) past the
    /// world's deadline.
    virtual void receive(int from, std::span<std::byte> message, What const& what) = 0;
    /// Lets messages leave; call while waiting for something else.
    virtual void progress() = 0;

    /// No member leaves before the last has entered.
    void meet(int rank, int size, What const& what) {
        std::byte token{};
        for (int peer = 0; peer < size; ++peer) {
            if (peer != rank) {
                send(peer, {&token, 1});
            }
        }
        for (int peer = 0; peer < size; ++peer) {
            if (peer != rank) {
                receive(peer, {&token, 1}, what);
            }
        }
    }
};

/// Among `members` (world ranks, in group order); all members call it. `world` must outlive it.
std::unique_ptr<Mailbox> make_mailbox(World const& world, std::vector<int> const& members);

}  // namespace cpstep
