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
///   advantages.whiten 1 call, 12 bytes (with --normalize-advantages); grad 1 call, 4 parameters
///   bytes; metrics 1 call, 4 metric_count bytes
/// By loss path, a micro-batch of n_m samples with R_m response tokens and s_m rows on this rank:
///   loss.seq_kl             scalar: 1 call, 4 n_m bytes (gspo, OPSM), 8 n_m (gspo with TIS)
///   loss.padded.new, .old   n_m calls each, 4 R_m bytes each (gspo, OPSM)
///   loss.padded.new.backward, .old.backward   the same (gspo)
///   loss.gather.ref, .old   1 call each, 8 (S_m - s_m) bytes received (if that pass runs)
///   loss.gather.train, .backward              the same; .backward: bytes sent
/// Groups of one cost nothing.
Ledger expected_ledger(StepShape const& shape, ParameterLayout const& layout,
                       std::vector<MicroBatch> const& batches, GridShape grid);

/// One line per label that differs; empty when equal.
std::vector<std::string> ledger_difference(Ledger const& expected, Ledger const& actual);

}  // namespace cpstep
