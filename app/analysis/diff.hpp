// What changed between two runs, two variants of one run, or two files of expected values.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "app/analysis/tensor_difference.hpp"
#include "app/statistics.hpp"
#include "cuda/error.hpp"

namespace cpstep {

struct DiffOptions {
    std::filesystem::path a, b;         ///< run folders, or HDF5 files
    std::vector<std::string> variants;  ///< none: all that both have; one: in both; two: of A, of B
    double tolerance = 1e-5;            ///< of TensorDifference::judged
    double gate_ratio = 0;              ///< of the time of B over A; 0: off
};

/// Medians of rank 0, seconds.
struct PhaseDifference {
    std::string name;
    double a = 0, b = 0;
};

/// A variant of A and one of B ("" and "": the whole of two files without variants).
struct VariantDifference {
    std::string a, b;
    std::vector<TensorDifference> tensors;
    std::vector<PhaseDifference> phases;
    std::optional<RatioEstimate> ratio;  ///< time of B over A, where both have timed steps
    bool paired = false;                 ///< blocks of one run, else of two
    GateResult gate = GateResult::off;
};

struct Difference {
    std::vector<VariantDifference> variants;
    std::vector<std::string> notes;
    ExitCode code = ExitCode::pass;
    std::string reason;
};

/// Error(input_data) for what cannot be read, Error(usage) for a variant that is not there.
Difference compare(DiffOptions const& options);

/// Ratio of medians of b over a with a 95 % interval by resampling each set, 10 000 times from
/// `seed`. For blocks of runs that were not interleaved: drift between the runs is not in it.
RatioEstimate unpaired_ratio(std::vector<double> const& a, std::vector<double> const& b,
                             std::uint64_t seed);

std::string diff_text(DiffOptions const& options, Difference const& difference, bool colour);
/// format "cpstep-diff", format_version 1.
std::string diff_json(DiffOptions const& options, Difference const& difference);

}  // namespace cpstep
