// Memory a run will take, before anything is allocated.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "app/variant.hpp"

namespace cpstep {

/// Bytes of one rank (the largest), by what they hold. What lies where: on a GPU `copy` and
/// `results` are host memory and the rest the device's; on the host backend all is one.
struct MemoryEstimate {
    std::int64_t state = 0;        ///< weights, reference, gradients, moments
    std::int64_t activations = 0;  ///< model buffers
    std::int64_t wires = 0;        ///< attention workspaces of all variants
    std::int64_t inputs = 0;       ///< micro-batches of all variants
    std::int64_t scratch = 0;      ///< of the backend's operations
    std::int64_t copy = 0;         ///< initial weights
    std::int64_t results = 0;      ///< root only: gradients and updated weights of every variant

    std::int64_t device() const { return state + activations + wires + inputs + scratch; }
    std::int64_t total() const { return device() + copy + results; }
};

/// `backend`: the one that will run the step; null stands for the host's.
MemoryEstimate estimate_memory(ParameterLayout const& layout, std::vector<VariantPlan> const& plans,
                               Rollout const& rollout, Reduction const& reduction, bool ref,
                               Backend const* backend = nullptr);

/// One line: what a rank takes, by what it holds, and the rule for logits.
std::string describe_memory(MemoryEstimate const& memory, MemoryRule rule);

/// Grid, micro-batches with their tokens, memory and disk of every variant: the text of --dry-run.
std::string describe_plans(std::vector<VariantPlan> const& plans, Rollout const& rollout,
                           MemoryEstimate const& memory, MemoryRule rule, std::int64_t disk_bytes,
                           std::string const& output);

/// Bytes of memory this host can give without swapping; the largest number where that is unknown.
std::int64_t available_memory();
/// Error(input_data) if the ranks of one host (rank 0 among them) do not fit.
void require_memory(MemoryEstimate const& estimate, int local_ranks, std::int64_t available);

/// "1.5 GiB".
std::string human_bytes(std::int64_t bytes);

}  // namespace cpstep
