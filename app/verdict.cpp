#include "app/verdict.hpp"

#include <algorithm>
#include <cmath>

namespace cpstep {

namespace {

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

bool counts_as_failed(Report const& report, Check const& check) {
    return !check.pass && (report.unresolved.empty() || !noise_may_explain(check));
}

bool fails_within_reach_of_noise(Report const& report) {
    return std::any_of(report.checks.begin(), report.checks.end(),
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

void judge(Report& report, double gate_ratio) {
    report.gates.clear();
    for (VariantTiming const& timing : report.timing.variants) {
        report.gates.push_back(judge_gate(timing.ratio, gate_ratio));
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
        report.reason = fmt::format(
            "the confidence interval of a step-time ratio includes --gate-ratio {}; raise --blocks",
            gate_ratio);
    } else {
        report.code = ExitCode::pass;
        report.reason = report.results.size() > 1 ? "all variants agree with the baseline"
                                                  : "one variant only: nothing was compared";
    }
}

}  // namespace cpstep
