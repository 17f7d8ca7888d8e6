#include "app/verdict.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace cpstep {

namespace {

std::string pass_reason(Report const& report) {
    if (report.results.size() < 2) {
        return "one variant only: nothing was compared";
    }
    return report.precision == Precision::bf16
               ? fmt::format("all variants are as close to {} as the baseline",
                             report.reference_name)
               : "all variants agree with the baseline";
}

std::string no_signal_reason(Options const& options, SampleSet const& samples) {
    std::vector<std::string> causes;
    bool const all_zero = std::all_of(samples.advantages.begin(), samples.advantages.end(),
                                      [](float a) { return a == 0.0F; });
    if (all_zero) {
        causes.emplace_back(options.n_samples_per_prompt == 1 && options.rollout_file.empty()
                                ? "every advantage is 0: with one sample per prompt the group mean "
                                  "is the reward itself"
                                : "every advantage is 0: rewards within each group are equal");
    }
    if (!options.loss.use_kl_loss || options.loss.kl_loss_coef == 0) {
        causes.emplace_back("the KL loss coefficient is 0");
    }
    if (options.loss.entropy_coef == 0) {
        causes.emplace_back("the entropy coefficient is 0");
    }
    return fmt::format(
        "the gradient is exactly zero, so any CP implementation would agree ({}); use "
        "--n-samples-per-prompt 2 or more with unequal rewards, or a non-zero coefficient",
        fmt::join(causes, "; "));
}

}  // namespace

Signal check_signal(VariantResult const& base, Options const& options, SampleSet const& samples) {
    if (!(base.metrics.grad_norm > 0)) {
        return {false, no_signal_reason(options, samples)};
    }
    auto const moved = std::count_if(samples.advantages.begin(), samples.advantages.end(),
                                     [](float a) { return a != 0.0F; });
    return {true, fmt::format("gradient norm {:.4g}; {} of {} samples have a non-zero advantage",
                              base.metrics.grad_norm, moved, samples.advantages.size())};
}

std::string verdict_name(ExitCode code) {
    switch (code) {
        case ExitCode::pass:
            return "pass";
        case ExitCode::parity:
            return "parity failed";
        case ExitCode::performance:
            return "performance gate failed";
        case ExitCode::nonfinite:
            return "non-finite";
        case ExitCode::inconclusive:
            return "inconclusive";
        default:
            return "error";
    }
}

namespace {

/// Says what a baseline leaves open that is too far from fp32.
void note_resolution(Report& report, std::vector<Check> const& baseline) {
    for (Check const& check : baseline) {
        if (!limits_resolution(check)) {
            continue;
        }
        if (!check.pass && report.unresolved.empty()) {
            report.unresolved = fmt::format(
                "bf16 cannot tell a right step of this model from a wrong one: {} of {} itself is "
                "{:.2g} off fp32 ({}), at most {:.2g} would do; take --precision fp32",
                check.name, check.variant, check.measured, check.unit, check.bound);
        } else if (check.pass && !check.where.empty()) {
            report.notes.push_back(fmt::format(
                "{} itself has more than half of some gradients wrong in bf16, {:.2g} of all "
                "|gradient|^2: their checks prove nothing ({}); --precision fp32 checks them",
                check.variant, check.measured, check.where));
        }
    }
}

}  // namespace

void compare_all(Report& report, VariantResult const* reference, ParameterLayout const& layout,
                 Rollout const& rollout, Options const& options) {
    VariantResult const& base = report.results.front();
    auto const find_nonfinite = [&](VariantResult const& result) {
        std::string const place = first_nonfinite(result, layout, rollout);
        report.nonfinite = report.nonfinite.empty() && !place.empty() ? result.name + ": " + place
                                                                      : report.nonfinite;
    };
    auto const add = [&](std::vector<Check> const& checks) {
        report.checks.insert(report.checks.end(), checks.begin(), checks.end());
    };
    if (reference != nullptr) {
        find_nonfinite(*reference);
    }
    for (VariantResult const& result : report.results) {
        find_nonfinite(result);
        if (reference == nullptr && &result != &base) {
            add(compare_results(base, result, layout, rollout, options.adamw, options.clip_grad));
        } else if (reference != nullptr && &result != &base) {
            add(compare_results_bf16(*reference, base, result, layout, rollout, options));
        } else if (reference != nullptr) {
            auto const checks = check_baseline_bf16(*reference, base, layout, rollout, options);
            note_resolution(report, checks);
            add(checks);
        }
        add(check_result(result));
    }
}

