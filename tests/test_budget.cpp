#define BOOST_TEST_MODULE budget
#include <boost/test/unit_test.hpp>
#include <functional>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "app/budget.hpp"
#include "app/layout.hpp"
#include "tests/cases.hpp"

using namespace cpstep;
using cpstep::test::make_rollout;
using cpstep::test::SampleShape;
using cpstep::test::small_config;

namespace {

struct Cost {
    std::int64_t calls = 0;
    std::int64_t bytes = 0;
};

/// One block a rank, moved `hops` times to the right neighbour; what each rank sends in all. `rows`
/// by owner.
std::vector<Cost> moved_around(std::vector<std::int64_t> const& rows, int hops,
                               std::int64_t row_bytes) {
    std::size_t const n = rows.size();
    std::vector<Cost> sent(n);
    std::vector<std::size_t> held(n);
    std::iota(held.begin(), held.end(), std::size_t{0});
    for (int hop = 0; hop < hops; ++hop) {
        std::vector<std::size_t> next(n);
        for (std::size_t rank = 0; rank < n; ++rank) {
            sent[rank].calls += 1;
            sent[rank].bytes += rows[held[rank]] * row_bytes;
            next[(rank + 1) % n] = held[rank];
        }
        held = next;
    }
    return sent;
}

/// Micro-batches of the samples 0, 1, ... on one rank, `count` samples each.
std::vector<MicroBatch> batches_of(Rollout const& rollout, std::int64_t count, CpConfig const& cp,
                                   int rank) {
    Reduction const reduction = make_reduction(rollout, false);
    std::vector<MicroBatch> batches;
    for (std::int64_t j = 0; j < rollout.samples(); j += count) {
        std::vector<std::int64_t> samples(
            static_cast<std::size_t>(std::min(count, rollout.samples() - j)));
        std::iota(samples.begin(), samples.end(), j);
        batches.push_back(make_micro_batch(rollout, samples, reduction, cp, rank));
    }
    return batches;
}

/// What a rank of a CP group sends in one ring of each micro-batch, all micro-batches added.
Cost simulated(Rollout const& rollout, std::int64_t count, int cp, int rank, int hops,
               std::int64_t row_bytes) {
    Cost total;
    for (std::int64_t j = 0; j < rollout.samples(); j += count) {
        std::vector<std::int64_t> rows(static_cast<std::size_t>(cp));
        for (std::int64_t sample = j; sample < std::min(j + count, rollout.samples()); ++sample) {
            for (int owner = 0; owner < cp; ++owner) {
                rows[owner] += owned_rows(rollout.total_length(sample), {.ranks = cp}, owner);
            }
        }
        Cost const sent = moved_around(rows, hops, row_bytes)[rank];
        total.calls += sent.calls;
        total.bytes += sent.bytes;
    }
    return total;
}

std::set<std::string> labels_of(Ledger const& ledger) {
    std::set<std::string> labels;
    for (auto const& [label, entry] : ledger) {
        labels.insert(label);
    }
    return labels;
}

std::vector<SampleShape> const uneven{{2, 1},  {3, 2},   {5, 4},   {16, 8},
                                      {17, 3}, {64, 33}, {101, 60}};

Ledger two_labels() {
    return {{"cp.kv", {"exchange", 2, 6, 600}}, {"grad", {"all_reduce", 4, 1, 4000}}};
}

}  // namespace

