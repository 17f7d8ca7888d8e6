// What every wire of this machine says of a peer that does not do as it should.
#define BOOST_TEST_MODULE wire_failures
#include "tests/errors.hpp"
#include "tests/wires_fixture.hpp"

using namespace cpstep;
using namespace cpstep::test;
using namespace std::chrono_literals;

namespace {

using Calls = void (*)(Backend& backend, Comm& comm, Tensor array);

void nothing(Backend& /*backend*/, Comm& /*comm*/, Tensor /*array*/) {}

void reduce(Backend& backend, Comm& comm, Tensor array) {
    comm.all_reduce_sum("grad", array);
    backend.synchronize();
}

void reduce_and_compute(Backend& backend, Comm& comm, Tensor array) {
    std::int64_t const half = array.rows / 2;
    comm.all_reduce_sum("grad", array);
    for (int launch = 0; launch < 30; ++launch) {
        backend.add(array.row_range(0, half), array.row_range(half, half));
    }
}

/// With more launches than a device takes while it waits.
void reduce_and_compute_often(Backend& backend, Comm& comm, Tensor array) {
    for (int turn = 0; turn < 100; ++turn) {
        reduce_and_compute(backend, comm, array);
    }
}

/// After `first` all ranks but 0 make `calls`, which rank 0 leaves out. Each wire has a backend of
/// its own: what has timed out cannot go on.
void check_that_a_skipped_call_is_named(Calls first, Calls calls) {
    bench.reset();
    if (alone()) {
        return;
    }
    World& world = test_world();
    auto const patience = world.deadline();
    std::size_t const count = wires_of(*make_backend(60s)).size();
    for (std::size_t i = 0; i < count; ++i) {
        auto const backend = make_backend(2s);
        auto wires = wires_of(*backend);
        Wire& wire = wires.at(i);
        BOOST_TEST_CONTEXT("wire " << wire.name) {
            auto const comm = wire.everyone();
            Array<float> const array(*backend, numbers<float>(1000, comm->rank()));
            first(*backend, *comm, array);
            backend->synchronize();
            world.barrier();
            std::int64_t const start = now_ns();
            if (!world.root()) {
                world.set_deadline(300ms);
                Error const error = error_of([&] { calls(*backend, *comm, array); });
                BOOST_TEST((error.code() == ExitCode::communication));
                BOOST_TEST(contains(error.what(), "timed out after "), error.what());
                BOOST_TEST(contains(error.what(), "all_reduce 'grad'"), error.what());
                BOOST_TEST(now_ns() - start < 10'000'000'000);
                world.set_deadline(patience);
            }
            world.barrier();
            // Rank 0 joins late, so that what MPI still holds arrives; on a device nobody answers.
            if (world.root() && wire.name != "nccl") {
                auto const call = [&] { reduce(*backend, *comm, array); };
                if (backend->queues() == nullptr || wire.name == "mpi") {
                    call();
                } else {
                    BOOST_TEST(contains(error_of(call).what(), "all_reduce 'grad'"));
                }
            }
            world.barrier();
            world.set_deadline(1s);
        }
        wires.clear();
        world.set_deadline(patience);
    }
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_size_that_does_not_fit_is_an_error_where_it_arrives) {
    for_each_wire([](Wire& wire, Comm&) {
        if (!wire.tells_sizes) {
            return;
        }
        for (std::int64_t const sent : {3, 5}) {
            auto const comm = wire.everyone();
            Array<float> const send(wire.backend, numbers<float>(sent, comm->rank()));
            Array<float> const recv(wire.backend, std::vector<float>(4));
            Error const error = error_of([&] {
                comm->end_call(
                    comm->begin_exchange("cp.kv", send, next(*comm), recv, previous(*comm)));
            });
            BOOST_TEST((error.code() == ExitCode::communication));
            BOOST_TEST(
                contains(error.what(), fmt::format("exchange 'cp.kv' with rank {} (group of {})",
                                                   previous(*comm), comm->size())));
            BOOST_TEST(contains(error.what(), "16"));
            test_world().barrier();
        }
    });
}

BOOST_AUTO_TEST_CASE(a_peer_in_another_call_is_named) {
    for_each_wire([](Wire& wire, Comm&) {
        if (!wire.tells_calls) {
            return;
        }
        auto const comm = wire.everyone();
        Array<float> const array(wire.backend, numbers<float>(4, comm->rank()));
        std::string const label = comm->rank() == 0 ? "grad" : "metrics";
        test_world().barrier();
        // With three ranks and more only rank 0 is sure to hear of another call than its own first.
        if (comm->rank() == 0 || comm->size() == 2) {
            Error const error = error_of([&] { comm->all_reduce_sum(label, array); });
            BOOST_TEST((error.code() == ExitCode::communication));
            BOOST_TEST(contains(error.what(), fmt::format("all_reduce '{}' with rank", label)));
            BOOST_TEST(contains(error.what(), comm->rank() == 0 ? "'metrics'" : "'grad'"));
        } else {
            BOOST_CHECK_THROW(comm->all_reduce_sum(label, array), Error);
        }
        test_world().barrier();
    });
}

BOOST_AUTO_TEST_CASE(a_skipped_call_is_named_within_the_deadline) {
    check_that_a_skipped_call_is_named(nothing, reduce);
}

BOOST_AUTO_TEST_CASE(behind_a_skipped_call_the_host_does_not_get_stuck_in_a_launch) {
    if (has_gpu()) {
        check_that_a_skipped_call_is_named(reduce_and_compute, reduce_and_compute_often);
    }
}
