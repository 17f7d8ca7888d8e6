#include "app/timing.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace cpstep {

namespace {

/// Seconds of each pass of the last step on this rank; nested passes (attention) are left to their
/// parents.
std::map<std::string, double> phase_seconds(Trace const& trace) {
    std::map<std::string, double> phases;
    for (Event const& event : trace.last_step()) {
        std::string const& name = trace.names().at(event.name);
        if (event.kind == SpanKind::pass && !name.starts_with("layer.")) {
            phases[name] += static_cast<double>(event.dur_ns) * 1e-9;
        }
    }
    return phases;
}

/// Seconds that this rank spent in communication of the loss in the last step.
double loss_comm_seconds(Trace const& trace) {
    std::int64_t sum = 0;
    for (Event const& event : trace.last_step()) {
        if (event.kind == SpanKind::comm && trace.names().at(event.name).starts_with("loss.")) {
            sum += event.dur_ns;
        }
    }
    return static_cast<double>(sum) * 1e-9;
}

using PhaseTimes = std::map<std::string, std::map<std::string, std::vector<double>>>;

double mean_of_block(std::vector<StepTime> const& steps, std::string const& variant, int block) {
    double sum = 0;
    int count = 0;
    for (StepTime const& step : steps) {
        if (step.block == block && step.variant == variant) {
            sum += step.seconds;
            ++count;
        }
    }
    return sum / count;
}

}  // namespace

int timing_steps(Options const& options, int variants) {
    return options.blocks == 0
               ? 0
               : variants * (options.warmup_steps + 2 * options.blocks * options.block_steps);
}

StepTime timed_step(World& world, Trace& trace, TrainStep& step, Variant& variant, int block,
                    StepMetrics* metrics) {
    step.reset();
    variant.grid().clear_ledger();
    world.barrier();
    TraceDetail const detail =
        block < 0 ? TraceDetail::layers : variant.plan().trace_detail.value_or(step.timed_detail());
    trace.begin_step(variant.name(), detail, block);
    std::int64_t const begin = now_ns();
    StepMetrics const result = step.run(variant);
    std::int64_t const end = now_ns();
    trace.end_step();
    StepTime time{.variant = variant.name(), .block = block, .loss = result.loss};
    time.seconds = world.max(static_cast<double>(end - begin) * 1e-9);
    if (detail != TraceDetail::off) {
        time.exposed_comm =
            world.max(static_cast<double>(exposed_comm_ns(trace.last_step())) * 1e-9);
        time.loss_comm = world.max(loss_comm_seconds(trace));
    }
    if (metrics != nullptr) {
        *metrics = result;
    }
    return time;
}

TimingResult run_timing(World& world, Trace& trace, Options const& options, TrainStep& step,
                        std::vector<std::unique_ptr<Variant>>& variants,
                        std::function<void(StepTime const&)> const& progress) {
    TimingResult result;
    PhaseTimes phases;
    auto const visit = [&](Variant& variant, int block, int count) {
        for (int i = 0; i < count; ++i) {
            result.steps.push_back(timed_step(world, trace, step, variant, block));
            if (block >= 0) {
                for (auto const& [name, seconds] : phase_seconds(trace)) {
                    phases[variant.name()][name].push_back(seconds);
                }
            }
            progress(result.steps.back());
        }
    };
    for (auto& variant : variants) {
        visit(*variant, -1, options.warmup_steps);
    }
    for (int block = 0; block < options.blocks; ++block) {
        for (auto& variant : variants) {
            visit(*variant, block, options.block_steps);
        }
        for (auto variant = variants.rbegin(); variant != variants.rend(); ++variant) {
            visit(**variant, block, options.block_steps);
        }
    }
    std::vector<std::string> names;
    names.reserve(variants.size());
    std::map<std::string, double> first_loss;
    for (auto const& variant : variants) {
        names.push_back(variant->name());
    }
    for (StepTime const& time : result.steps) {
        auto const [first, fresh] = first_loss.emplace(time.variant, time.loss);
        result.reproducible = result.reproducible && first->second == time.loss;
    }
    result.seed = static_cast<std::uint64_t>(options.seed);
    result.variants = summarize_timing(result.steps, names, result.seed);
    for (VariantTiming& timing : result.variants) {
        for (auto const& [name, seconds] : phases[timing.name]) {
            timing.phases[name] = median(seconds);
        }
    }
    return result;
}

RatioEstimate paired_ratio(std::vector<StepTime> const& steps, std::string const& name,
                           std::string const& reference, std::uint64_t seed) {
    int blocks = 0;
    for (StepTime const& step : steps) {
        blocks = std::max(blocks, step.block + 1);
    }
    std::vector<double> log_ratios;
    log_ratios.reserve(static_cast<std::size_t>(blocks));
    for (int block = 0; block < blocks; ++block) {
        log_ratios.push_back(
            std::log(mean_of_block(steps, name, block) / mean_of_block(steps, reference, block)));
    }
    return bootstrap_ratio(log_ratios, seed);
}

std::vector<StepTime> without_blocks(std::vector<StepTime> const& steps,
                                     std::set<int> const& left_out) {
    std::vector<StepTime> kept;
    for (StepTime step : steps) {
        if (!left_out.contains(step.block)) {
            step.block -=
                static_cast<int>(std::distance(left_out.begin(), left_out.lower_bound(step.block)));
            kept.push_back(step);
        }
    }
    return kept;
}

std::vector<VariantTiming> summarize_timing(std::vector<StepTime> const& steps,
                                            std::vector<std::string> const& names,
                                            std::uint64_t seed) {
    std::vector<VariantTiming> timings;
    for (std::string const& name : names) {
        VariantTiming timing;
        timing.name = name;
        std::vector<double> seconds;
        std::vector<double> exposed;
        std::vector<double> loss_comm;
        for (StepTime const& step : steps) {
            if (step.block >= 0 && step.variant == name) {
                seconds.push_back(step.seconds);
                exposed.push_back(step.exposed_comm);
                loss_comm.push_back(step.loss_comm);
            }
        }
        require(!seconds.empty(), ExitCode::internal, "no timed step of {}", name);
        timing.steps = static_cast<std::int64_t>(seconds.size());
        timing.median = median(seconds);
        timing.mad = median_abs_deviation(seconds);
        timing.low = quantile(seconds, 0.0);
        timing.high = quantile(seconds, 1.0);
        // Steps of one run are all traced or none: without a trace (NaN) nothing is known.
        bool const traced = !std::isnan(exposed.front());
        timing.exposed_comm = traced ? median(exposed) : exposed.front();
        timing.loss_comm = traced ? median(loss_comm) : loss_comm.front();
        timing.ratio = paired_ratio(steps, name, names.front(), seed);
        timings.push_back(timing);
    }
    return timings;
}

}  // namespace cpstep
