// What a run needs to know before it takes memory: settings, model, samples, plans. The same on
// every rank.
#pragma once

#include <string>
#include <vector>

#include "app/estimate.hpp"
#include "app/options.hpp"
#include "app/parameters.hpp"
#include "app/samples.hpp"
#include "app/step.hpp"
#include "app/variant.hpp"

namespace cpstep {

struct Setup {
    Setup(Options options, int world_size);

    Options options;
    ParameterLayout layout;
    SampleSet samples;
    Reduction reduction;
    StepShape shape;
    std::vector<VariantPlan> plans;
    std::vector<std::string> notes;  ///< for the report

    /// Separate reference weights are needed (--ref-load).
    bool has_ref_weights() const { return !options.ref_load.empty(); }
    int total_steps() const;
    std::int64_t disk_bytes() const;
    /// `backend`: the one that will run the step; null stands for the host's.
    MemoryEstimate memory(Backend const* backend = nullptr) const;
    /// Text of --dry-run.
    std::string description() const;
};

/// Initial policy weights: the checkpoint or seeded ones; the reference: --ref-load or empty.
/// Errors: Error(input_data).
std::vector<float> load_policy(Setup& setup);
std::vector<float> load_reference(Setup& setup);

}  // namespace cpstep
