#define BOOST_TEST_MODULE comm
#include <thread>

#include "tests/errors.hpp"
#include "tests/groups.hpp"

using namespace cpstep;
using namespace cpstep::test;
using namespace std::chrono_literals;

BOOST_AUTO_TEST_CASE(all_reduce_sums_small_integers_exactly) {
    auto const comm = everyone();
    int const n = comm->size();
    std::vector<float> values(1000);
    for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = static_cast<float>(i) * static_cast<float>(comm->rank() + 1);
    }
    comm->all_reduce_sum("x", tensor_of(values));
    for (std::size_t i = 0; i < values.size(); ++i) {
        BOOST_REQUIRE_EQUAL(values[i], static_cast<float>(i) * static_cast<float>(n * (n + 1) / 2));
    }
}

BOOST_AUTO_TEST_CASE(all_reduce_covers_arrays_longer_than_one_call) {
    auto const comm = everyone();
    std::vector<float> values((std::size_t{1} << 24) + 3, 1.0F);
    comm->all_reduce_sum("long", tensor_of(values));
    auto const right = std::ranges::count(values, static_cast<float>(comm->size()));
    BOOST_TEST(right == std::ssize(values));
}

BOOST_AUTO_TEST_CASE(all_reduce_takes_only_contiguous_floats) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    std::vector<std::int32_t> integers(4);
    std::vector<float> floats(8);
    Tensor const strided{floats.data(), DType::f32, 2, 2, 4};
    BOOST_CHECK_THROW(comm->all_reduce_sum("i", tensor_of(integers)), Error);
    BOOST_CHECK_THROW(comm->all_reduce_sum("s", strided), Error);
    BOOST_TEST(comm->ledger().empty());
}

BOOST_AUTO_TEST_CASE(a_ring_to_the_right_delivers_the_left_neighbours_values) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    std::vector<std::int32_t> values{comm->rank(), 100 + comm->rank()};
    // After s shifts a rank holds the values of rank - s; from 3 ranks on the direction shows.
    for (int step = 1; step < comm->size(); ++step) {
        std::vector<std::int32_t> arriving(2, -1);
        comm->end_call(comm->begin_exchange("ring", tensor_of(values), next(*comm),
                                            tensor_of(arriving), previous(*comm)));
        int const origin = (comm->rank() - step + comm->size()) % comm->size();
        BOOST_TEST(arriving[0] == origin);
        BOOST_TEST(arriving[1] == 100 + origin);
        values = arriving;
    }
}

BOOST_AUTO_TEST_CASE(messages_may_differ_in_size_and_be_empty) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    for (int round = 0; round < comm->size(); ++round) {
        auto const size_of = [&](int rank) {
            return static_cast<std::size_t>((rank + round) % comm->size()) * 70'000;
        };
        std::vector<float> send(size_of(comm->rank()), static_cast<float>(comm->rank()));
        std::vector<float> recv(size_of(previous(*comm)), -1.0F);
        comm->end_call(comm->begin_exchange("sizes", tensor_of(send), next(*comm), tensor_of(recv),
                                            previous(*comm)));
        auto const right = std::ranges::count(recv, static_cast<float>(previous(*comm)));
        BOOST_TEST(right == std::ssize(recv));
    }
    comm->end_call(
        comm->begin_exchange("nothing", Tensor{}, next(*comm), Tensor{}, previous(*comm)));
    BOOST_TEST(comm->ledger().at("nothing").calls == 1);
    BOOST_TEST(comm->ledger().at("nothing").bytes == 0);
}

// From rank r to r + 1 only: the first receives from nobody and the last sends to nobody.
BOOST_AUTO_TEST_CASE(a_chain_has_ends_that_only_send_or_only_receive) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    int const rank = comm->rank();
    bool const first = rank == 0;
    bool const last = rank == comm->size() - 1;
    Recorder recorder;
    comm->set_observer(&recorder);
    std::vector<std::int32_t> mine{rank, 100 + rank};
    std::vector<std::int32_t> arriving(2, -1);
    comm->end_call(comm->begin_exchange(
        "chain", last ? Tensor{} : tensor_of(mine), last ? Comm::no_peer : rank + 1,
        first ? Tensor{} : tensor_of(arriving), first ? Comm::no_peer : rank - 1));
    BOOST_TEST(arriving[0] == rank - 1);
    BOOST_TEST(arriving[1] == (first ? -1 : 100 + rank - 1));

    Ledger want;
    if (!last) {
        want["chain"] = {.op = "exchange", .group_size = comm->size(), .calls = 1, .bytes = 8};
    }
    BOOST_TEST((comm->ledger() == want));
    BOOST_REQUIRE_EQUAL(recorder.records.size(), 1U);
    BOOST_TEST(recorder.records[0].peer == (last ? -1 : rank + 1));
    BOOST_TEST(recorder.records[0].bytes == (last ? 0 : 8));
    BOOST_TEST(recorder.records[0].op == "exchange");
    BOOST_TEST(recorder.labels[0] == "chain");
}

