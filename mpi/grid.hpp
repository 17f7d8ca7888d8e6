// Data parallel x context parallel: rank = dp * CP + cp, so that a CP group is adjacent ranks.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "mpi/wires.hpp"
#include "mpi/world.hpp"

namespace cpstep {

/// Sizes of one variant's grid; pure.
struct GridShape {
    int world = 1;
    int cp = 1;
    int a2a = 1;  ///< adjacent ranks of a CP group that scatter heads among them; divides cp

    int dp() const { return world / cp; }
    int ring() const { return cp / a2a; }
    int dp_rank(int rank) const { return rank / cp; }
    int cp_rank(int rank) const { return rank % cp; }
    int rank_of(int dp_rank, int cp_rank) const { return dp_rank * cp + cp_rank; }
};

/// The CP group sizes a job of `world` ranks can have: its divisors, rising.
std::vector<int> valid_cp_sizes(int world);

/// Throws Error(usage) unless cp divides world; the text lists the valid sizes, and for a single
/// rank the mpirun and srun lines to use.
GridShape make_grid_shape(int world, int cp, int a2a = 1);

/// The communicators of one variant. Collective over the world; `wires` must outlive it.
class Grid {
  public:
    Grid(World const& world, GridShape shape, Wires& wires);

    GridShape shape() const { return shape_; }
    int dp_rank() const { return dp_rank_; }
    int cp_rank() const { return cp_rank_; }
    Comm& cp() { return *cp_; }        ///< the ranks that share this rank's sequences
    Comm& dp_cp() { return *dp_cp_; }  ///< all ranks: gradients and metrics
    /// The `a2a` adjacent CP ranks around this one; cp() itself if they are all.
    Comm& a2a() { return *a2a_; }
    /// The CP ranks at this one's place in their a2a groups, rising; cp() itself if they are all.
    Comm& ring() { return *ring_; }

    /// All ledgers in one; labels are distinct between the groups.
    Ledger ledger() const;
    void clear_ledger();
    void set_observer(CommObserver* observer);

  private:
    Comm* form(Wires& wires, std::vector<int> const& members);

    GridShape shape_;
    int dp_rank_ = 0;
    int cp_rank_ = 0;
    std::vector<std::unique_ptr<Comm>> groups_;
    Comm* cp_ = nullptr;
    Comm* dp_cp_ = nullptr;
    Comm* a2a_ = nullptr;
    Comm* ring_ = nullptr;
};

}  // namespace cpstep
