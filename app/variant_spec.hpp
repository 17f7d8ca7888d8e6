// Which variants a run compares: from options to names and CP configurations. Pure.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "app/cp_config.hpp"
#include "app/options.hpp"
#include "cuda/attention.hpp"

namespace cpstep {

/// " (a2a+p2p 2x4, zigzag, scalar)" to stand behind a size; "" for CP 1.
std::string description(CpConfig const& cp);

struct VariantSpec {
    std::string name;  ///< "cp1", "cp2", "cp2-all_gather-gather"
    CpConfig cp;
    std::optional<TraceDetail> trace_detail = {};  ///< of timed steps; none: the run's
};

/// The baseline "cp1", then the variants of --variant in their order or, without any, each size
/// above 1 with all combinations of the lists; names are unique. `world`: the ranks that default
/// sizes and error texts refer to; that a size divides them is make_grid_shape()'s to check.
/// Error(usage): a method that cannot share the model's heads in a group of its size.
std::vector<VariantSpec> variant_specs(Options const& options, HeadShape heads, int world);

}  // namespace cpstep
