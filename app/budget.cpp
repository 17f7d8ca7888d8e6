#include "app/budget.hpp"

#include <numeric>

#include "app/cp_attention.hpp"

namespace cpstep {

namespace {

constexpr std::int64_t f32_bytes = 4;

/// One micro-batch's closed forms; labels that are never called are left out.
struct Tally {
    Ledger& ledger;

    void add(char const* label, char const* op, int group, std::int64_t calls, std::int64_t bytes) {
        if (calls > 0) {
            LedgerEntry& entry = ledger[label];
            entry.op = op;
            entry.group_size = group;
            entry.calls += calls;
            entry.bytes += bytes;
        }
    }
};

/// Rows of the low (or only) and the high chunks of each ring rank's block of the micro-batch.
struct ChunkRows {
    ChunkRows(CpPlan const& plan) {
        Split const split{
            .layout = plan.config.layout, .ranks = plan.config.size, .group = plan.config.a2a};
        for (int holder = 0; holder < split.holders(); ++holder) {
            low.push_back(make_block(plan.lengths, split, holder, 1).rows());
            high.push_back(make_block(plan.lengths, split, holder).rows() - low.back());
        }
    }
    std::int64_t sum_low(int from, int to) const { return sum(low, from, to); }    ///< [from, to)
    std::int64_t sum_high(int from, int to) const { return sum(high, from, to); }  ///< [from, to)

    std::vector<std::int64_t> low, high;

