// Is a wire right, and how fast is it: for a look at a machine before a run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/backend.hpp"
#include "mpi/comm.hpp"
#include "mpi/world.hpp"

namespace cpstep {

/// Values of this rank that were wrong after an all-reduce and a ring exchange of 1 MiB each, whose
/// results are known exactly. Collective over the wire; Error(communication) past a deadline.
std::int64_t wrong_values(Backend& backend, Comm& wire);

/// One operation at one message size.
struct WireRate {
    std::string op;  ///< "ring" (send to the next rank, receive from the one before), "all_reduce"
    std::int64_t bytes = 0;  ///< of a rank's message
    double seconds = 0;      ///< a call; the slowest rank's, best of three series
    /// 1e9 bytes/s a link must carry, whatever the number n of ranks: bytes / seconds for the ring,
    /// times 2 (n - 1) / n for the all-reduce (nccl-tests, doc/PERFORMANCE.md).
    double bus_gb_per_s = 0;
};

inline constexpr std::int64_t smallest_message = std::int64_t{4} << 10;
inline constexpr std::int64_t largest_message = std::int64_t{256} << 20;

/// Sizes smallest_message, 4 times that, ... up to `largest`. Collective; groups of 2 and more.
std::vector<WireRate> measure_wire(World& world, Backend& backend, Comm& wire,
                                   std::int64_t largest);

/// Bytes of buffers that measure_wire() takes on each rank.
inline std::int64_t wire_probe_bytes(std::int64_t largest) {
    return 2 * largest;
}

}  // namespace cpstep
