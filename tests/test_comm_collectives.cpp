#define BOOST_TEST_MODULE comm_collectives
#include "tests/errors.hpp"
#include "tests/groups.hpp"

using namespace cpstep;
using namespace cpstep::test;
using namespace std::chrono_literals;

namespace {

using Sizes = std::vector<std::int64_t>;

std::size_t at(std::int64_t i) {
    return static_cast<std::size_t>(i);
}

std::int64_t total(Sizes const& sizes) {
    return std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
}

/// Rows of each rank's block: 0, 1, 2, ... times `unit`, turned so that each rank has each size.
Sizes uneven(Comm const& comm, int turn, std::int64_t unit) {
    Sizes rows;
    for (int rank = 0; rank < comm.size(); ++rank) {
        rows.push_back(unit * ((rank + turn) % comm.size()));
    }
    return rows;
}

/// Every rank's block, one behind the other; values name the rank and the place in its block.
std::vector<float> blocks(Sizes const& rows, std::int64_t cols) {
    std::vector<float> values;
    for (std::size_t rank = 0; rank < rows.size(); ++rank) {
        for (std::int64_t i = 0; i < rows[rank] * cols; ++i) {
            values.push_back(static_cast<float>(1'000'000 * static_cast<std::int64_t>(rank) + i));
        }
    }
    return values;
}

/// The part of blocks() that is of `rank`.
std::vector<float> block(std::vector<float> const& all, Sizes const& rows, std::int64_t cols,
                         int rank) {
    auto const first =
        all.begin() + cols * std::accumulate(rows.begin(), rows.begin() + rank, std::int64_t{0});
    return {first, first + cols * rows[at(rank)]};
}

/// Runs `check(rows, cols)` on uneven, empty and, past any eager limit, large blocks.
template <class Check>
void with_each_split(Comm const& comm, Check const& check) {
    for (int turn = 0; turn < comm.size(); ++turn) {
        check(uneven(comm, turn, 1), 3);
        check(uneven(comm, turn, 40'000), 2);
    }
    check(Sizes(at(comm.size()), 5), 1);
}

LedgerEntry entry(Comm const& comm, char const* op, std::int64_t calls, std::int64_t bytes) {
    return {.op = op, .group_size = comm.size(), .calls = calls, .bytes = bytes};
}

void check_internal(std::function<void()> const& call, std::string const& part) {
    Error const error = error_of(call);
    BOOST_TEST((error.code() == ExitCode::internal));
    BOOST_TEST(contains(error.what(), part), error.what() << " lacks '" << part << "'");
}

}  // namespace

BOOST_AUTO_TEST_CASE(all_gather_lines_up_the_blocks_in_rank_order) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    with_each_split(*comm, [&](Sizes const& rows, std::int64_t cols) {
        auto const want = blocks(rows, cols);
        auto mine = block(want, rows, cols, comm->rank());
        std::vector<float> all(want.size(), -1.0F);
        comm->all_gather("x", tensor_of(all, cols), tensor_of(mine, cols), rows);
        BOOST_TEST((all == want));
    });
}

BOOST_AUTO_TEST_CASE(reduce_scatter_sums_each_block_on_its_rank) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    auto const ranks = static_cast<float>(comm->size());
    with_each_split(*comm, [&](Sizes const& rows, std::int64_t cols) {
        auto const whole = blocks(rows, cols);
        // Rank s adds s to every element: the sums stay below 2^24, so they are exact.
        auto send = whole;
        for (float& value : send) {
            value += static_cast<float>(comm->rank());
        }
        auto const sent = send;
        auto want = block(whole, rows, cols, comm->rank());
        for (float& value : want) {
            value = ranks * value + ranks * (ranks - 1) / 2;
        }
        std::vector<float> sum(want.size(), -1.0F);
        comm->reduce_scatter_sum("x", tensor_of(sum, cols), tensor_of(send, cols), rows);
        BOOST_TEST((sum == want));
        BOOST_TEST((send == sent));
    });
}

