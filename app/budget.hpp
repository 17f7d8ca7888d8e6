// Closed form of what a step may communicate, and its comparison with the ledger.
#pragma once

#include <string>
#include <vector>

#include "app/micro_batch.hpp"
#include "app/parameters.hpp"
#include "app/step.hpp"
#include "mpi/grid.hpp"

namespace cpstep {

/// Calls and bytes per label of one step on one rank; app/CONTEXT_PARALLEL.md has the table.
/// A micro-batch: what its method, layout and loss path send; once a step: advantages.whiten, grad,
/// metrics. Groups of one cost nothing. T: the type activations travel in.
Ledger expected_ledger(StepShape const& shape, ParameterLayout const& layout,
                       std::vector<MicroBatch> const& batches, GridShape grid,
                       DType T = DType::f32);

/// One line per label that differs; empty when equal.
std::vector<std::string> ledger_difference(Ledger const& expected, Ledger const& actual);

}  // namespace cpstep
