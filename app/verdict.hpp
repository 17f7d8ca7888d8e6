// From checks, signal and timing to one verdict and one exit code.
#pragma once

#include <string>
#include <vector>

#include "app/parity.hpp"
#include "app/timing.hpp"

namespace cpstep {

/// Whether the step can tell a right CP from a wrong one at all.
struct Signal {
    bool present = false;
    std::string reason;  ///< why not, or what carries it
};

/// A gradient that is exactly zero proves nothing: any CP implementation agrees on it. Names the
/// settings that make it so (one sample per prompt, equal rewards, zero coefficients).
Signal check_signal(VariantResult const& base, Options const& options, SampleSet const& samples);

/// Everything rank 0 reports.
struct Report {
    ExitCode code = ExitCode::internal;
    std::string reason;
    Signal signal;
    std::string nonfinite;   ///< first place, "" if none
    std::string unresolved;  ///< why float32 cannot decide what noise may explain, "" if it can
    std::vector<VariantPlan> plans;
    std::vector<VariantResult> results;  ///< first is the baseline
    std::vector<Check> checks;
    TimingResult timing;             ///< no variants when timing is off
    std::vector<GateResult> gates;   ///< one a timed variant
    std::vector<std::string> notes;  ///< what was not checked, what limits the result
};

/// Whether a check makes the verdict "parity failed".
bool counts_as_failed(Report const& report, Check const& check);

/// Whether a check fails that rounding alone might explain.
bool fails_within_reach_of_noise(Report const& report);

/// Widens the bounds by the baseline's noise (widen_bounds) and notes it; beyond max_growth the
/// report is unresolved.
void hold_against_noise(Report& report, std::vector<Check> const& noise);

/// Sets gates, code and reason, in this order of severity: non-finite (9), parity or ledger (5), no
/// signal or unresolved (10), gate failed (6), gate inconclusive (10), pass (0).
void judge(Report& report, double gate_ratio);

/// "pass", "parity failed", ... of an exit code.
std::string verdict_name(ExitCode code);

}  // namespace cpstep