BOOST_AUTO_TEST_CASE(all_to_all_brings_each_piece_to_its_rank) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    for (int const turn : {0, 1, 2}) {
        for (int const unit : {1, 30'000}) {
            auto const size = [&](int from, int to) {
                return std::int64_t{unit} * ((from + 2 * to + turn) % 3);
            };
            Sizes leaving;
            Sizes coming;
            std::vector<float> send;
            std::vector<float> want;
            for (int rank = 0; rank < comm->size(); ++rank) {
                leaving.push_back(size(comm->rank(), rank));
                coming.push_back(size(rank, comm->rank()));
                send.insert(send.end(), at(leaving.back()),
                            static_cast<float>(10 * comm->rank() + rank));
                want.insert(want.end(), at(coming.back()),
                            static_cast<float>(10 * rank + comm->rank()));
            }
            std::vector<float> recv(want.size(), -1.0F);
            comm->all_to_all("x", tensor_of(recv), tensor_of(send), leaving, coming);
            BOOST_TEST((recv == want));
        }
    }
}

BOOST_AUTO_TEST_CASE(collectives_of_nothing_are_calls_too) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    Sizes const none(at(comm->size()), 0);
    comm->all_gather("g", Tensor{}, Tensor{}, none);
    comm->reduce_scatter_sum("s", Tensor{}, Tensor{}, none);
    comm->all_to_all("a", Tensor{}, Tensor{}, none, none);
    Ledger const want{{"a", entry(*comm, "all_to_all", 1, 0)},
                      {"g", entry(*comm, "all_gather", 1, 0)},
                      {"s", entry(*comm, "reduce_scatter", 1, 0)}};
    BOOST_TEST((comm->ledger() == want));
}

// One rank owns every row; the others pass a default constructed tensor for their block.
BOOST_AUTO_TEST_CASE(a_rank_without_rows_may_pass_no_tensor) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    for (int owner = 0; owner < comm->size(); ++owner) {
        Sizes rows(at(comm->size()), 0);
        rows[at(owner)] = 2;
        std::vector<float> whole{1.0F, 2.0F, 3.0F, 4.0F};
        std::vector<float> part = whole;
        Tensor const block = comm->rank() == owner ? tensor_of(part, 2) : Tensor{};
        std::vector<float> gathered(4);
        comm->all_gather("g", tensor_of(gathered, 2), block, rows);
        BOOST_TEST((gathered == whole));
        comm->reduce_scatter_sum("s", block, tensor_of(whole, 2), rows);
        float const times = comm->rank() == owner ? static_cast<float>(comm->size()) : 1.0F;
        BOOST_TEST(part[3] == 4.0F * times);
    }
}

BOOST_AUTO_TEST_CASE(an_empty_tensor_may_have_the_address_of_the_other) {
    if (alone()) {
        return;
    }
    // As two views of one workspace have, of which the first is empty: Open MPI would work in
    // place.
    auto const comm = everyone();
    bool const owner = comm->rank() == 0;
    Sizes rows(at(comm->size()));
    rows[0] = 2;
    std::vector<float> memory(8, -1.0F);
    Tensor const all = tensor_of(memory).row_range(0, 2);
    Tensor const own = tensor_of(memory).row_range(owner ? 2 : 0, owner ? 2 : 0);
    if (owner) {
        memory[2] = 5;
        memory[3] = 6;
    }
    comm->all_gather("gather", all, own, rows);
    BOOST_TEST((memory[0] == 5 && memory[1] == 6));
    comm->reduce_scatter_sum("scatter", own, all, rows);
    BOOST_TEST((!owner || memory[2] == 5.0F * static_cast<float>(comm->size())));
    Sizes const to(at(comm->size()), owner ? 1 : 0);
    Sizes from(at(comm->size()));
    from[0] = 1;
    std::vector<float> pieces(at(2 * comm->size()), 7.0F);
    Tensor const sent = tensor_of(pieces).row_range(0, owner ? comm->size() : 0);
    Tensor const received = tensor_of(pieces).row_range(owner ? comm->size() : 0, 1);
    pieces[at(owner ? comm->size() : 0)] = 0;
    comm->all_to_all("pieces", received, sent, to, from);
    BOOST_TEST(pieces[at(owner ? comm->size() : 0)] == 7);
}