// Only rank 0 sends, to rank 1; message k is told from the others by its ticket alone.
BOOST_AUTO_TEST_CASE(ranks_without_a_part_in_an_exchange_keep_in_step_and_record_nothing) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    Recorder recorder;
    comm->set_observer(&recorder);
    std::vector<std::vector<std::int32_t>> buffers;
    std::vector<int> tickets;
    for (int k = 0; k < 3; ++k) {
        Tensor const data = tensor_of(buffers.emplace_back(1, comm->rank() == 0 ? 10 + k : -1));
        tickets.push_back(comm->begin_exchange(fmt::format("k{}", k), data,
                                               comm->rank() == 0 ? 1 : Comm::no_peer, data,
                                               comm->rank() == 1 ? 0 : Comm::no_peer));
    }
    for (std::size_t const k : {2, 0, 1}) {
        comm->end_call(tickets[k]);
        BOOST_TEST(buffers[k][0] == (comm->rank() < 2 ? 10 + static_cast<int>(k) : -1));
    }
    BOOST_TEST(comm->ledger().size() == (comm->rank() == 0 ? 3U : 0U));
    BOOST_TEST(recorder.records.size() == (comm->rank() < 2 ? 3U : 0U));

    // A ring among all shows that the tickets still agree.
    std::vector<std::int32_t> mine{comm->rank()};
    std::vector<std::int32_t> arriving{-1};
    comm->end_call(comm->begin_exchange("ring", tensor_of(mine), next(*comm), tensor_of(arriving),
                                        previous(*comm)));
    BOOST_TEST(arriving[0] == previous(*comm));
}

BOOST_AUTO_TEST_CASE(a_peer_outside_the_group_and_the_rank_itself_are_refused) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    for (int const peer : {-2, comm->size(), comm->rank()}) {
        BOOST_CHECK_THROW((void)comm->begin_exchange("x", Tensor{}, peer, Tensor{}, Comm::no_peer),
                          Error);
        BOOST_CHECK_THROW((void)comm->begin_exchange("x", Tensor{}, Comm::no_peer, Tensor{}, peer),
                          Error);
    }
}

