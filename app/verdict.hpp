// From checks, signal and timing to one verdict and one exit code.
#pragma once

#include <string>
#include <vector>

#include "app/gpu_clocks.hpp"
#include "app/parity.hpp"
#include "app/timing.hpp"
#include "cuda/cuda_device.hpp"
#include "mpi/clock_sync.hpp"

namespace cpstep {

/// Whether the step can tell a right CP from a wrong one at all.
struct Signal {
    bool present = false;
    std::string reason;  ///< why not, or what carries it
};

/// A gradient that is exactly zero proves nothing: any CP implementation agrees on it. Names the
/// settings that make it so (one sample per prompt, equal rewards, zero coefficients).
Signal check_signal(VariantResult const& base, Options const& options, SampleSet const& samples);

/// What one rank took of its processor's memory.
struct MemoryUse {
    std::int64_t planned_bytes = 0;
    std::int64_t peak_bytes = 0;
};

/// Everything rank 0 reports.
struct Report {
    ExitCode code = ExitCode::internal;
    std::string reason;
    Signal signal;
    Precision precision = Precision::fp32;
    std::string reference_name;  ///< what bf16 is held against, "cp1 in fp32"
    std::string nonfinite;       ///< first place, "" if none
    std::string unresolved;      ///< why the precision cannot decide what noise may explain, or ""
    std::vector<VariantPlan> plans;
    std::vector<VariantResult> results;  ///< first is the baseline
    std::vector<Check> checks;
    TimingResult timing;            ///< no variants when timing is off
    bool timing_valid = true;       ///< Wires::timing_valid()
    std::vector<GateResult> gates;  ///< one a timed variant
    std::vector<MemoryUse> memory;  ///< of each rank; empty where nothing is known
    std::vector<std::pair<std::string, std::int64_t>> memory_parts;  ///< of the largest plan
    std::vector<RankClock> clocks;                                   ///< by rank
    std::vector<BlockClock> gpu_clocks;  ///< in the timed blocks, by rank; empty where not known
    std::vector<std::string> notes;      ///< what was not checked, what limits the result
};

/// Fills checks, nonfinite and, in bf16, unresolved from the results: each alone and each against
/// the first, in fp32 by compare_results(), in bf16 by `reference` (null in fp32). Root only.
void compare_all(Report& report, VariantResult const* reference, ParameterLayout const& layout,
                 Rollout const& rollout, Options const& options);

/// Whether a check makes the verdict "parity failed".
bool counts_as_failed(Report const& report, Check const& check);

/// Whether a check fails that rounding alone might explain; never in bf16, whose bounds are made of
/// errors already.
bool fails_within_reach_of_noise(Report const& report);

/// Widens the bounds by the baseline's noise (widen_bounds) and notes it; beyond max_growth the
/// report is unresolved.
void hold_against_noise(Report& report, std::vector<Check> const& noise);

/// Sets gates, code and reason, in this order of severity: non-finite (9), parity or ledger (5), no
/// signal or unresolved (10), gate failed (6), gate inconclusive (10), pass (0). A gate that would
/// be another without the blocks in which a GPU was slowed is inconclusive.
void judge(Report& report, double gate_ratio);

/// Why the times of a report are not valid.
inline constexpr char const* blind_timing =
    "ranks share a GPU over sockets: step times say nothing";

/// "pass", "parity failed", ... of an exit code.
std::string verdict_name(ExitCode code);

}  // namespace cpstep
