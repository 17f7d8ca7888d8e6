#define BOOST_TEST_MODULE grid
#include <array>

#include "mpi/grid.hpp"
#include "tests/errors.hpp"
#include "tests/groups.hpp"

using namespace cpstep;
using namespace cpstep::test;

namespace {

/// The text of the Error that asking for this shape gives.
std::string refusal(int world, int cp) {
    Error const error = error_of([&] { (void)make_grid_shape(world, cp); });
    BOOST_TEST((error.code() == ExitCode::usage));
    return error.what();
}

std::vector<GridShape> shapes_of_this_job() {
    std::vector<GridShape> shapes;
    for (int const cp : valid_cp_sizes(test_world().size())) {
        for (int const a2a : valid_cp_sizes(cp)) {
            shapes.push_back(make_grid_shape(test_world().size(), cp, a2a));
        }
    }
    return shapes;
}

/// The sum over the group of 2^rank, which names the ranks that took part.
int members(Comm& comm, char const* label) {
    std::vector<float> mask{static_cast<float>(1 << test_world().rank())};
    comm.all_reduce_sum(label, tensor_of(mask));
    return static_cast<int>(mask[0]);
}

struct Counter : CommObserver {
    int calls = 0;
    void on_comm(CommRecord const&) override { ++calls; }
};

}  // namespace

BOOST_AUTO_TEST_CASE(context_parallel_ranks_are_adjacent) {
    GridShape const shape = make_grid_shape(8, 2);
    BOOST_TEST(shape.dp() == 4);
    BOOST_TEST(shape.dp_rank(5) == 2);
    BOOST_TEST(shape.cp_rank(5) == 1);
    for (int rank = 0; rank < 8; ++rank) {
        BOOST_TEST(shape.rank_of(shape.dp_rank(rank), shape.cp_rank(rank)) == rank);
    }
}

BOOST_AUTO_TEST_CASE(a_context_parallel_group_is_a_ring_of_head_scattering_groups) {
    BOOST_TEST(make_grid_shape(8, 4).a2a == 1);
    BOOST_TEST(make_grid_shape(8, 4).ring() == 4);
    BOOST_TEST(make_grid_shape(8, 4, 2).ring() == 2);
    BOOST_TEST(make_grid_shape(8, 4, 2).dp() == 2);
    BOOST_TEST(make_grid_shape(8, 4, 4).ring() == 1);
    for (int const a2a : {-1, 0, 3, 8}) {
        Error const error = error_of([&] { (void)make_grid_shape(8, 4, a2a); });
        BOOST_TEST((error.code() == ExitCode::internal));
    }
}

BOOST_AUTO_TEST_CASE(a_size_that_does_not_divide_lists_those_that_do) {
    BOOST_TEST(contains(refusal(12, 5), "valid sizes: 1, 2, 3, 4, 6, 12"));
    BOOST_TEST(contains(refusal(2, 4), "valid sizes: 1, 2"));
    BOOST_TEST(contains(refusal(4, 0), "valid sizes: 1, 2, 4"));
    BOOST_TEST(contains(refusal(4, -2), "valid sizes: 1, 2, 4"));
    BOOST_TEST(contains(refusal(1, 0), "valid sizes: 1"));
    BOOST_TEST(make_grid_shape(12, 6).dp() == 2);
    BOOST_TEST(make_grid_shape(1, 1).dp() == 1);
}

BOOST_AUTO_TEST_CASE(a_single_rank_is_told_how_to_start_more) {
    std::string const text = refusal(1, 4);
    BOOST_TEST(contains(text, "`mpirun -np 4 cpstep run ...`"));
    BOOST_TEST(contains(text, "`srun -n 4 --mpi=pmix cpstep run ...`"));
}

BOOST_AUTO_TEST_CASE(a_grid_of_another_size_than_the_job_is_refused) {
    GridShape const shape{.world = test_world().size() + 1, .cp = 1};
    BOOST_CHECK_THROW(Grid(test_world(), shape, host_wires()), Error);
}

BOOST_AUTO_TEST_CASE(each_group_sums_over_exactly_its_ranks) {
    int const rank = test_world().rank();
    for (GridShape const shape : shapes_of_this_job()) {
        Grid grid(test_world(), shape, host_wires());
        BOOST_TEST(grid.dp_rank() == rank / shape.cp);
        BOOST_TEST(grid.cp_rank() == rank % shape.cp);
        BOOST_TEST(grid.cp().size() == shape.cp);
        BOOST_TEST(grid.cp().rank() == grid.cp_rank());
        BOOST_TEST(grid.dp_cp().size() == shape.world);
        BOOST_TEST(grid.dp_cp().rank() == rank);
        int const group = ((1 << shape.cp) - 1) << shape.rank_of(grid.dp_rank(), 0);
        BOOST_TEST(members(grid.cp(), "cp") == group);
        BOOST_TEST(members(grid.dp_cp(), "all") == (1 << shape.world) - 1);
    }
}

