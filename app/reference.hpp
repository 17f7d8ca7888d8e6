// The baseline in fp32: what a step in a lower precision is held against.
#pragma once

#include <vector>

#include "app/results.hpp"
#include "app/setup.hpp"
#include "mpi/wires.hpp"

namespace cpstep {

/// One step of the first plan (CP=1) on `backend`, an fp32 one, with layers computed again in
/// backward so that it fits where the step itself does. Whatever it takes is given back before it
/// returns. Named "cp1 in fp32". Collective.
VariantResult reference_result(World& world, Backend& backend, Wires& wires, Setup const& setup,
                               std::vector<float> const& policy,
                               std::vector<float> const& reference);

}  // namespace cpstep
