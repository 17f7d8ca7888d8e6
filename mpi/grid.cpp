#include "mpi/grid.hpp"

#include <fmt/ranges.h>

#include <numeric>

namespace cpstep {
namespace {

std::vector<int> consecutive(int first, int count) {
    std::vector<int> ranks(static_cast<std::size_t>(count));
    std::iota(ranks.begin(), ranks.end(), first);
    return ranks;
}

}  // namespace

std::vector<int> valid_cp_sizes(int world) {
    std::vector<int> sizes;
    for (int cp = 1; cp <= world; ++cp) {
        if (world % cp == 0) {
            sizes.push_back(cp);
        }
    }
    return sizes;
}

GridShape make_grid_shape(int world, int cp) {
    require(world >= 1, ExitCode::internal, "a grid of {} ranks", world);
    require(
        world > 1 || cp <= 1, ExitCode::usage,
        "context parallel size {0} needs {0} ranks, this job has 1 (valid size: 1); start it as "
        "`mpirun -np {0} cpstep run ...` or `srun -n {0} --mpi=pmix cpstep run ...`",
        cp);
    require(cp >= 1 && world % cp == 0, ExitCode::usage,
            "context parallel size {} does not divide this job's {} rank{}; valid sizes: {}", cp,
            world, world == 1 ? "" : "s", fmt::join(valid_cp_sizes(world), ", "));
    return {.world = world, .cp = cp};
}

Grid::Grid(World& world, GridShape shape)
    : shape_(shape), dp_rank_(shape.dp_rank(world.rank())), cp_rank_(shape.cp_rank(world.rank())) {
    require(shape.world == world.size(), ExitCode::internal, "a grid of {} ranks in a job of {}",
            shape.world, world.size());
    cp_ = world.make_host_comm(consecutive(shape.rank_of(dp_rank_, 0), shape.cp));
    dp_cp_ = world.make_host_comm(consecutive(0, shape.world));
}

Ledger Grid::ledger() const {
    Ledger both = dp_cp_->ledger();
    for (auto const& [label, entry] : cp_->ledger()) {
        require(both.emplace(label, entry).second, ExitCode::internal,
                "label '{}' is used in the context parallel group and among all ranks", label);
    }
    return both;
}

void Grid::clear_ledger() {
    cp_->clear_ledger();
    dp_cp_->clear_ledger();
}

void Grid::set_observer(CommObserver* observer) {
    cp_->set_observer(observer);
    dp_cp_->set_observer(observer);
}

}  // namespace cpstep
