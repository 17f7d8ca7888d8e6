#include "app/estimate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <limits>

#include "app/run_directory.hpp"
#include "app/step.hpp"

namespace cpstep {

namespace {

/// Bytes of the BatchBuffers of one micro-batch: indices and columns.
std::int64_t input_bytes(MicroBatch const& batch) {
    std::int64_t const Q = batch.loss_rows().size();
    return 4 * (2 * batch.rows() + 7 * batch.response_count() + 8 * Q + 3 * batch.sample_count());
}

}  // namespace

MemoryEstimate estimate_memory(ParameterLayout const& layout, std::vector<VariantPlan> const& plans,
                               Rollout const& rollout, Reduction const& reduction, bool ref,
                               Backend const* backend) {
    ModelConfig const& config = layout.config;
    HeadShape const heads = heads_of(config);
    MemoryRule const rule = backend != nullptr ? memory_rule(*backend) : MemoryRule{};
    MemoryEstimate estimate;
    estimate.state = TrainStep::state_bytes(layout.size, ref, rule.dtype);
    // As the trainer's floats, and for upload in a shorter type.
    estimate.copy = layout.size * (4 + (rule.dtype == DType::f32 ? 0 : 2));
    estimate.results = std::ssize(plans) * 4 * (2 * layout.size);
    for (int rank = 0; rank < plans.front().grid.world; ++rank) {
        ModelCapacity capacity;
        std::int64_t wires = 0;
        std::int64_t inputs = 0;
        std::int64_t key_rows = 0;
        for (VariantPlan const& plan : plans) {
            auto const batches = make_micro_batches(plan, rollout, reduction, rank);
            capacity.cover(capacity_of(batches, heads, rule.dtype));
            wires += workspace_of(batches, heads, rule.dtype);
            for (MicroBatch const& batch : batches) {
                inputs += input_bytes(batch);
                key_rows = std::max(key_rows, batch.plan.longest_keys());
            }
        }
        estimate.activations =
            std::max(estimate.activations, Model::buffer_bytes(config, capacity, rule));
        estimate.wires = std::max(estimate.wires, wires);
        estimate.inputs = std::max(estimate.inputs, inputs);
        if (backend != nullptr) {
            StepSizes const sizes{
                .rows = capacity.rows,
                .key_rows = key_rows,
                .response_rows = capacity.response_rows,
                .vocabulary = config.vocab_size,
                .heads = heads,
                .keeps_logits = rule.keeps_logits(config, capacity.response_rows)};
            estimate.scratch = std::max(estimate.scratch, backend->scratch_bytes(sizes));
        }
    }
    return estimate;
}

std::int64_t available_memory() {
    std::ifstream file("/proc/meminfo");
    std::string key;
    std::int64_t kib = 0;
    for (std::string unit; file >> key >> kib; std::getline(file, unit)) {
        if (key == "MemAvailable:") {
            return kib * 1024;
        }
    }
    return std::numeric_limits<std::int64_t>::max();
}

void require_memory(MemoryEstimate const& estimate, int local_ranks, std::int64_t available) {
    std::int64_t const needed =
        (estimate.total() - estimate.results) * local_ranks + estimate.results;
    require(needed <= available, ExitCode::input_data,
            "the {} ranks of this host need up to {} of memory, {} are available: take fewer "
            "samples, a smaller --max-tokens-per-gpu or --micro-batch-size, or more hosts",
            local_ranks, human_bytes(needed), human_bytes(available));
}

std::string human_bytes(std::int64_t bytes) {
    static constexpr std::array<char const*, 5> units{"B", "KiB", "MiB", "GiB", "TiB"};
    auto value = static_cast<double>(bytes);
    std::size_t unit = 0;
    while (value >= 1024 && unit + 1 < units.size()) {
        value /= 1024;
        ++unit;
    }
    return fmt::format("{:.{}f} {}", value, unit == 0 ? 0 : 1, units[unit]);
}

std::string describe_memory(MemoryEstimate const& memory, MemoryRule rule) {
    return fmt::format(
        "memory of a rank, at most: {} (model state {}, activations {}, attention wires {}, inputs "
        "{}, scratch {}, initial weights {}, results on rank 0 {}); logits above {} are computed "
        "again",
        human_bytes(memory.total()), human_bytes(memory.state), human_bytes(memory.activations),
        human_bytes(memory.wires), human_bytes(memory.inputs), human_bytes(memory.scratch),
        human_bytes(memory.copy), human_bytes(memory.results),
        human_bytes(rule.logits_limit_bytes));
}

std::string describe_plans(std::vector<VariantPlan> const& plans, Rollout const& rollout,
                           MemoryEstimate const& memory, MemoryRule rule, std::int64_t disk_bytes,
                           std::string const& output) {
    std::string out;
    auto const to = std::back_inserter(out);
    for (VariantPlan const& plan : plans) {
        fmt::format_to(to, "{}: {} ranks as DP {} x CP {}{}\n", plan.name, plan.grid.world,
                       plan.grid.dp(), plan.grid.cp, description(plan.cp));
        for (std::size_t dp = 0; dp < plan.schedule.size(); ++dp) {
            fmt::format_to(to, "  DP rank {}, ranks {}..{}:", dp,
                           plan.grid.rank_of(static_cast<int>(dp), 0),
                           plan.grid.rank_of(static_cast<int>(dp), plan.grid.cp - 1));
            for (auto const& samples : plan.schedule[dp]) {
                std::int64_t tokens = 0;
                for (std::int64_t const sample : samples) {
                    tokens += rollout.total_length(sample);
                }
                fmt::format_to(to, " {{{}}} = {} tokens", fmt::join(samples, ","), tokens);
            }
            out += "\n";
        }
    }
    out += describe_memory(memory, rule) + "\n";
    fmt::format_to(to, "disk, at most: {} in {} ({} free)\n", human_bytes(disk_bytes), output,
                   human_bytes(static_cast<std::int64_t>(free_bytes(output))));
    return out;
}

}  // namespace cpstep