BOOST_AUTO_TEST_CASE(inner_groups_are_adjacent_and_rings_stride_over_them) {
    int const rank = test_world().rank();
    for (GridShape const shape : shapes_of_this_job()) {
        Grid grid(test_world(), shape, host_wires());
        int a2a = 0;
        int ring = 0;
        for (int other = 0; other < shape.world; ++other) {
            bool const same_cp = other / shape.cp == rank / shape.cp;
            int const theirs = other % shape.cp;
            int const mine = rank % shape.cp;
            a2a |= (same_cp && theirs / shape.a2a == mine / shape.a2a ? 1 : 0) << other;
            ring |= (same_cp && theirs % shape.a2a == mine % shape.a2a ? 1 : 0) << other;
        }
        BOOST_TEST(members(grid.a2a(), "a2a") == a2a);
        BOOST_TEST(members(grid.ring(), "ring") == ring);
        BOOST_TEST(grid.a2a().size() == shape.a2a);
        BOOST_TEST(grid.ring().size() == shape.ring());
        BOOST_TEST(grid.a2a().rank() == grid.cp_rank() % shape.a2a);
        BOOST_TEST(grid.ring().rank() == grid.cp_rank() / shape.a2a);
        // A group of the same ranks is the same communicator.
        BOOST_TEST((&grid.a2a() == &grid.cp()) == (shape.a2a == shape.cp));
        BOOST_TEST((&grid.ring() == &grid.cp()) == (shape.ring() == shape.cp));
    }
}

BOOST_AUTO_TEST_CASE(four_ranks_make_two_pairs_and_two_rings_of_two) {
    if (test_world().size() != 4) {
        return;
    }
    auto const rank = static_cast<std::size_t>(test_world().rank());
    Grid grid(test_world(), make_grid_shape(4, 4, 2), host_wires());
    BOOST_TEST(members(grid.a2a(), "a2a") == (std::array{0b0011, 0b0011, 0b1100, 0b1100}[rank]));
    BOOST_TEST(members(grid.ring(), "ring") == (std::array{0b0101, 0b1010, 0b0101, 0b1010}[rank]));
    BOOST_TEST(grid.a2a().rank() == (std::array{0, 1, 0, 1}[rank]));
    BOOST_TEST(grid.ring().rank() == (std::array{0, 0, 1, 1}[rank]));
}

BOOST_AUTO_TEST_CASE(the_ledger_holds_every_group_once_and_clears_all) {
    for (GridShape const shape : shapes_of_this_job()) {
        Grid grid(test_world(), shape, host_wires());
        Counter counter;
        grid.set_observer(&counter);
        std::vector<float> values(5, 1.0F);
        Ledger want;
        int calls = 0;
        auto const reduce = [&](Comm& comm, char const* label) {
            comm.all_reduce_sum(label, tensor_of(values));
            if (comm.size() > 1) {
                LedgerEntry& entry = want[label];
                entry = {"all_reduce", comm.size(), entry.calls + 1, entry.bytes + 20};
                ++calls;
            }
        };
        reduce(grid.cp(), "kl");
        reduce(grid.dp_cp(), "grad");
        reduce(grid.dp_cp(), "grad");
        reduce(grid.a2a(), "a2a");
        reduce(grid.ring(), "ring");
        BOOST_TEST((grid.ledger() == want));
        BOOST_TEST(counter.calls == calls);
        grid.clear_ledger();
        BOOST_TEST(grid.ledger().empty());
    }
}

BOOST_AUTO_TEST_CASE(one_label_in_both_groups_is_refused) {
    if (test_world().size() == 1) {
        return;
    }
    Grid grid(test_world(), make_grid_shape(test_world().size(), test_world().size()),
              host_wires());
    std::vector<float> values(1);
    grid.cp().all_reduce_sum("same", tensor_of(values));
    grid.dp_cp().all_reduce_sum("same", tensor_of(values));
    BOOST_CHECK_EXCEPTION((void)grid.ledger(), Error, [](Error const& error) {
        return error.code() == ExitCode::internal && contains(error.what(), "'same'");
    });
}
