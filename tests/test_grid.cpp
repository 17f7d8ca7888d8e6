#define BOOST_TEST_MODULE grid
#include "mpi/grid.hpp"
#include "tests/errors.hpp"
#include "tests/mpi_test_main.hpp"

using namespace cpstep;
using cpstep::test::contains;
using cpstep::test::error_of;
using cpstep::test::test_world;

namespace {

Tensor tensor_of(std::vector<float>& values) {
    auto const n = static_cast<std::int64_t>(values.size());
    return {values.data(), DType::f32, n, 1, 1};
}

/// The text of the Error that asking for this shape gives.
std::string refusal(int world, int cp) {
    Error const error = error_of([&] { (void)make_grid_shape(world, cp); });
    BOOST_TEST((error.code() == ExitCode::usage));
    return error.what();
}

std::vector<GridShape> shapes_of_this_job() {
    std::vector<GridShape> shapes;
    for (int const cp : valid_cp_sizes(test_world().size())) {
        shapes.push_back(make_grid_shape(test_world().size(), cp));
    }
    return shapes;
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
    BOOST_CHECK_THROW(Grid(test_world(), GridShape{.world = test_world().size() + 1, .cp = 1}),
                      Error);
}

BOOST_AUTO_TEST_CASE(each_group_sums_over_exactly_its_ranks) {
    int const rank = test_world().rank();
    for (GridShape const shape : shapes_of_this_job()) {
        Grid grid(test_world(), shape);
        BOOST_TEST(grid.dp_rank() == rank / shape.cp);
        BOOST_TEST(grid.cp_rank() == rank % shape.cp);
        BOOST_TEST(grid.cp().size() == shape.cp);
        BOOST_TEST(grid.cp().rank() == grid.cp_rank());
        BOOST_TEST(grid.dp_cp().size() == shape.world);
        BOOST_TEST(grid.dp_cp().rank() == rank);
        // Powers of two name the ranks that took part.
        std::vector<float> cp{static_cast<float>(1 << rank)};
        std::vector<float> all = cp;
        grid.cp().all_reduce_sum("cp", tensor_of(cp));
        grid.dp_cp().all_reduce_sum("all", tensor_of(all));
        int const group = ((1 << shape.cp) - 1) << shape.rank_of(grid.dp_rank(), 0);
        BOOST_TEST(cp[0] == static_cast<float>(group));
        BOOST_TEST(all[0] == static_cast<float>((1 << shape.world) - 1));
    }
}

BOOST_AUTO_TEST_CASE(the_ledger_holds_both_groups_and_clears_both) {
    for (GridShape const shape : shapes_of_this_job()) {
        Grid grid(test_world(), shape);
        Counter counter;
        grid.set_observer(&counter);
        std::vector<float> values(5, 1.0F);
        grid.cp().all_reduce_sum("kl", tensor_of(values));
        grid.dp_cp().all_reduce_sum("grad", tensor_of(values));
        grid.dp_cp().all_reduce_sum("grad", tensor_of(values));
        Ledger want;
        if (shape.cp > 1) {
            want["kl"] = {.op = "all_reduce", .group_size = shape.cp, .calls = 1, .bytes = 20};
        }
        if (shape.world > 1) {
            want["grad"] = {.op = "all_reduce", .group_size = shape.world, .calls = 2, .bytes = 40};
        }
        BOOST_TEST((grid.ledger() == want));
        BOOST_TEST(counter.calls == (shape.cp > 1 ? 1 : 0) + (shape.world > 1 ? 2 : 0));
        grid.clear_ledger();
        BOOST_TEST(grid.ledger().empty());
    }
}

BOOST_AUTO_TEST_CASE(one_label_in_both_groups_is_refused) {
    if (test_world().size() == 1) {
        return;
    }
    Grid grid(test_world(), make_grid_shape(test_world().size(), test_world().size()));
    std::vector<float> values(1);
    grid.cp().all_reduce_sum("same", tensor_of(values));
    grid.dp_cp().all_reduce_sum("same", tensor_of(values));
    BOOST_CHECK_EXCEPTION((void)grid.ledger(), Error, [](Error const& error) {
        return error.code() == ExitCode::internal && contains(error.what(), "'same'");
    });
}