BOOST_AUTO_TEST_CASE(the_closed_form_of_the_ring_is_the_sum_of_its_messages) {
    ParameterLayout const layout(small_config());
    Rollout const rollout = make_rollout(uneven);
    std::int64_t const layers = 3;
    std::int64_t const row_bytes = 2 * 2 * 4 * 4;  // K and V of G = 2 heads of D = 4 floats
    for (int cp = 2; cp <= 8; ++cp) {
        for (int rank = 0; rank < cp; ++rank) {
            for (int const passes : {1, 2, 3}) {
                StepShape const shape{.ref_pass = passes > 1, .old_pass = passes > 2};
                Ledger const ledger = expected_ledger(
                    shape, layout, batches_of(rollout, 3, {.size = cp}, rank), {cp, cp});
                Cost const kv = simulated(rollout, 3, cp, rank, cp - 1, row_bytes);
                Cost const dkv = simulated(rollout, 3, cp, rank, cp, row_bytes);
                BOOST_TEST_CONTEXT("CP " << cp << " rank " << rank << " forward passes "
                                         << passes) {
                    BOOST_TEST((ledger.at("cp.kv") == LedgerEntry{"exchange", cp,
                                                                  passes * layers * kv.calls,
                                                                  passes * layers * kv.bytes}));
                    BOOST_TEST((ledger.at("cp.kv.backward") ==
                                LedgerEntry{"exchange", cp, layers * kv.calls, layers * kv.bytes}));
                    BOOST_TEST(
                        (ledger.at("cp.dkv") ==
                         LedgerEntry{"exchange", cp, layers * dkv.calls, layers * dkv.bytes}));
                }
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(each_label_has_its_calls_and_bytes) {
    // 7 samples in micro-batches of 3, 3 and 1 on 4 ranks as DP 2 x CP 2.
    ParameterLayout const layout(small_config());
    auto const batches = batches_of(make_rollout(uneven), 3, {.size = 2}, 1);
    StepShape const shape{.seq_kl = true, .seq_kl_grad = true, .whiten = true};
    Ledger const ledger = expected_ledger(shape, layout, batches, {4, 2});
    BOOST_TEST(ledger.at("cp.kv").calls == 3 * 3 * 1);
    BOOST_TEST(ledger.at("cp.kv.backward").calls == 3 * 3 * 1);
    BOOST_TEST(ledger.at("cp.dkv").calls == 3 * 3 * 2);
    BOOST_TEST((ledger.at("loss.seq_kl") == LedgerEntry{"all_reduce", 2, 3, 7 * 4}));
    BOOST_TEST((ledger.at("advantages.whiten") == LedgerEntry{"all_reduce", 4, 1, 12}));
    BOOST_TEST((ledger.at("grad") == LedgerEntry{"all_reduce", 4, 1, 4 * layout.size}));
    BOOST_TEST((ledger.at("metrics") == LedgerEntry{"all_reduce", 4, 1, 4 * metric_count}));
    BOOST_TEST(ledger.size() == 7U);
}

BOOST_AUTO_TEST_CASE(labels_follow_the_settings_of_the_loss) {
    ParameterLayout const layout(small_config());
    auto const batches = batches_of(make_rollout(uneven), 3, {.size = 2}, 0);
    std::set<std::string> const always{"cp.kv", "cp.kv.backward", "cp.dkv", "grad", "metrics"};
    auto const extra = [&](std::function<void(Options&)> const& set) {
        Options options;
        set(options);
        Ledger const ledger = expected_ledger(step_shape(options, {}), layout, batches, {2, 2});
        std::set<std::string> labels = labels_of(ledger);
        for (std::string const& label : always) {
            BOOST_TEST(labels.erase(label) == 1U, label);
        }
        return labels;
    };
    using Labels = std::set<std::string>;
    BOOST_TEST((extra([](Options& o) { o.loss.estimator = Estimator::grpo; }) == Labels{}));
    BOOST_TEST((extra([](Options& o) { o.loss.estimator = Estimator::cispo; }) == Labels{}));
    BOOST_TEST((extra([](Options& o) { o.loss.use_opsm = true; }) == Labels{"loss.seq_kl"}));
    BOOST_TEST(
        (extra([](Options& o) { o.loss.estimator = Estimator::gspo; }) == Labels{"loss.seq_kl"}));
    BOOST_TEST(
        (extra([](Options& o) { o.normalize_advantages = true; }) == Labels{"advantages.whiten"}));
}

BOOST_AUTO_TEST_CASE(each_loss_path_has_its_calls_and_bytes) {
    // 7 samples in micro-batches of 3, 3 and 1 on CP 2.
    ParameterLayout const layout(small_config());
    Rollout const rollout = make_rollout(uneven);
    auto const loss_entries = [&](LossComm loss, StepShape const& shape) {
        Ledger ledger = expected_ledger(
            shape, layout, batches_of(rollout, 3, {.size = 2, .loss = loss}, 1), {2, 2});
        std::erase_if(ledger, [](auto const& item) { return !item.first.starts_with("loss."); });
        return ledger;
    };
    StepShape const nothing;
    StepShape const opsm{.seq_kl = true, .tis = true};
    StepShape const gspo{.seq_kl = true, .seq_kl_grad = true};
    StepShape const gspo_tis{.seq_kl = true, .seq_kl_grad = true, .tis = true};
    BOOST_TEST(loss_entries(LossComm::scalar, nothing).empty());
    BOOST_TEST((loss_entries(LossComm::scalar, opsm) ==
                Ledger{{"loss.seq_kl", {"all_reduce", 2, 3, 7 * 4}}}));
    BOOST_TEST((loss_entries(LossComm::scalar, gspo_tis) ==
                Ledger{{"loss.seq_kl", {"all_reduce", 2, 3, 7 * 8}}}));

    LedgerEntry const padded{"all_reduce", 2, 7, 4 * rollout.response_tokens()};
    BOOST_TEST(loss_entries(LossComm::padded, nothing).empty());
    BOOST_TEST((loss_entries(LossComm::padded, opsm) ==
                Ledger{{"loss.padded.new", padded}, {"loss.padded.old", padded}}));
    BOOST_TEST(
        (loss_entries(LossComm::padded, gspo) == Ledger{{"loss.padded.new", padded},
                                                        {"loss.padded.old", padded},
                                                        {"loss.padded.new.backward", padded},
                                                        {"loss.padded.old.backward", padded}}));

    std::int64_t others = 0;
    for (std::int64_t j = 0; j < rollout.samples(); ++j) {
        others += owned_rows(rollout.total_length(j), {.ranks = 2}, 0);
    }
    LedgerEntry const gathered{"all_gather", 2, 3, 8 * others};
    Ledger const always{{"loss.gather.train", gathered},
                        {"loss.gather.backward", {"reduce_scatter", 2, 3, 8 * others}}};
    BOOST_TEST((loss_entries(LossComm::gather, nothing) == always));
    BOOST_TEST((loss_entries(LossComm::gather, gspo_tis) == always));
    Ledger with_passes = always;
    with_passes["loss.gather.ref"] = with_passes["loss.gather.old"] = gathered;
    BOOST_TEST(
        (loss_entries(LossComm::gather, {.ref_pass = true, .old_pass = true}) == with_passes));
}

BOOST_AUTO_TEST_CASE(groups_of_one_cost_nothing) {
    ParameterLayout const layout(small_config());
    auto const batches = batches_of(make_rollout(uneven), 3, {}, 0);
    StepShape const shape{.seq_kl = true, .seq_kl_grad = true, .whiten = true};
    BOOST_TEST(expected_ledger(shape, layout, batches, {1, 1}).empty());
    BOOST_TEST((labels_of(expected_ledger(shape, layout, batches, {4, 1})) ==
                std::set<std::string>{"advantages.whiten", "grad", "metrics"}));
}

BOOST_AUTO_TEST_CASE(equal_ledgers_do_not_differ) {
    BOOST_TEST(ledger_difference(two_labels(), two_labels()).empty());
    BOOST_TEST(ledger_difference({}, {}).empty());
}

BOOST_AUTO_TEST_CASE(extra_missing_and_different_labels_are_named) {
    Ledger actual = two_labels();
    actual["loss.entropy"] = {"all_reduce", 2, 1, 4};
    auto lines = ledger_difference(two_labels(), actual);
    BOOST_TEST(lines == (std::vector<std::string>{
                            "loss.entropy: 1 calls, 4 bytes (all_reduce, group of 2), not in "
                            "the budget"}),
               boost::test_tools::per_element());

    actual = two_labels();
    actual.erase("cp.kv");
    lines = ledger_difference(two_labels(), actual);
    BOOST_TEST(
        lines == (std::vector<std::string>{
                     "cp.kv: never called, budget 6 calls, 600 bytes (exchange, group of 2)"}),
        boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(a_difference_in_any_field_is_shown_beside_the_budget) {
    for (LedgerEntry const& entry :
         {LedgerEntry{"exchange", 2, 7, 600}, LedgerEntry{"exchange", 2, 6, 604},
          LedgerEntry{"exchange", 4, 6, 600}, LedgerEntry{"all_reduce", 2, 6, 600}}) {
        Ledger actual = two_labels();
        actual["cp.kv"] = entry;
        std::string const want = fmt::format(
            "cp.kv: {} calls, {} bytes ({}, group of {}), budget 6 calls, 600 bytes (exchange, "
            "group of 2)",
            entry.calls, entry.bytes, entry.op, entry.group_size);
        BOOST_TEST(ledger_difference(two_labels(), actual) == std::vector<std::string>{want},
                   boost::test_tools::per_element());
    }
}
