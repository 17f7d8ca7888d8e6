#define BOOST_TEST_MODULE budget
#include <boost/test/unit_test.hpp>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "app/budget.hpp"
#include "app/cp_attention.hpp"
#include "tests/cases.hpp"

using namespace cpstep;
using cpstep::test::cp_configs;
using cpstep::test::make_rollout;
using cpstep::test::SampleShape;
using cpstep::test::small_config;

namespace {

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

/// Calls and rows by label of one layer: forward, or backward.
using Messages = std::map<std::string, std::pair<std::int64_t, std::int64_t>>;

void count(Messages& messages, char const* label, std::int64_t rows) {
    messages[label].first += 1;
    messages[label].second += rows;
}

/// Walks the messages of a ring one by one.
void add_ring(Messages& forward, Messages& backward, RingPlan const& plan) {
    for (int i = 0; i < plan.size; ++i) {
        RingStep const& step = plan.steps[i];
        bool const all = step.pass_on == step.chunks;
        std::int64_t const passed = all ? step.rows : std::ssize(step.pass_rows);
        if (i + 1 < plan.size && step.pass_on > 0) {
            count(forward, "cp.kv", passed);
            count(backward, "cp.kv.backward", passed);
        }
        if (i > 0 && step.chunks > 0 && (step.next_is_home || step.pass_on > 0)) {
            count(backward, "cp.dkv", step.next_is_home ? step.rows : passed);
        }
        if (step.sends_home) {
            count(backward, "cp.dkv.home", std::ssize(step.home_rows));
        }
    }
}

/// What a rank does in one layer of the micro-batches; rows of 2*G*D floats for rings and gathers,
/// of one float for all-to-alls.
void add_plan(Messages& forward, Messages& backward, CpPlan const& plan, HeadShape heads) {
    std::int64_t const all = plan.join.all_rows();
    std::int64_t const others = all - plan.own_rows;
    if (plan.config.method == CpMethod::all_gather) {
        count(forward, "cp.kv.gather", others);
        count(backward, "cp.dkv.reduce_scatter", others);
        return;
    }
    add_ring(forward, backward, plan.ring);
    if (plan.config.a2a == 1) {
        return;
    }
    // Each rank hands each other rank its rows of that rank's heads.
    HeadShape const local = scattered_heads(heads, plan.config.a2a);
    std::int64_t const q = local.heads * local.head_dim;
    std::int64_t const kv = 2 * local.kv_heads * local.head_dim;
    std::int64_t const peers = plan.config.a2a - 1;
    count(forward, "cp.qkv.a2a", peers * plan.own_rows * (q + kv));
    count(forward, "cp.o.a2a", others * q);
    count(backward, "cp.do.a2a", peers * plan.own_rows * q);
    count(backward, "cp.dqkv.a2a", others * (q + kv));
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

BOOST_AUTO_TEST_CASE(the_closed_form_of_every_method_is_the_sum_of_its_messages) {
    ModelConfig config = small_config();
    config.num_attention_heads = 840;  // every size from 1 to 8 divides it
    config.num_key_value_heads = 6;
    config.head_dim = 4;
    ParameterLayout const layout(config);
    HeadShape const heads{840, 6, 4};
    Rollout const rollout = make_rollout(uneven);
    std::int64_t const layers = config.num_hidden_layers;
    StepShape const shape{.ref_pass = true};  // two forward passes
    for (int size = 2; size <= 8; ++size) {
        for (CpConfig const& cp : cp_configs(size)) {
            for (int rank = 0; rank < size; ++rank) {
                auto const batches = batches_of(rollout, 3, cp, rank);
                Messages forward;
                Messages backward;
                for (MicroBatch const& batch : batches) {
                    add_plan(forward, backward, batch.plan, heads);
                }
                Ledger ledger =
                    expected_ledger(shape, layout, batches, make_grid_shape(size, size, cp.a2a));
                int const ring = size / cp.a2a;
                HeadShape const local = scattered_heads(heads, cp.a2a);
                BOOST_TEST_CONTEXT("CP " << size << " " << name_of(cp.method) << " "
                                         << name_of(cp.layout) << " a2a " << cp.a2a << " rank "
                                         << rank) {
                    std::size_t labels = 0;
                    for (auto const* messages : {&forward, &backward}) {
                        std::int64_t const times = messages == &forward ? 2 * layers : layers;
                        for (auto const& [label, cost] : *messages) {
                            bool const a2a = label.ends_with(".a2a");
                            bool const hops = ring > 1 && !a2a && cp.method != CpMethod::all_gather;
                            std::int64_t const width =
                                a2a ? 4 : 2 * local.kv_heads * local.head_dim * 4;
                            LedgerEntry const& entry = ledger.at(label);
                            BOOST_TEST(entry.calls == times * cost.first, label);
                            BOOST_TEST(entry.bytes == times * cost.second * width, label);
                            BOOST_TEST(entry.group_size == (a2a ? cp.a2a : hops ? ring : size));
                            ++labels;
                        }
                    }
                    ledger.erase("grad");
                    ledger.erase("metrics");
                    BOOST_TEST(ledger.size() == labels);
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
    BOOST_TEST(ledger.at("cp.dkv").calls == 3 * 3 * 1);
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
    auto const batches = batches_of(make_rollout(uneven), 3, {.size = 1}, 0);
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
