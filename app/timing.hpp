// Interleaved ABBA timing of all variants.
#pragma once

#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "app/options.hpp"
#include "app/statistics.hpp"
#include "app/step.hpp"
#include "app/variant.hpp"
#include "mpi/world.hpp"

namespace cpstep {

/// One timed or warm-up step; seconds: max over ranks between a barrier and the end of the step.
struct StepTime {
    std::string variant;
    int block = -1;  ///< -1: warm-up
    double seconds = 0;
    /// Seconds, max over ranks; NaN without a trace.
    double exposed_comm = std::numeric_limits<double>::quiet_NaN();
    double loss_comm = exposed_comm;  ///< in calls labelled "loss."
    double loss = 0;
};

/// What the report says of a variant's time, in seconds.
struct VariantTiming {
    std::string name;
    std::int64_t steps = 0;
    double median = 0, mad = 0, low = 0, high = 0;  ///< low/high: smallest and largest
    double exposed_comm = 0, loss_comm = 0;         ///< medians
    std::map<std::string, double> phases;           ///< median of rank 0's passes by name
    RatioEstimate ratio;                            ///< against the first variant; of 1 for itself
};

struct TimingResult {
    std::vector<StepTime> steps;
    std::vector<VariantTiming> variants;
    bool reproducible = true;  ///< every step of a variant gave the same loss, bit for bit
    std::uint64_t seed = 0;    ///< of the bootstrap
};

/// Number of steps run_timing takes for `variants` variants.
int timing_steps(Options const& options, int variants);

/// Warm-up steps of each variant, then `blocks` blocks that visit the variants forth and back (A B
/// B A), `block_steps` steps a visit. `progress` is told of each finished step. Collective.
TimingResult run_timing(World& world, Trace& trace, Options const& options, TrainStep& step,
                        std::vector<std::unique_ptr<Variant>>& variants,
                        std::function<void(StepTime const&)> const& progress);

/// One step between a barrier and the slowest rank's end, traced as step of its variant.
/// Collective.
StepTime timed_step(World& world, Trace& trace, TrainStep& step, Variant& variant, int block,
                    StepMetrics* metrics = nullptr);

/// Step time of `name` over that of `reference`: from the log ratios of their blocks. Both must
/// have timed steps.
RatioEstimate paired_ratio(std::vector<StepTime> const& steps, std::string const& name,
                           std::string const& reference, std::uint64_t seed);

/// The steps of the other blocks, and warm-up; blocks are numbered anew.
std::vector<StepTime> without_blocks(std::vector<StepTime> const& steps,
                                     std::set<int> const& left_out);

/// Medians, spread and ratios from recorded steps; pure. Phases are left empty.
std::vector<VariantTiming> summarize_timing(std::vector<StepTime> const& steps,
                                            std::vector<std::string> const& names,
                                            std::uint64_t seed);

}  // namespace cpstep
