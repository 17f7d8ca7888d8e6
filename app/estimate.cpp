#include "app/estimate.hpp"

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <limits>

#include "app/run_directory.hpp"
#include "app/step.hpp"

namespace cpstep {

MemoryEstimate estimate_memory(ParameterLayout const& layout, std::vector<VariantPlan> const& plans,
                               Rollout const& rollout, Reduction const& reduction, bool ref) {
    ModelConfig const& config = layout.config;
    HeadShape const heads = heads_of(config);
    MemoryEstimate estimate;
    estimate.state = 4 * (TrainStep::state_floats(layout.size, ref) + layout.size);
    estimate.results = std::ssize(plans) * 4 * (2 * layout.size);
    for (int rank = 0; rank < plans.front().grid.world; ++rank) {
        ModelCapacity capacity;
        std::int64_t wires = 0;
        for (VariantPlan const& plan : plans) {
            auto const batches = make_micro_batches(plan, rollout, reduction, rank);
            capacity.cover(capacity_of(batches, heads));
            wires += 4 * workspace_of(batches, heads);
        }
        estimate.activations =
            std::max(estimate.activations, 4 * Model::buffer_floats(config, capacity));
        estimate.wires = std::max(estimate.wires, wires);
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

std::string describe_plans(std::vector<VariantPlan> const& plans, Rollout const& rollout,
                           MemoryEstimate const& memory, std::int64_t disk_bytes,
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
    fmt::format_to(to,
                   "memory of a rank, at most: {} (model state {}, activations {}, attention wires "
                   "{}, results "
                   "on rank 0 {})\n",
                   human_bytes(memory.total()), human_bytes(memory.state),
                   human_bytes(memory.activations), human_bytes(memory.wires),
                   human_bytes(memory.results));
    fmt::format_to(to, "disk, at most: {} in {} ({} free)\n", human_bytes(disk_bytes), output,
                   human_bytes(static_cast<std::int64_t>(free_bytes(output))));
    return out;
}

}  // namespace cpstep