BOOST_AUTO_TEST_CASE(ledger_and_observers_see_the_bytes_of_others) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    Recorder recorder;
    comm->set_observer(&recorder);
    Sizes rows;    // 1, 2, 3, ...
    Sizes for_me;  // a piece's size is 1 + the rank it goes to
    for (int rank = 0; rank < comm->size(); ++rank) {
        rows.push_back(rank + 1);
        for_me.push_back(comm->rank() + 1);
    }
    std::vector<float> all(at(total(rows) * 5));
    std::vector<float> mine(at(rows[at(comm->rank())] * 5));
    std::vector<float> leaving(at(total(rows)));
    std::vector<float> coming(at(total(for_me)));
    comm->all_gather("g", tensor_of(all, 5), tensor_of(mine, 5), rows);
    comm->all_gather("g", tensor_of(all, 5), tensor_of(mine, 5), rows);
    comm->reduce_scatter_sum("s", tensor_of(mine, 5), tensor_of(all, 5), rows);
    comm->all_to_all("a", tensor_of(coming), tensor_of(leaving), rows, for_me);

    std::int64_t const others = total(rows) - (comm->rank() + 1);
    Ledger const want{{"a", entry(*comm, "all_to_all", 1, 4 * others)},
                      {"g", entry(*comm, "all_gather", 2, 2 * 20 * others)},
                      {"s", entry(*comm, "reduce_scatter", 1, 20 * others)}};
    BOOST_TEST((comm->ledger() == want));
    BOOST_TEST((recorder.labels == std::vector<std::string>{"g", "g", "s", "a"}));
    std::vector<std::string_view> const ops{"all_gather", "all_gather", "reduce_scatter",
                                            "all_to_all"};
    for (std::size_t i = 0; i < ops.size(); ++i) {
        CommRecord const& record = recorder.records.at(i);
        BOOST_TEST(record.op == ops[i]);
        BOOST_TEST(record.peer == -1);
        BOOST_TEST(record.group_size == comm->size());
        BOOST_TEST(record.bytes == (i < 3 ? 20 : 4) * others);
        BOOST_TEST(record.posted > 0);
        BOOST_TEST(record.posted <= record.waited);
        BOOST_TEST(record.waited <= record.done);
    }
}

BOOST_AUTO_TEST_CASE(blocks_that_do_not_fit_their_tensors_are_refused) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    Sizes const rows(at(comm->size()), 2);
    Sizes negative = rows;
    negative[0] = -2;
    negative[1] = 6;
    std::vector<float> all(at(total(rows) * 3));
    std::vector<float> one(6);
    std::vector<std::int32_t> integers(6);
    Tensor const whole = tensor_of(all, 3);
    Tensor const part = tensor_of(one, 3);
    Tensor const strided{one.data(), DType::f32, 2, 1, 3};
    auto const refuse = [&](Tensor whole, Tensor part, Sizes const& rows, std::string const& why) {
        check_internal([&] { comm->all_gather("x", whole, part, rows); }, "all_gather 'x'" + why);
        check_internal([&] { comm->reduce_scatter_sum("x", part, whole, rows); },
                       "reduce_scatter 'x'" + why);
    };
    refuse(whole, part, Sizes(rows.size() - 1, 2), " takes one size for each of");
    refuse(whole, part, Sizes(rows.size() + 1, 2), " takes one size for each of");
    refuse(whole, part, negative, " takes one size for each of");
    refuse(whole, part, Sizes(rows.size(), 1), ": the pieces of all ranks add up to");
    refuse(whole, tensor_of(one, 2), rows, ": the block of rank");
    refuse(whole, Tensor{one.data(), DType::f32, 2, 2, 2}, rows, ": the block of rank");
    refuse(whole, Tensor{}, rows, ": the block of rank");
    refuse(whole, tensor_of(integers, 3), rows, " takes contiguous tensors of one type");
    refuse(whole, strided, rows, " takes contiguous tensors of one type");
    refuse(Tensor{all.data(), DType::f32, whole.rows, 2, 3}, part, rows,
           " takes contiguous tensors of one type");
    std::vector<std::int32_t> counts(all.size());
    check_internal(
        [&] { comm->reduce_scatter_sum("x", tensor_of(integers, 3), tensor_of(counts, 3), rows); },
        "reduce_scatter 'x' takes contiguous float tensors");
    BOOST_TEST(comm->ledger().empty());
}

