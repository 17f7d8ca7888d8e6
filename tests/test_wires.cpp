// Every wire of this machine against the host's MPI wire, on numbers whose sums are exact.
#define BOOST_TEST_MODULE wires
#include "tests/errors.hpp"
#include "tests/wires_fixture.hpp"

using namespace cpstep;
using namespace cpstep::test;
using namespace std::chrono_literals;

namespace {

/// Rows of each rank: unequal with one empty, turned so that each rank has each size; or equal.
std::vector<Sizes> splits(int ranks, std::int64_t unit) {
    std::vector<Sizes> all{Sizes(at(ranks), unit)};
    for (int turn = 0; turn < ranks; ++turn) {
        Sizes& rows = all.emplace_back();
        for (int rank = 0; rank < ranks; ++rank) {
            rows.push_back(unit * ((rank + turn) % ranks));
        }
    }
    return all;
}

template <class T>
void check_all_gather(Wire& wire, Comm& comm, Sizes const& rows, std::int64_t cols, int turn) {
    std::vector<T> want;
    for (int rank = 0; rank < comm.size(); ++rank) {
        auto const block = numbers<T>(rows[at(rank)] * cols, rank, turn);
        want.insert(want.end(), block.begin(), block.end());
    }
    Array<T> const send(wire.backend, numbers<T>(rows[at(comm.rank())] * cols, comm.rank(), turn),
                        cols);
    Array<T> const recv(wire.backend, std::vector<T>(want.size()), cols);
    comm.all_gather("gather", recv, send, rows);
    BOOST_TEST((recv.values() == want));
}

void check_reduce_scatter(Wire& wire, Comm& comm, Comm& host, Sizes const& rows, std::int64_t cols,
                          int turn) {
    auto values = numbers<float>(total(rows) * cols, comm.rank(), turn);
    std::int64_t const own = rows[at(comm.rank())];
    std::vector<float> want(at(own * cols));
    Array<float> const send(wire.backend, values, cols);
    Array<float> const recv(wire.backend, std::vector<float>(want.size(), -1.0F), cols);
    comm.reduce_scatter_sum("scatter", recv, send, rows);
    host.reduce_scatter_sum("scatter", tensor_of(want, cols), tensor_of(values, cols), rows);
    BOOST_TEST((recv.values() == want));
    BOOST_TEST((send.values() == values));
}

template <class T>
void check_all_to_all(Wire& wire, Comm& comm, std::int64_t unit, int turn) {
    auto const size = [&](int from, int to) { return unit * ((from + 2 * to + turn) % 3); };
    Sizes leaving;
    Sizes coming;
    std::vector<T> send;
    std::vector<T> want;
    for (int peer = 0; peer < comm.size(); ++peer) {
        leaving.push_back(size(comm.rank(), peer));
        coming.push_back(size(peer, comm.rank()));
        auto const out = numbers<T>(leaving.back(), comm.rank(), turn + peer);
        auto const in = numbers<T>(coming.back(), peer, turn + comm.rank());
        send.insert(send.end(), out.begin(), out.end());
        want.insert(want.end(), in.begin(), in.end());
    }
    Array<T> const from(wire.backend, send);
    Array<T> const to(wire.backend, std::vector<T>(want.size()));
    comm.all_to_all("pieces", to, from, leaving, coming);
    BOOST_TEST((to.values() == want));
}

template <class T>
void check_ring(Wire& wire, Comm& comm, std::int64_t count, int turn) {
    Array<T> const send(wire.backend, numbers<T>(count, comm.rank(), turn));
    Array<T> const recv(wire.backend, std::vector<T>(at(count)));
    comm.end_call(comm.begin_exchange("ring", send, next(comm), recv, previous(comm)));
    BOOST_TEST((recv.values() == numbers<T>(count, previous(comm), turn)));
}

}  // namespace

