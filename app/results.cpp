#include "app/results.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "app/budget.hpp"
#include "app/parity.hpp"

namespace cpstep {

namespace {

/// Arrays over the whole rollout that ranks fill in part and sum up.
struct Partial {
    enum Array : std::int64_t { log_prob, ref, old, rollout, entropy, coverage, arrays };

    explicit Partial(Rollout const& rollout)
        : tokens(rollout.response_tokens()),
          samples(rollout.samples()),
          values(arrays * tokens + 2 * samples) {}

    double& at(Array array, std::int64_t i) { return values[array * tokens + i]; }
    double& seq_kl(std::int64_t j) { return values[arrays * tokens + j]; }
    double& advantage(std::int64_t j) { return values[arrays * tokens + samples + j]; }

    std::vector<double> array(Array array) const { return slice(array * tokens, tokens); }
    std::vector<double> seq_kls() const { return slice(arrays * tokens, samples); }
    std::vector<double> advantages() const { return slice(arrays * tokens + samples, samples); }

    std::vector<double> slice(std::int64_t begin, std::int64_t count) const {
        return {values.begin() + begin, values.begin() + begin + count};
    }

    std::int64_t tokens;
    std::int64_t samples;
    std::vector<double> values;
};

std::vector<float> downloaded(Backend& backend, Tensor tensor) {
    std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
    backend.download(values.data(), tensor);
    return values;
}

void add_batch(Partial& partial, Backend& backend, Rollout const& rollout, MicroBatch const& batch,
               BatchBuffers const& buffers, StepShape const& shape, bool owns_seq_kl) {
    auto const log_probs = downloaded(backend, buffers.log_probs);
    auto const entropy = downloaded(backend, buffers.entropy);
    auto const ref = downloaded(backend, buffers.ref_log_probs);
    auto const old = downloaded(backend, buffers.old_log_probs);
    auto const engine = downloaded(backend, buffers.rollout_log_probs);
    auto const advantages = downloaded(backend, buffers.advantages);
    auto const seq_kl = downloaded(backend, buffers.seq_kl);
    for (std::size_t r = 0; r < batch.own.index.size(); ++r) {
        std::int64_t const i = batch.own.index[r];
        std::int64_t const sample = batch.samples[batch.own.sample_of[r]];
        std::size_t const at = batch.loss_place(r);
        partial.at(Partial::log_prob, i) += log_probs[r];
        partial.at(Partial::ref, i) += shape.has_ref ? ref[at] : 0.0;
        partial.at(Partial::old, i) += old[at];
        partial.at(Partial::rollout, i) += shape.tis ? engine[at] : 0.0;
        partial.at(Partial::entropy, i) += entropy[r];
        partial.at(Partial::coverage, i) += 1.0;
        partial.advantage(sample) +=
            advantages[at] / static_cast<double>(rollout.response_length(sample));
    }
    for (std::size_t slot = 0; owns_seq_kl && slot < batch.samples.size(); ++slot) {
        partial.seq_kl(batch.samples[slot]) += seq_kl[slot];
    }
}

void sum_ledgers(World& world, Ledger& ledger) {
    std::string text;
    for (auto const& [label, entry] : ledger) {
        text += fmt::format("{}\t{}\t{}\t{}\t{}\n", label, entry.op, entry.group_size, entry.calls,
                            entry.bytes);
    }
    ledger.clear();
    for (std::string const& of_rank : world.gather(text)) {
        std::istringstream lines(of_rank);
        std::string label;
        LedgerEntry entry;
        while (lines >> label >> entry.op >> entry.group_size >> entry.calls >> entry.bytes) {
            LedgerEntry& total = ledger[label];
            total.op = entry.op;
            total.group_size = entry.group_size;
            total.calls += entry.calls;
            total.bytes += entry.bytes;
        }
    }
}

std::vector<std::string> gather_lines(World& world, std::vector<std::string> const& own) {
    std::vector<std::string> lines;
    auto const by_rank = world.gather(fmt::format("{}", fmt::join(own, "\n")));
    for (std::size_t rank = 0; rank < by_rank.size(); ++rank) {
        std::istringstream text(by_rank[rank]);
        for (std::string line; std::getline(text, line);) {
            lines.push_back(fmt::format("[rank {}] {}", rank, line));
        }
    }
    return lines;
}

/// Each response token must come from exactly one rank.
void find_worst_coverage(VariantResult& result, Partial& partial, Rollout const& rollout) {
    for (std::int64_t i = 0; i < partial.tokens; ++i) {
        double const error = std::abs(partial.at(Partial::coverage, i) - 1.0);
        if (error > result.coverage_error) {
            result.coverage_error = error;
            result.coverage_place = token_place(rollout, i);
        }
    }
}

double spread_over_ranks(World& world, double value) {
    return world.max(value) + world.max(-value);
}

}  // namespace

VariantResult collect_result(World& world, Backend& backend, TrainStep& step, Variant& variant,
                             ParameterLayout const& layout, Rollout const& rollout,
                             StepMetrics const& metrics) {
    VariantResult result;
    result.name = variant.name();
    result.metrics = metrics;
    Partial partial(rollout);
    for (std::size_t i = 0; i < variant.batches().size(); ++i) {
        bool const owns_seq_kl =
            variant.grid().cp_rank() == 0 || !variant.loss(i).seq_kl_complete(step.loss_options());
        add_batch(partial, backend, rollout, variant.batches()[i], variant.buffers()[i],
                  step.shape(), owns_seq_kl);
    }
    world.sum(partial.values);
    find_worst_coverage(result, partial, rollout);
    result.log_probs = partial.array(Partial::log_prob);
    result.old_log_probs = partial.array(Partial::old);
    if (step.shape().has_ref) {
        result.ref_log_probs = partial.array(Partial::ref);
    }
    if (step.shape().tis) {
        result.rollout_log_probs = partial.array(Partial::rollout);
    }
    result.entropy = partial.array(Partial::entropy);
    result.seq_kl = partial.seq_kls();
    result.advantages = partial.advantages();

    result.ledger = variant.grid().ledger();
    result.budget = expected_ledger(step.shape(), layout, variant.batches(), variant.plan().grid,
                                    backend.compute_dtype());
    result.ledger_faults = gather_lines(world, ledger_difference(result.budget, result.ledger));
    sum_ledgers(world, result.ledger);
    sum_ledgers(world, result.budget);

    result.replica_spread =
        std::max(spread_over_ranks(world, backend.squared_norm(step.gradients())),
                 spread_over_ranks(world, backend.squared_norm(step.weights())));
    if (world.root()) {
        result.gradients = downloaded(backend, step.gradients());
        result.updated = downloaded(backend, step.weights());
    }
    return result;
}

}  // namespace cpstep
