#include "app/budget.hpp"

#include <numeric>

namespace cpstep {

namespace {

constexpr std::int64_t f32_bytes = 4;

void add_ring(Ledger& ledger, StepShape const& shape, ModelConfig const& config,
              RingPlan const& ring) {
    std::int64_t const N = ring.cp_size;
    std::int64_t const row_bytes = 2 * config.num_key_value_heads * config.head_dim * f32_bytes;
    std::int64_t const rows =
        std::accumulate(ring.block_rows.begin(), ring.block_rows.end(), std::int64_t{0});
    std::int64_t const right_block = ring.block_rows[(ring.cp_rank + 1) % N];
    std::int64_t const kv_bytes = (rows - right_block) * row_bytes;
    auto const add = [&](char const* label, std::int64_t times, std::int64_t calls,
                         std::int64_t bytes) {
        LedgerEntry& entry = ledger[label];
        entry.op = "exchange";
        entry.group_size = ring.cp_size;
        entry.calls += times * calls;
        entry.bytes += times * bytes;
    };
    std::int64_t const layers = config.num_hidden_layers;
    add("cp.kv", shape.forward_passes() * layers, N - 1, kv_bytes);
    add("cp.kv.backward", layers, N - 1, kv_bytes);
    add("cp.dkv", layers, N, rows * row_bytes);
}

void add_loss(Ledger& ledger, StepShape const& shape, MicroBatch const& batch) {
    auto const add = [&](char const* label, char const* op, std::int64_t calls,
                         std::int64_t floats) {
        LedgerEntry& entry = ledger[label];
        entry.op = op;
        entry.group_size = static_cast<int>(batch.stream_rows.size());
        entry.calls += calls;
        entry.bytes += floats * f32_bytes;
    };
    std::int64_t const n = batch.sample_count();
    if (batch.loss == LossComm::scalar && shape.seq_kl) {
        add("loss.seq_kl", "all_reduce", 1, shape.seq_kl_grad && shape.tis ? 2 * n : n);
    }
    if (batch.loss == LossComm::padded && shape.seq_kl) {
        add("loss.padded.new", "all_reduce", n, batch.all.size());
        add("loss.padded.old", "all_reduce", n, batch.all.size());
    }
    if (batch.loss == LossComm::padded && shape.seq_kl_grad) {
        add("loss.padded.new.backward", "all_reduce", n, batch.all.size());
        add("loss.padded.old.backward", "all_reduce", n, batch.all.size());
    }
    if (batch.loss == LossComm::gather) {
        std::int64_t const others =
            std::accumulate(batch.stream_rows.begin(), batch.stream_rows.end(), std::int64_t{0}) -
            batch.rows();
        if (shape.ref_pass) {
            add("loss.gather.ref", "all_gather", 1, 2 * others);
        }
        if (shape.old_pass) {
            add("loss.gather.old", "all_gather", 1, 2 * others);
        }
        add("loss.gather.train", "all_gather", 1, 2 * others);
        add("loss.gather.backward", "reduce_scatter", 1, 2 * others);
    }
}

std::string described(LedgerEntry const& entry) {
    return fmt::format("{} calls, {} bytes ({}, group of {})", entry.calls, entry.bytes, entry.op,
                       entry.group_size);
}

}  // namespace

Ledger expected_ledger(StepShape const& shape, ParameterLayout const& layout,
                       std::vector<MicroBatch> const& batches, GridShape grid) {
    Ledger ledger;
    auto const reduce = [&](char const* label, int group, std::int64_t floats) {
        if (group > 1) {
            LedgerEntry& entry = ledger[label];
            entry.op = "all_reduce";
            entry.group_size = group;
            entry.calls += 1;
            entry.bytes += floats * f32_bytes;
        }
    };
    for (MicroBatch const& batch : batches) {
        if (grid.cp > 1) {
            add_ring(ledger, shape, layout.config, batch.ring);
            add_loss(ledger, shape, batch);
        }
    }
    if (shape.whiten) {
        reduce("advantages.whiten", grid.world, 3);
    }
    reduce("grad", grid.world, layout.size);
    reduce("metrics", grid.world, metric_count);
    return ledger;
}

std::vector<std::string> ledger_difference(Ledger const& expected, Ledger const& actual) {
    std::vector<std::string> lines;
    for (auto const& [label, entry] : actual) {
        auto const budget = expected.find(label);
        if (budget == expected.end()) {
            lines.push_back(fmt::format("{}: {}, not in the budget", label, described(entry)));
        } else if (!(budget->second == entry)) {
            lines.push_back(fmt::format("{}: {}, budget {}", label, described(entry),
                                        described(budget->second)));
        }
    }
    for (auto const& [label, entry] : expected) {
        if (!actual.contains(label)) {
            lines.push_back(fmt::format("{}: never called, budget {}", label, described(entry)));
        }
    }
    return lines;
}

}  // namespace cpstep
