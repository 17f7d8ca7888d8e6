// Whether GPUs kept their clocks while steps were timed.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "cuda/nvml.hpp"
#include "mpi/world.hpp"

namespace cpstep {

/// One GPU over the steps of a block, looked at after each.
struct BlockClock {
    int rank = 0;
    int block = 0;
    std::int64_t reasons = 0;  ///< all bits of clock_reason that were seen
    int lowest_mhz = 0;        ///< of the SM clock; 0: not known
    int highest_c = 0;         ///< temperature; 0: not known
};

/// Looks at the clock of one rank's GPU. Reads cost well under a millisecond and fall between
/// steps.
class ClockWatch {
  public:
    explicit ClockWatch(std::string pci_bus_id, std::string const& library = nvml_library);

    /// The GPU as it is now, at the end of a step of a timed block. Blocks come in order.
    void look(int block);

    std::vector<BlockClock> const& blocks() const { return blocks_; }
    /// Why the last look that found nothing did so; "" if all found something.
    std::string const& why() const { return why_; }

  private:
    std::string pci_bus_id_;
    Nvml nvml_;
    std::vector<BlockClock> blocks_;
    std::string why_;
};

/// The blocks of every rank, by rank. Collective.
std::vector<BlockClock> gather_clocks(World& world, std::vector<BlockClock> const& own);

/// Blocks in which some GPU was slower than it should be (clock_reason::slowed).
std::set<int> slowed_blocks(std::vector<BlockClock> const& clocks);

/// Which GPUs could not be looked at and why, from each rank's ClockWatch::why(); "" where all
/// could. Collective; on rank 0.
std::string unwatched_note(World& world, std::string const& why);

/// A line for each GPU that was slowed or at its power limit, at most four; then how many more.
std::vector<std::string> clock_notes(std::vector<BlockClock> const& clocks);

}  // namespace cpstep
