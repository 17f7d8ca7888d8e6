// Closed form of what a step may communicate, and its comparison with the ledger.
#pragma once

#include <string>
#include <vector>

#include "app/micro_batch.hpp"
#include "app/parameters.hpp"
#include "app/step.hpp"
#include "mpi/grid.hpp"

namespace cpstep {

/// Calls and bytes per label of one step on one rank. With N = CP, L layers, F forward passes,
/// micro-batches m, S_m rows of the whole micro-batch, b_m the rows of the right neighbour's block,
/// w = 2 G D 4 bytes a row:
///   cp.kv             F L (N-1) calls a micro-batch, F L (S_m - b_m) w bytes
///   cp.kv.backward      L (N-1) calls,                 L (S_m - b_m) w bytes
///   cp.dkv              L N calls,                     L S_m w bytes
///   loss.seq_kl       1 call a micro-batch, 4 n_m bytes (gspo, OPSM); loss.seq_kl_grad the same
///   (gspo) advantages.whiten 1 call, 12 bytes (with --normalize-advantages) grad 1 call, 4
///   parameters bytes; metrics 1 call, 4 metric_count bytes
/// Groups of one cost nothing.
Ledger expected_ledger(StepShape const& shape, ParameterLayout const& layout,
                       std::vector<MicroBatch> const& batches, GridShape grid);

/// One line per label that differs; empty when equal.
std::vector<std::string> ledger_difference(Ledger const& expected, Ledger const& actual);

}  // namespace cpstep