BOOST_AUTO_TEST_CASE(the_wire_says_what_it_is) {
    auto const backend = make_host_backend(1);
    int const ranks = test_world().size();
    if (test_world().local_size() == ranks) {
        BOOST_TEST(make_wires(test_world(), *backend, {})->description() ==
                   (alone() ? "none (1 rank)" : fmt::format("mpi ({} ranks of 1 host)", ranks)));
    }
    for (Transport const transport : {Transport::nccl, Transport::ipc}) {
        Error const error =
            error_of([&] { (void)make_wires(test_world(), *backend, {.transport = transport}); });
        BOOST_TEST((error.code() == ExitCode::usage));
        BOOST_TEST(contains(error.what(), fmt::format("--transport {} ", name_of(transport))));
        BOOST_TEST(contains(error.what(), "use --device cuda"));
    }
    for_each_wire([&](Wire& wire, Comm& comm) {
        BOOST_TEST(comm.size() == ranks);
        BOOST_TEST(comm.world_rank_of(comm.rank()) == test_world().rank());
        if (wire.wires != nullptr) {
            std::string const text = wire.wires->description();
            BOOST_TEST_MESSAGE(text);
            BOOST_TEST(text.starts_with(wire.name == "host" ? "mpi" : wire.name));
        }
    });
}

BOOST_AUTO_TEST_CASE(a_gpu_is_not_shared_unasked) {
    std::string why;
    if (!has_gpu() || test_world().local_size() <= cuda_device_count(why)) {
        return;
    }
    auto const backend = make_backend(60s);
    Error const error = error_of([&] { (void)make_wires(test_world(), *backend, {}); });
    BOOST_TEST((error.code() == ExitCode::usage));
    BOOST_TEST(contains(error.what(), "ranks 0 and "));
    BOOST_TEST(contains(error.what(), "--allow-gpu-sharing"));
    for (std::string const& text : test_world().gather(error.what())) {
        BOOST_TEST(text == error.what());
    }
}

BOOST_AUTO_TEST_CASE(all_reduce_gives_the_bits_of_the_host_wire) {
    for_each_wire([](Wire& wire, Comm& comm) {
        auto const host = everyone();
        for (std::int64_t const count : {0, 1, 7, 64, 4096 + 3, 1 << 20}) {
            for (std::int64_t const skew : {0, 1}) {
                auto values = numbers<float>(count, comm.rank(), 1);
                Array<float> const array(wire.backend, values, 1, skew);
                comm.all_reduce_sum("sum", array);
                host->all_reduce_sum("sum", tensor_of(values));
                BOOST_TEST((array.values() == values), count << " elements from " << skew);
            }
        }
    });
}

BOOST_AUTO_TEST_CASE(collectives_move_and_sum_unequal_and_empty_blocks) {
    for_each_wire([](Wire& wire, Comm& comm) {
        auto const host = everyone();
        for (std::int64_t const unit : {1, 5000}) {
            for (Sizes const& rows : splits(comm.size(), unit)) {
                check_all_gather<float>(wire, comm, rows, 3, 0);
                check_reduce_scatter(wire, comm, *host, rows, 3, 0);
            }
            for (int const turn : {0, 1, 2}) {
                check_all_to_all<float>(wire, comm, unit, turn);
            }
        }
        Sizes const none(at(comm.size()), 0);
        check_all_gather<float>(wire, comm, none, 3, 0);
        check_reduce_scatter(wire, comm, *host, none, 3, 0);
        comm.all_to_all("pieces", Tensor{}, Tensor{}, none, none);
    });
}