bool counts_as_failed(Report const& report, Check const& check) {
    return !check.pass && !limits_resolution(check) &&
           (report.unresolved.empty() || !noise_may_explain(check));
}

bool fails_within_reach_of_noise(Report const& report) {
    return report.precision == Precision::fp32 &&
           std::any_of(report.checks.begin(), report.checks.end(),
                       [](Check const& check) { return !check.pass && noise_may_explain(check); });
}

void hold_against_noise(Report& report, std::vector<Check> const& noise) {
    double const growth = widen_bounds(report.checks, noise);
    if (growth > 1) {
        report.notes.push_back(fmt::format(
            "this model amplifies rounding: bounds grew up to {:.2g} times, to 8 times what moving "
            "every weight by one ulp does to the baseline",
            growth));
    }
    if (growth > max_growth) {
        report.unresolved = fmt::format(
            "rounding is amplified {:.2g} times what the sizes explain: float32 cannot tell a "
            "right step of this model from a wrong one",
            growth);
    }
}

namespace {

/// What the gate is without the blocks in which a GPU was slowed.
GateResult steady_gate(Report const& report, VariantTiming const& timing, double gate_ratio) {
    auto const steady = without_blocks(report.timing.steps, slowed_blocks(report.gpu_clocks));
    bool const timed =
        std::any_of(steady.begin(), steady.end(), [](StepTime const& s) { return s.block >= 0; });
    if (!timed) {
        return GateResult::inconclusive;
    }
    std::string const& base = report.timing.variants.front().name;
    return judge_gate(paired_ratio(steady, timing.name, base, report.timing.seed), gate_ratio);
}

GateResult gate_of(Report const& report, VariantTiming const& timing, double gate_ratio) {
    GateResult const gate = judge_gate(timing.ratio, gate_ratio);
    if (gate == GateResult::off) {
        return gate;
    }
    bool const sure = report.timing_valid && (slowed_blocks(report.gpu_clocks).empty() ||
                                              steady_gate(report, timing, gate_ratio) == gate);
    return sure ? gate : GateResult::inconclusive;
}

std::string open_gate_reason(Report const& report, double gate_ratio) {
    auto const& variants = report.timing.variants;
    if (!report.timing_valid) {
        return fmt::format("--gate-ratio {} is not judged: {}", gate_ratio, blind_timing);
    }
    if (std::any_of(variants.begin(), variants.end(), [&](VariantTiming const& timing) {
            return judge_gate(timing.ratio, gate_ratio) == GateResult::inconclusive;
        })) {
        return fmt::format(
            "the confidence interval of a step-time ratio includes --gate-ratio {}; raise --blocks",
            gate_ratio);
    }
    return fmt::format(
        "--gate-ratio {} hangs on blocks in which a GPU was slowed down ({} of {}): see to its "
        "cooling and power",
        gate_ratio, slowed_blocks(report.gpu_clocks).size(), variants.front().ratio.blocks);
}

}  // namespace

void judge(Report& report, double gate_ratio) {
    report.gates.clear();
    for (VariantTiming const& timing : report.timing.variants) {
        report.gates.push_back(gate_of(report, timing, gate_ratio));
    }
    auto const gated = [&](GateResult wanted) {
        return std::find(report.gates.begin(), report.gates.end(), wanted) != report.gates.end();
    };
    auto const failed =
        std::find_if(report.checks.begin(), report.checks.end(),
                     [&](Check const& check) { return counts_as_failed(report, check); });
    if (!report.nonfinite.empty()) {
        report.code = ExitCode::nonfinite;
        report.reason = "NaN or Inf in " + report.nonfinite;
    } else if (failed != report.checks.end()) {
        report.code = ExitCode::parity;
        report.reason = fmt::format("{} {}: {} {:.3g}, bound {:.3g}{}{}", failed->variant,
                                    failed->name, failed->unit, failed->measured, failed->bound,
                                    failed->where.empty() ? "" : ", at ", failed->where);
    } else if (!report.signal.present) {
        report.code = ExitCode::inconclusive;
        report.reason = report.signal.reason;
    } else if (!report.unresolved.empty()) {
        report.code = ExitCode::inconclusive;
        report.reason = report.unresolved;
    } else if (gated(GateResult::fail)) {
        report.code = ExitCode::performance;
        report.reason = fmt::format("a step-time ratio lies above --gate-ratio {}", gate_ratio);
    } else if (gated(GateResult::inconclusive)) {
        report.code = ExitCode::inconclusive;
        report.reason = open_gate_reason(report, gate_ratio);
    } else {
        report.code = ExitCode::pass;
        report.reason = pass_reason(report);
    }
}

}  // namespace cpstep