BOOST_AUTO_TEST_CASE(open_exchanges_may_end_in_any_order) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    constexpr int count = 4;
    std::vector<std::vector<std::int32_t>> send(count);
    std::vector<std::vector<std::int32_t>> recv(count);
    std::vector<int> tickets;
    for (int i = 0; i < count; ++i) {
        auto const at = static_cast<std::size_t>(i);
        send[at].assign(50'000, 10 * comm->rank() + i);
        recv[at].assign(50'000, -1);
        tickets.push_back(comm->begin_exchange(fmt::format("x{}", i), tensor_of(send[at]),
                                               next(*comm), tensor_of(recv[at]), previous(*comm)));
    }
    for (std::size_t const at : {2, 0, 3, 1}) {
        comm->end_call(tickets[at]);
        auto const want = static_cast<std::int32_t>(10 * previous(*comm) + static_cast<int>(at));
        BOOST_TEST(std::ranges::count(recv[at], want) == 50'000);
    }
    BOOST_CHECK_THROW(comm->end_call(tickets[0]), Error);
}

BOOST_AUTO_TEST_CASE(a_message_of_another_size_than_expected_is_an_error) {
    if (alone()) {
        return;
    }
    for (std::size_t const arriving : {3, 5}) {
        auto const comm = everyone();
        std::vector<float> send(arriving);
        std::vector<float> recv(4);
        Error const error = error_of([&] {
            comm->end_call(comm->begin_exchange("cp.kv", tensor_of(send), next(*comm),
                                                tensor_of(recv), previous(*comm)));
        });
        BOOST_TEST((error.code() == ExitCode::communication));
        BOOST_TEST(
            contains(error.what(), fmt::format("exchange 'cp.kv' with rank {}", previous(*comm))));
        BOOST_TEST(contains(error.what(), arriving == 3 ? "12 bytes arrived where 16 were expected"
                                                        : "longer than the expected 16 bytes"));
        test_world().barrier();
    }
}

BOOST_AUTO_TEST_CASE(disjoint_groups_work_side_by_side_in_the_order_given) {
    World& world = test_world();
    // Even and odd ranks, highest first.
    std::vector<int> members;
    for (int rank = world.size() - 1; rank >= 0; --rank) {
        if (rank % 2 == world.rank() % 2) {
            members.push_back(rank);
        }
    }
    auto const comm = world.make_host_comm(members);
    BOOST_TEST(comm->size() == static_cast<int>(members.size()));
    BOOST_TEST(members[static_cast<std::size_t>(comm->rank())] == world.rank());
    std::vector<float> mask{static_cast<float>(1 << world.rank())};
    comm->all_reduce_sum("mask", tensor_of(mask));
    BOOST_TEST(mask[0] == static_cast<float>(std::accumulate(
                              members.begin(), members.end(), 0,
                              [](int sum, int rank) { return sum + (1 << rank); })));
    if (comm->size() > 1) {
        Recorder recorder;
        comm->set_observer(&recorder);
        std::vector<std::int32_t> mine{world.rank()};
        std::vector<std::int32_t> arriving{-1};
        comm->end_call(comm->begin_exchange("ring", tensor_of(mine), next(*comm),
                                            tensor_of(arriving), previous(*comm)));
        BOOST_TEST(arriving[0] == members[static_cast<std::size_t>(previous(*comm))]);
        BOOST_TEST(recorder.records.at(0).peer == members[static_cast<std::size_t>(next(*comm))]);
    }
}

BOOST_AUTO_TEST_CASE(the_ledger_counts_calls_and_bytes_by_label) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    std::vector<float> ten(10);
    std::vector<float> three(3);
    std::vector<float> arriving(3);
    comm->all_reduce_sum("grad", tensor_of(ten));
    comm->all_reduce_sum("grad", tensor_of(three));
    for (int i = 0; i < 3; ++i) {
        comm->end_call(comm->begin_exchange("cp.kv", tensor_of(three), next(*comm),
                                            tensor_of(arriving), previous(*comm)));
    }
    Ledger const want{
        {"cp.kv", {.op = "exchange", .group_size = comm->size(), .calls = 3, .bytes = 36}},
        {"grad", {.op = "all_reduce", .group_size = comm->size(), .calls = 2, .bytes = 52}}};
    BOOST_TEST((comm->ledger() == want));
    comm->clear_ledger();
    BOOST_TEST(comm->ledger().empty());
}

BOOST_AUTO_TEST_CASE(observers_see_when_a_call_was_posted_waited_for_and_done) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    Recorder recorder;
    comm->set_observer(&recorder);
    std::vector<float> a(6);
    std::vector<float> b(6);
    int const ticket =
        comm->begin_exchange("swap", tensor_of(a), next(*comm), tensor_of(b), previous(*comm));
    std::this_thread::sleep_for(20ms);
    BOOST_TEST(recorder.records.empty());
    comm->end_call(ticket);
    comm->all_reduce_sum("sum", tensor_of(a));
    BOOST_REQUIRE_EQUAL(recorder.records.size(), 2U);
    for (CommRecord const& record : recorder.records) {
        BOOST_TEST(record.posted > 0);
        BOOST_TEST(record.posted <= record.waited);
        BOOST_TEST(record.waited <= record.done);
        BOOST_TEST(record.bytes == 24);
        BOOST_TEST(record.group_size == comm->size());
    }
    BOOST_TEST(recorder.records[0].waited - recorder.records[0].posted >= 20'000'000);
    BOOST_TEST(recorder.records[0].op == "exchange");
    BOOST_TEST(recorder.records[0].peer == next(*comm));
    BOOST_TEST(recorder.records[1].op == "all_reduce");
    BOOST_TEST(recorder.records[1].peer == -1);
    BOOST_TEST(recorder.labels[0] == "swap");
    BOOST_TEST(recorder.labels[1] == "sum");
    recorder.timed = false;
    comm->all_reduce_sum("sum", tensor_of(a));
    BOOST_REQUIRE_EQUAL(recorder.records.size(), 3U);
    BOOST_TEST(recorder.records[2].posted == 0);
    BOOST_TEST(recorder.records[2].done == 0);
    comm->set_observer(nullptr);
    comm->all_reduce_sum("sum", tensor_of(a));
    BOOST_TEST(recorder.records.size() == 3U);
}