BOOST_AUTO_TEST_CASE(pieces_that_do_not_fit_their_tensors_are_refused) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    Sizes const right(at(comm->size()), 2);
    std::vector<float> floats(at(total(right)));
    std::vector<std::int32_t> integers(floats.size());
    Tensor const good = tensor_of(floats);
    Tensor const whole_numbers = tensor_of(integers);
    Sizes moved = right;  // the own piece grows, another shrinks
    ++moved[at(comm->rank())];
    --moved[at(next(*comm))];
    Sizes const wrong_sum(right.size(), 1);
    auto const refuse = [&](Tensor recv, Tensor send, Sizes const& leaving, Sizes const& coming,
                            std::string const& why) {
        check_internal([&] { comm->all_to_all("x", recv, send, leaving, coming); },
                       "all_to_all 'x'" + why);
    };
    refuse(good, good, wrong_sum, right, ": the pieces of all ranks add up to");
    refuse(good, good, right, wrong_sum, ": the pieces of all ranks add up to");
    refuse(good, good, {}, right, " takes one size for each of");
    refuse(good, good, right, moved, " sends 2 elements to its own rank, which expects 3");
    refuse(whole_numbers, good, right, right, " takes contiguous tensors of one type");
    refuse(good, whole_numbers, right, right, " takes contiguous tensors of one type");
    BOOST_TEST(comm->ledger().empty());
}

// Nothing reads the tensors before the refusal, so they need no memory.
BOOST_AUTO_TEST_CASE(more_floats_than_an_int_counts_are_refused) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    constexpr std::int64_t cols = 1 << 20;
    Sizes rows(at(comm->size()), 0);
    rows[0] = 1024;
    rows[1] = 1024;
    float nothing = 0.0F;
    auto const tensor = [&](std::int64_t rows) {
        return Tensor{&nothing, DType::f32, rows, cols, cols};
    };
    Tensor const whole = tensor(2048);
    Tensor const part = tensor(rows[at(comm->rank())]);
    Sizes pieces(at(comm->size()), 0);
    pieces[at(next(*comm))] = 2048 * cols;
    auto const refuse = [&](std::string const& op, std::function<void()> const& call) {
        Error const error = error_of(call);
        BOOST_TEST((error.code() == ExitCode::communication));
        BOOST_TEST(error.what() == op + " 'x' of 2147483648 elements exceeds the 2147483647 of one "
                                        "MPI call; use smaller micro batches");
    };
    refuse("all_gather", [&] { comm->all_gather("x", whole, part, rows); });
    refuse("reduce_scatter", [&] { comm->reduce_scatter_sum("x", part, whole, rows); });
    refuse("all_to_all", [&] { comm->all_to_all("x", whole, whole, pieces, pieces); });
    BOOST_TEST(comm->ledger().empty());
}

BOOST_AUTO_TEST_CASE(each_collective_wants_its_own_label) {
    if (alone()) {
        return;
    }
    auto const comm = everyone();
    Sizes const none(at(comm->size()), 0);
    comm->all_gather("x", Tensor{}, Tensor{}, none);
    check_internal([&] { comm->reduce_scatter_sum("x", Tensor{}, Tensor{}, none); }, "label 'x'");
    check_internal([&] { comm->all_to_all("x", Tensor{}, Tensor{}, none, none); }, "label 'x'");
}

