// What --self-test computes on: a model, samples and the two losses that its faults show in.
#pragma once

#include <string>
#include <vector>

#include "app/fault_table.hpp"
#include "app/options.hpp"
#include "app/parameters.hpp"
#include "app/samples.hpp"

namespace cpstep {

struct SelfTestCase {
    std::string about;  ///< for the report
    ParameterLayout layout;
    SampleSet samples;
    Options options;
    std::vector<float> policy, reference;  ///< reference may be empty
};

/// A Qwen2 of two layers whose heads `ranks` divides and 14 seeded samples or more with masked
/// tokens, sequences shorter than the chunk grid and responses of one token.
SelfTestCase built_in_case(Options const& options, int ranks);

/// The options' own model and samples. Errors as for a run.
SelfTestCase users_case(Options const& options, int ranks);

/// The case's options with the loss that a fault is looked for with.
Options probe_options(Options const& options, ProbeLoss probe);

}  // namespace cpstep