BOOST_AUTO_TEST_CASE(a_label_stands_for_one_op) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    std::vector<float> a(1);
    std::vector<float> b(1);
    comm->all_reduce_sum("x", tensor_of(a));
    Error const error = error_of([&] {
        (void)comm->begin_exchange("x", tensor_of(a), next(*comm), tensor_of(b), previous(*comm));
    });
    BOOST_TEST((error.code() == ExitCode::internal));
    BOOST_TEST(contains(error.what(), "'x'"));
    comm->end_call(
        comm->begin_exchange("y", tensor_of(a), next(*comm), tensor_of(b), previous(*comm)));
    BOOST_CHECK_THROW(comm->all_reduce_sum("y", tensor_of(a)), Error);
}

BOOST_AUTO_TEST_CASE(a_group_of_one_is_silent) {
    auto const comm = test_world().make_host_comm({test_world().rank()});
    Recorder recorder;
    comm->set_observer(&recorder);
    std::vector<float> values{1.0F, 2.0F};
    comm->all_reduce_sum("grad", tensor_of(values));
    BOOST_TEST(values[0] == 1.0F);
    BOOST_TEST(values[1] == 2.0F);
    BOOST_TEST(comm->ledger().empty());
    BOOST_TEST(recorder.records.empty());
    BOOST_TEST(comm->rank() == 0);
    BOOST_TEST(comm->size() == 1);
    Error const error = error_of(
        [&] { (void)comm->begin_exchange("x", tensor_of(values), 0, tensor_of(values), 0); });
    BOOST_TEST((error.code() == ExitCode::internal));
}

// Rank 0 joins late, so that the calls its peers gave up still finish and the job can end in order.
BOOST_AUTO_TEST_CASE(a_skipped_all_reduce_is_named_within_the_deadline) {
    if (alone()) {
        return;
    }
    World& world = test_world();
    auto const comm = everyone();
    auto const patience = world.deadline();
    std::vector<float> values(8, 1.0F);
    world.barrier();
    if (!world.root()) {
        world.set_deadline(300ms);
        std::int64_t const start = now_ns();
        Error const error = error_of([&] { comm->all_reduce_sum("grad", tensor_of(values)); });
        double const seconds = 1e-9 * static_cast<double>(now_ns() - start);
        world.set_deadline(patience);
        BOOST_TEST((error.code() == ExitCode::communication));
        BOOST_TEST(
            error.what() ==
            fmt::format("timed out after 0.3 s waiting for all_reduce 'grad' (group of {}); a "
                        "peer has died, skipped this call or needs longer (--comm-timeout)",
                        comm->size()));
        BOOST_TEST(seconds >= 0.3);
        BOOST_TEST(seconds < 5.0);
        BOOST_TEST(comm->ledger().empty());
    }
    world.barrier();
    if (world.root()) {
        comm->all_reduce_sum("grad", tensor_of(values));
    }
    world.barrier();
    BOOST_TEST(values[0] == static_cast<float>(comm->size()));
}

BOOST_AUTO_TEST_CASE(a_skipped_exchange_names_the_silent_rank) {
    if (alone()) {
        return;
    }
    World& world = test_world();
    auto const comm = everyone();
    auto const patience = world.deadline();
    std::vector<float> send(200'000, 1.0F);
    std::vector<float> recv(200'000, 0.0F);
    auto const shift = [&] {
        comm->end_call(comm->begin_exchange("cp.kv", tensor_of(send), next(*comm), tensor_of(recv),
                                            previous(*comm)));
    };
    auto const aside = world.rank() < 2 ? world.make_host_comm({0, 1}) : nullptr;
    std::vector<float> token(1);
    world.barrier();
    if (world.rank() == 1) {
        world.set_deadline(300ms);
        Error const error = error_of(shift);
        world.set_deadline(patience);
        BOOST_TEST((error.code() == ExitCode::communication));
        BOOST_TEST(contains(error.what(), fmt::format("waiting for exchange 'cp.kv' with rank 0 "
                                                      "(group of {})",
                                                      comm->size())));
        aside->all_reduce_sum("gave up", tensor_of(token));
    } else if (world.root()) {
        aside->all_reduce_sum("gave up", tensor_of(token));
        shift();
    } else {
        shift();
    }
    world.barrier();
    world.barrier();
    BOOST_TEST(std::ranges::count(recv, 1.0F) == 200'000);
}
