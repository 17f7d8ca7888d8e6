// Private to mpi/: the bodies of Comm for host memory, and how every wait is bounded.
#pragma once

#include <chrono>
#include <memory>
#include <string_view>
#include <vector>

#include "cuda/poll.hpp"
#include "mpi/comm.hpp"
#include "mpi/world.hpp"

namespace cpstep {

/// The silent wire of a group of one.
std::unique_ptr<Comm> make_self_comm(int world_rank);

/// Host memory over MPI; `world` gives the deadline of every wait and must outlive the result.
std::unique_ptr<Comm> make_mpi_comm(World const& world, std::vector<int> const& members);

/// The memory of any backend over a wire of host memory, which it takes over: copies down, calls
/// it, copies up.
std::unique_ptr<Comm> make_staged_comm(Backend& backend, std::unique_ptr<Comm> host);

/// Throws the Error(communication) of a wait that took longer than `deadline`.
[[noreturn]] void fail_timed_out(std::chrono::milliseconds deadline, std::string_view what);

/// Polls done() until it is true; past `deadline` throws an Error that names what(). When that or
/// done() throws, `kept`, owners of memory that MPI may still use, are leaked on purpose.
template <class Done, class What, class... Kept>
void wait_for(Done const& done, std::chrono::milliseconds deadline, What const& what,
              Kept&... kept) {
    try {
        if (!poll_until(done, deadline)) {
            fail_timed_out(deadline, what());
        }
    } catch (...) {
        ((void)kept.release(), ...);
        throw;
    }
}

}  // namespace cpstep