  private:
    static std::int64_t sum(std::vector<std::int64_t> const& rows, int from, int to) {
        return from < to ? std::accumulate(rows.begin() + from, rows.begin() + to, std::int64_t{0})
                         : 0;
    }
};

/// What rank r of a ring of N sends, in calls and rows, of one layer.
struct RingCost {
    std::int64_t kv_calls, kv_rows, sum_calls, sum_rows, home_calls, home_rows;
};

RingCost zigzag_ring(ChunkRows const& rows, int N, int r) {
    int const next = (r + N - 1) % N;
    std::int64_t const low = rows.sum_low(0, N);
    return {.kv_calls = N - 1,
            .kv_rows = low - rows.low[next] + rows.sum_high(next + 1, N),
            .sum_calls = N - 1,
            .sum_rows = low - rows.low[r] + (r == 0 ? rows.high[N - 1] : rows.sum_high(r + 1, N)),
            .home_calls = r == 0 ? N - 2 : 0,
            .home_rows = r == 0 ? rows.sum_high(1, N - 1) : 0};
}

RingCost contiguous_ring(ChunkRows const& rows, int N, int r) {
    bool const last = r == N - 1;
    return {.kv_calls = last ? 0 : r + 1,
            .kv_rows = last ? 0 : rows.sum_low(0, r + 1),
            .sum_calls = last ? 1 : r,
            .sum_rows = last ? rows.low[0] : rows.sum_low(0, r),
            .home_calls = last ? N - 2 : 0,
            .home_rows = last ? rows.sum_low(1, N - 1) : 0};
}

void add_ring(Tally tally, std::int64_t layers, int passes, CpPlan const& plan, HeadShape heads,
              std::int64_t element) {
    int const N = plan.config.size / plan.config.a2a;
    if (N == 1) {
        return;
    }
    int const r = plan.rank / plan.config.a2a;
    ChunkRows const rows(plan);
    RingCost const cost = plan.config.layout == CpLayout::zigzag ? zigzag_ring(rows, N, r)
                                                                 : contiguous_ring(rows, N, r);
    std::int64_t const width = 2 * heads.kv_heads * heads.head_dim;
    auto const add = [&](char const* label, std::int64_t times, std::int64_t calls,
                         std::int64_t sent, std::int64_t bytes) {
        tally.add(label, "exchange", N, times * calls, times * sent * width * bytes);
    };
    add("cp.kv", passes * layers, cost.kv_calls, cost.kv_rows, element);
    add("cp.kv.backward", layers, cost.kv_calls, cost.kv_rows, element);
    add("cp.dkv", layers, cost.sum_calls, cost.sum_rows, f32_bytes);
    add("cp.dkv.home", layers, cost.home_calls, cost.home_rows, f32_bytes);
}

void add_gather(Tally tally, std::int64_t layers, int passes, CpPlan const& plan, HeadShape heads,
                std::int64_t element) {
    std::int64_t const width = 2 * heads.kv_heads * heads.head_dim;
    std::int64_t const tokens =
        std::accumulate(plan.lengths.begin(), plan.lengths.end(), std::int64_t{0});
    std::int64_t const elements = (tokens - plan.own_rows) * width;
    tally.add("cp.kv.gather", "all_gather", plan.config.size, passes * layers,
              passes * layers * elements * element);
    tally.add("cp.dkv.reduce_scatter", "reduce_scatter", plan.config.size, layers,
              layers * elements * f32_bytes);
}

void add_scatter(Tally tally, std::int64_t layers, int passes, CpPlan const& plan, HeadShape heads,
                 std::int64_t element) {
    int const u = plan.config.a2a;
    HeadShape const local = scattered_heads(heads, u);
    std::int64_t const q = local.heads * local.head_dim * element;
    std::int64_t const qkv = q + 2 * local.kv_heads * local.head_dim * element;
    Split const split{.layout = plan.config.layout, .ranks = plan.config.size, .group = u};
    std::int64_t const group_rows = make_block(plan.lengths, split, plan.rank / u).rows();
    std::int64_t const to_others = (u - 1) * plan.own_rows;
    std::int64_t const of_others = group_rows - plan.own_rows;
    auto const add = [&](char const* label, std::int64_t calls, std::int64_t bytes) {
        tally.add(label, "all_to_all", u, calls, calls * bytes);
    };
    add("cp.qkv.a2a", passes * layers, to_others * qkv);
    add("cp.o.a2a", passes * layers, of_others * q);
    add("cp.do.a2a", layers, to_others * q);
    add("cp.dqkv.a2a", layers, of_others * qkv);
}

void add_attention(Ledger& ledger, StepShape const& shape, ModelConfig const& config,
                   CpPlan const& plan, DType T) {
    HeadShape const heads = heads_of(config);
    std::int64_t const layers = config.num_hidden_layers;
    int const passes = shape.forward_passes();
    auto const element = static_cast<std::int64_t>(element_bytes(T));
    Tally const tally{ledger};
    if (plan.config.size > 1 && plan.config.method == CpMethod::all_gather) {
        add_gather(tally, layers, passes, plan, heads, element);
        return;
    }
    if (plan.config.a2a > 1) {
        add_scatter(tally, layers, passes, plan, heads, element);
    }
    add_ring(tally, layers, passes, plan, scattered_heads(heads, plan.config.a2a), element);
}

void add_loss(Tally tally, StepShape const& shape, MicroBatch const& batch) {
    auto const add = [&](char const* label, char const* op, std::int64_t calls,
                         std::int64_t floats) {
        tally.add(label, op, batch.plan.config.size, calls, floats * f32_bytes);
    };
    std::int64_t const n = batch.sample_count();
    if (batch.loss() == LossComm::scalar && shape.seq_kl) {
        add("loss.seq_kl", "all_reduce", 1, shape.seq_kl_grad && shape.tis ? 2 * n : n);
    }
    if (batch.loss() == LossComm::padded && shape.seq_kl) {
        add("loss.padded.new", "all_reduce", n, batch.all.size());
        add("loss.padded.old", "all_reduce", n, batch.all.size());
    }
    if (batch.loss() == LossComm::padded && shape.seq_kl_grad) {
        add("loss.padded.new.backward", "all_reduce", n, batch.all.size());
        add("loss.padded.old.backward", "all_reduce", n, batch.all.size());
    }
    if (batch.loss() == LossComm::gather) {
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
                       std::vector<MicroBatch> const& batches, GridShape grid, DType T) {
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
        add_attention(ledger, shape, layout.config, batch.plan, T);
        if (grid.cp > 1) {
            add_loss({ledger}, shape, batch);
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