BOOST_AUTO_TEST_CASE(what_is_moved_may_have_any_type_and_its_bytes_are_counted) {
    for_each_wire([](Wire& wire, Comm& comm) {
        Sizes const rows = splits(comm.size(), 301).back();
        check_all_gather<std::uint16_t>(wire, comm, rows, 5, 0);
        std::int64_t const others = total(rows) - rows[at(comm.rank())];
        BOOST_TEST(comm.ledger().at("gather").bytes == 10 * others);
        check_all_gather<std::int32_t>(wire, comm, rows, 1, 0);
        check_all_to_all<std::uint16_t>(wire, comm, 777, 1);
        check_all_to_all<std::int32_t>(wire, comm, 777, 1);
        check_ring<std::uint16_t>(wire, comm, 12'345, 0);
        BOOST_TEST(comm.ledger().at("ring").bytes == 2 * 12'345);
        check_ring<std::int32_t>(wire, comm, 1, 0);
        check_ring<float>(wire, comm, 0, 0);
    });
}

BOOST_AUTO_TEST_CASE(groups_are_of_any_ranks_in_any_order) {
    for_each_wire([](Wire& wire, Comm&) {
        World& world = test_world();
        std::vector<int> members;  // even and odd ranks, highest first
        for (int rank = world.size() - 1; rank >= 0; --rank) {
            if (rank % 2 == world.rank() % 2) {
                members.push_back(rank);
            }
        }
        auto const group = wire.group(members);
        BOOST_TEST(group->size() == std::ssize(members));
        BOOST_TEST(members[at(group->rank())] == world.rank());
        Array<float> const mask(wire.backend, {static_cast<float>(1 << world.rank())});
        group->all_reduce_sum("mask", mask);
        float const want =
            std::accumulate(members.begin(), members.end(), 0.0F,
                            [](float sum, int r) { return sum + static_cast<float>(1 << r); });
        BOOST_TEST(mask.values().front() == want);
        if (group->size() > 1) {
            check_ring<std::int32_t>(wire, *group, 9, 0);
        }
    });
}

BOOST_AUTO_TEST_CASE(open_exchanges_may_end_in_any_order) {
    for_each_wire([](Wire& wire, Comm& comm) {
        std::vector<Array<float>> send;
        std::vector<Array<float>> recv;
        std::vector<int> tickets;
        send.reserve(4);
        recv.reserve(4);
        for (int i = 0; i < 4; ++i) {
            send.emplace_back(wire.backend, numbers<float>(50'000, comm.rank(), i));
            recv.emplace_back(wire.backend, std::vector<float>(50'000, -1.0F));
            tickets.push_back(
                comm.begin_exchange("open", send.back(), next(comm), recv.back(), previous(comm)));
        }
        for (int const i : {2, 0, 3, 1}) {
            comm.end_call(tickets[at(i)]);
            BOOST_TEST((recv[at(i)].values() == numbers<float>(50'000, previous(comm), i)));
        }
    });
}

// A wire may put begun calls on the queue from another thread.
BOOST_AUTO_TEST_CASE(the_backend_waits_for_calls_of_two_groups_that_are_only_begun) {
    for_each_wire([](Wire& wire, Comm& comm) {
        if (wire.backend.queues() == nullptr || wire.name == "mpi") {
            return;  // what is begun over MPI has arrived when it has ended
        }
        std::vector<int> members(at(comm.size()));  // in another order: another communicator
        std::iota(members.rbegin(), members.rend(), 0);
        auto const other = wire.group(members);
        for (int turn = 0; turn < 20; ++turn) {
            auto const values = [&](int rank, int call) {
                return numbers<float>(300'000, rank, 2 * turn + call);
            };
            Array<float> const first(wire.backend, values(comm.rank(), 0));
            Array<float> const second(wire.backend, values(other->rank(), 1));
            Array<float> const arrived(wire.backend, std::vector<float>(300'000));
            Array<float> const arrived_too(wire.backend, std::vector<float>(300'000));
            int const ticket =
                comm.begin_exchange("first", first, next(comm), arrived, previous(comm));
            int const other_ticket = other->begin_exchange("second", second, next(*other),
                                                           arrived_too, previous(*other));
            wire.backend.synchronize();
            BOOST_TEST((arrived.values() == values(previous(comm), 0)));
            BOOST_TEST((arrived_too.values() == values(previous(*other), 1)));
            other->end_call(other_ticket);
            comm.end_call(ticket);
        }
    });
}

// From rank r to r + 1 only, then from 0 to 1 only; a ring shows that tickets still agree.
BOOST_AUTO_TEST_CASE(ranks_may_send_only_receive_only_or_do_neither) {
    for_each_wire([](Wire& wire, Comm& comm) {
        int const rank = comm.rank();
        Array<float> const send(wire.backend, numbers<float>(1000, rank, 1));
        Array<float> const recv(wire.backend, numbers<float>(1000, rank, 9));
        bool const last = rank == comm.size() - 1;
        comm.end_call(comm.begin_exchange("chain", send, last ? Comm::no_peer : rank + 1, recv,
                                          rank == 0 ? Comm::no_peer : rank - 1));
        BOOST_TEST((recv.values() ==
                    (rank == 0 ? numbers<float>(1000, 0, 9) : numbers<float>(1000, rank - 1, 1))));
        comm.end_call(comm.begin_exchange("one way", send, rank == 0 ? 1 : Comm::no_peer, recv,
                                          rank == 1 ? 0 : Comm::no_peer));
        BOOST_TEST((rank != 1 || recv.values() == numbers<float>(1000, 0, 1)));
        check_ring<float>(wire, comm, 100, 3);
    });
}

// No wait of the host in between: each hop adds to what it received and sends that on.
BOOST_AUTO_TEST_CASE(calls_and_computing_keep_their_order_without_the_host) {
    constexpr int turns = 50;
    constexpr std::int64_t count = 100'003;
    for_each_wire([](Wire& wire, Comm& comm) {
        Array<float> const ones(wire.backend, std::vector<float>(at(count), 1.0F));
        Array<float> const base(wire.backend, numbers<float>(count, comm.rank()));
        Array<float> const work(wire.backend, std::vector<float>(at(count)));
        Array<float> const sums(wire.backend, std::vector<float>(at(count)));
        std::vector<Array<float>> pair;
        pair.reserve(2);
        pair.emplace_back(wire.backend, numbers<float>(count, comm.rank()));
        pair.emplace_back(wire.backend, std::vector<float>(at(count)));
        for (int turn = 0; turn < turns; ++turn) {
            Tensor const here = pair[at(turn % 2)];
            Tensor const there = pair[at((turn + 1) % 2)];
            int const ticket = comm.begin_exchange("hop", here, next(comm), there, previous(comm));
            wire.backend.copy(work, base);
            comm.all_reduce_sum("sum", work);
            wire.backend.add(sums, work);
            comm.end_call(ticket);
            wire.backend.add(there, ones);
        }
        int const origin = ((comm.rank() - turns) % comm.size() + comm.size()) % comm.size();
        auto want = numbers<float>(count, origin);
        for (float& value : want) {
            value += turns;
        }
        BOOST_TEST((pair[0].values() == want));
        std::vector<float> all(at(count));
        for (int rank = 0; rank < comm.size(); ++rank) {
            auto const part = numbers<float>(count, rank);
            for (std::size_t i = 0; i < all.size(); ++i) {
                all[i] += turns * part[i];
            }
        }
        BOOST_TEST((sums.values() == all));
    });
}

BOOST_AUTO_TEST_CASE(fifty_turns_of_every_call_with_other_contents) {
    for_each_wire([](Wire& wire, Comm& comm) {
        auto const host = everyone();
        auto const rows = splits(comm.size(), 70);
        for (int turn = 0; turn < 50; ++turn) {
            Sizes const& split = rows[at(turn % std::ssize(rows))];
            check_ring<float>(wire, comm, 1000 + turn, turn);
            check_all_gather<float>(wire, comm, split, 2, turn);
            check_reduce_scatter(wire, comm, *host, split, 2, turn);
            check_all_to_all<float>(wire, comm, 40 + turn, turn);
        }
    });
}

BOOST_AUTO_TEST_CASE(times_of_a_call_are_in_order) {
    for_each_wire([](Wire& wire, Comm& comm) {
        Recorder recorder;
        wire.backend.begin_marks();
        comm.set_observer(&recorder);
        std::int64_t const before = now_ns();
        check_ring<float>(wire, comm, 1 << 20, 0);
        Array<float> const array(wire.backend, numbers<float>(1 << 20, comm.rank()));
        comm.all_reduce_sum("sum", array);
        wire.backend.synchronize();
        std::int64_t const after = now_ns();
        comm.set_observer(nullptr);
        BOOST_REQUIRE_EQUAL(recorder.records.size(), 2U);
        for (CommRecord const& record : recorder.records) {
            auto const time = [&](Mark mark) { return wire.backend.mark_ns(mark); };
            // Of the device's clock against the host's; ranks that share a GPU wait for turns of
            // ms.
            constexpr std::int64_t clock_error = 20'000'000;
            BOOST_TEST(time(record.posted) >= before - clock_error);
            // A device's mark comes late by a hop between streams, during which turns may change.
            std::int64_t const hop = wire.backend.queues() == nullptr ? 0 : clock_error;
            BOOST_TEST(time(record.posted) <= time(record.done) + hop);
            BOOST_TEST(time(record.waited) >= before - clock_error);
            BOOST_TEST(time(record.waited) <= after + clock_error);
            BOOST_TEST(time(record.done) <= after + clock_error);
        }
    });
}
