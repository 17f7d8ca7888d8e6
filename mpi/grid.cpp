#include "mpi/grid.hpp"

#include <fmt/ranges.h>

namespace cpstep {
namespace {

std::vector<int> every(int step, int first, int count) {
    std::vector<int> ranks;
    for (int i = 0; i < count; ++i) {
        ranks.push_back(first + i * step);
    }
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

GridShape make_grid_shape(int world, int cp, int a2a) {
    require(world >= 1, ExitCode::internal, "a grid of {} ranks", world);
    require(
        world > 1 || cp <= 1, ExitCode::usage,
        "context parallel size {0} needs {0} ranks, this job has 1 (valid size: 1); start it as "
        "`mpirun -np {0} cpstep run ...` or `srun -n {0} --mpi=pmix cpstep run ...`",
        cp);
    require(cp >= 1 && world % cp == 0, ExitCode::usage,
            "context parallel size {} does not divide this job's {} rank{}; valid sizes: {}", cp,
            world, world == 1 ? "" : "s", fmt::join(valid_cp_sizes(world), ", "));
    require(a2a >= 1 && cp % a2a == 0, ExitCode::internal,
            "groups of {} ranks do not divide a context parallel group of {}", a2a, cp);
    return {.world = world, .cp = cp, .a2a = a2a};
}

Grid::Grid(World const& world, GridShape shape, Wires& wires)
    : shape_(shape), dp_rank_(shape.dp_rank(world.rank())), cp_rank_(shape.cp_rank(world.rank())) {
    require(shape.world == world.size(), ExitCode::internal, "a grid of {} ranks in a job of {}",
            shape.world, world.size());
    // Every rank forms its groups in this order, so that none waits in a circle.
    int const first = shape.rank_of(dp_rank_, 0);
    int const place = cp_rank_ % shape.a2a;
    cp_ = form(wires, every(1, first, shape.cp));
    dp_cp_ = form(wires, every(1, 0, shape.world));
    a2a_ = shape.a2a == shape.cp ? cp_ : form(wires, every(1, first + cp_rank_ - place, shape.a2a));
    ring_ = shape.a2a == 1 ? cp_ : form(wires, every(shape.a2a, first + place, shape.ring()));
}

Comm* Grid::form(Wires& wires, std::vector<int> const& members) {
    return groups_.emplace_back(wires.form(members)).get();
}

Ledger Grid::ledger() const {
    Ledger all;
    for (auto const& group : groups_) {
        for (auto const& [label, entry] : group->ledger()) {
            require(all.emplace(label, entry).second, ExitCode::internal,
                    "label '{}' is used in two groups; give each its own label", label);
        }
    }
    return all;
}

void Grid::clear_ledger() {
    for (auto const& group : groups_) {
        group->clear_ledger();
    }
}

void Grid::set_observer(CommObserver* observer) {
    for (auto const& group : groups_) {
        group->set_observer(observer);
    }
}

}  // namespace cpstep