BOOST_AUTO_TEST_CASE(a_group_of_one_has_nothing_to_gather_or_scatter) {
    auto const comm = test_world().make_host_comm({test_world().rank()});
    std::vector<float> a(2);
    std::vector<float> b(2);
    Sizes const rows{2};
    check_internal([&] { comm->all_gather("x", tensor_of(a), tensor_of(b), rows); },
                   "all_gather 'x' in a group of one");
    check_internal([&] { comm->reduce_scatter_sum("x", tensor_of(a), tensor_of(b), rows); },
                   "reduce_scatter 'x' in a group of one");
    check_internal([&] { comm->all_to_all("x", tensor_of(a), tensor_of(b), rows, rows); },
                   "all_to_all 'x' in a group of one");
}

// Rank 0 joins late, so that the calls its peers gave up still finish, with what MPI kept of them.
BOOST_AUTO_TEST_CASE(a_skipped_collective_is_named_within_the_deadline) {
    if (alone()) {
        return;
    }
    World& world = test_world();
    auto const patience = world.deadline();
    auto const size = at(world.size());
    constexpr std::int64_t piece = 50'000;
    for (std::string const op : {"all_gather", "reduce_scatter", "all_to_all"}) {
        auto const comm = everyone();
        std::vector<float> one(piece, 1.0F);
        std::vector<float> all(size * piece, 1.0F);
        std::vector<float> arriving(size * piece, 0.0F);
        Sizes const rows(size, piece);
        auto const call = [&] {
            if (op == "all_gather") {
                comm->all_gather("x", tensor_of(arriving), tensor_of(one), rows);
            } else if (op == "reduce_scatter") {
                comm->reduce_scatter_sum("x", tensor_of(arriving).row_range(0, piece),
                                         tensor_of(all), rows);
            } else {
                comm->all_to_all("x", tensor_of(arriving), tensor_of(all), rows, rows);
            }
        };
        world.barrier();
        if (!world.root()) {
            world.set_deadline(300ms);
            std::int64_t const start = now_ns();
            Error const error = error_of(call);
            double const seconds = 1e-9 * static_cast<double>(now_ns() - start);
            world.set_deadline(patience);
            BOOST_TEST((error.code() == ExitCode::communication));
            BOOST_TEST(error.what() ==
                       fmt::format("timed out after 0.3 s waiting for {} 'x' (group of {}); a peer "
                                   "has died, skipped this call or needs longer (--comm-timeout)",
                                   op, comm->size()));
            BOOST_TEST(seconds >= 0.3);
            BOOST_TEST(seconds < 5.0);
            BOOST_TEST(comm->ledger().empty());
        }
        world.barrier();
        if (world.root()) {
            call();
        }
        bool const sums = op == "reduce_scatter";
        auto const want = sums ? piece : static_cast<std::int64_t>(size) * piece;
        auto const right = [&] {
            return std::ranges::count(arriving, sums ? static_cast<float>(size) : 1.0F) == want;
        };
        // The given up calls go on while MPI is called.
        for (int i = 0; i < 1000 && world.max(right() ? 0.0 : 1.0) > 0.0; ++i) {
        }
        BOOST_TEST(right());
    }
}

BOOST_AUTO_TEST_CASE(an_all_reduce_crosses_the_wire_almost_twice) {
    auto const wire = [](char const* op, int ranks) {
        return wire_bytes({.op = op, .group_size = ranks, .calls = 3, .bytes = 1000});
    };
    BOOST_TEST(wire("all_reduce", 2) == 1000.0);
    BOOST_TEST(wire("all_reduce", 4) == 1500.0);
    BOOST_TEST(wire("all_reduce", 8) == 1750.0);
    for (char const* op : {"exchange", "all_gather", "reduce_scatter", "all_to_all"}) {
        BOOST_TEST(wire(op, 4) == 1000.0);
    }
}
