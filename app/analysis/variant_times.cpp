#include "app/analysis/variant_times.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <string_view>

#include "cuda/error.hpp"

namespace cpstep {
namespace {

constexpr double seconds_per_ns = 1e-9;

/// Rows of the ranks' /steps that stand for a variant: timed ones, else all.
std::vector<std::size_t> rows_of(RunData const& run, std::string const& variant) {
    std::vector<std::size_t> timed;
    std::vector<std::size_t> all;
    RankData const& first = run.ranks.front();
    for (std::size_t i = 0; i < first.steps.size(); ++i) {
        if (variant_of(first, first.steps[i]) == variant) {
            all.push_back(i);
            if (first.steps[i].block >= 0) {
                timed.push_back(i);
            }
        }
    }
    return timed.empty() ? all : timed;
}

/// Over ranks, the median over `rows` of a part of the step.
template <class Part>
Spread spread_over_ranks(RunData const& run, std::vector<std::size_t> const& rows,
                         Part const& part) {
    std::vector<double> medians;
    for (RankData const& rank : run.ranks) {
        std::vector<double> values;
        for (std::size_t const row : rows) {
            double const value = part(rank.steps[row].sums);
            if (std::isfinite(value)) {
                values.push_back(value);
            }
        }
        if (!values.empty()) {
            medians.push_back(median(values));
        }
    }
    return spread_of(medians);
}

void find_slowest(VariantTimes& times, RunData const& run, std::vector<std::size_t> const& rows) {
    std::map<int, int> count;
    std::vector<double> imbalance;
    for (std::size_t const row : rows) {
        auto const compute = [&](RankData const& rank) { return rank.steps[row].sums.compute_ns; };
        auto const last = std::max_element(
            run.ranks.begin(), run.ranks.end(),
            [&](RankData const& a, RankData const& b) { return compute(a) < compute(b); });
        double sum = 0;
        for (RankData const& rank : run.ranks) {
            sum += static_cast<double>(compute(rank));
        }
        ++count[last->rank];
        if (sum > 0) {
            imbalance.push_back(static_cast<double>(compute(*last)) *
                                static_cast<double>(run.ranks.size()) / sum);
        }
    }
    auto const most =
        std::max_element(count.begin(), count.end(),
                         [](auto const& a, auto const& b) { return a.second < b.second; });
    times.slowest_rank = most->first;
    times.slowest_share = most->second / static_cast<double>(rows.size());
    times.imbalance = imbalance.empty() ? not_known : median(imbalance);
}

/// Bytes of a rank and step that the ops need to move at the least; 0 where the run did not say.
double wire_bytes_of(RunData const& run, std::string const& variant) {
    if (run.finished() && run.summary.contains("ranking")) {
        for (auto const& row : run.summary["ranking"]) {
            if (row.value("variant", "") == variant) {
                return row.value("wire_bytes_a_rank", 0.0);
            }
        }
    }
    return 0;
}

void add_parts(VariantTimes& times, RunData const& run, std::vector<std::size_t> const& rows) {
    auto const part = [&](std::int64_t StepSums::* member) {
        return spread_over_ranks(run, rows, [&](StepSums const& sums) {
            return static_cast<double>(sums.*member) * seconds_per_ns;
        });
    };
    times.compute = part(&StepSums::compute_ns);
    times.comm = part(&StepSums::comm_ns);
    times.exposed = part(&StepSums::exposed_ns);
    times.wait = part(&StepSums::wait_ns);
    times.idle = part(&StepSums::idle_ns);
    times.overlap = spread_over_ranks(run, rows, [](StepSums const& sums) {
        return 1 - static_cast<double>(sums.exposed_ns) / static_cast<double>(sums.comm_ns);
    });
    find_slowest(times, run, rows);
    double bytes = 0;
    for (RankData const& rank : run.ranks) {
        for (std::size_t const row : rows) {
            bytes += static_cast<double>(rank.steps[row].sums.bytes);
        }
    }
    times.bytes = bytes / static_cast<double>(run.ranks.size() * rows.size());
    double const wire = wire_bytes_of(run, times.name);
    if (wire > 0 && times.comm.mid > 0) {
        times.bus_gb_s = wire / times.comm.mid * 1e-9;
    }
}

std::uint64_t seed_of(RunData const& run) {
    std::string const text =
        run.finished() ? run.summary.value(nlohmann::json::json_pointer("/config/seed"), "") : "";
    std::uint64_t seed = 0;
    for (char const c : text) {
        if (c < '0' || c > '9') {
            return 0;
        }
        seed = seed * 10 + static_cast<std::uint64_t>(c - '0');
    }
    return seed;
}

}  // namespace

Spread spread_of(std::vector<double> const& values) {
    if (values.empty()) {
        return {};
    }
    return {quantile(values, 0), median(values), quantile(values, 1)};
}

std::vector<double> step_seconds(RunData const& run, std::string const& variant) {
    std::vector<double> seconds;
    for (TimedStep const& step : run.timed) {
        if (step.variant == variant) {
            seconds.push_back(step.seconds);
        }
    }
    if (!seconds.empty()) {
        return seconds;
    }
    for (std::size_t const row : rows_of(run, variant)) {
        std::int64_t slowest = 0;
        for (RankData const& rank : run.ranks) {
            slowest = std::max(slowest, rank.steps[row].dur_ns);
        }
        seconds.push_back(static_cast<double>(slowest) * seconds_per_ns);
    }
    return seconds;
}

std::vector<double> block_log_ratios(RunData const& run, std::string const& name,
                                     std::string const& base) {
    struct Visit {
        double sum = 0;
        int count = 0;
    };
    std::map<int, std::map<std::string, Visit>> blocks;
    int full = 0;
    for (TimedStep const& step : run.timed) {
        Visit& visit = blocks[step.block][step.variant];
        visit.sum += step.seconds;
        full = std::max(full, ++visit.count);
    }
    std::vector<double> ratios;
    for (auto& [block, visits] : blocks) {
        Visit const& a = visits[name];
        Visit const& b = visits[base];
        if (a.count == full && b.count == full && a.sum > 0 && b.sum > 0) {
            ratios.push_back(std::log(a.sum / b.sum));
        }
    }
    return ratios;
}

std::vector<VariantTimes> variant_times(RunData const& run) {
    std::vector<VariantTimes> all;
    for (std::string const& name : run.variants) {
        VariantTimes times;
        times.name = name;
        std::vector<double> const seconds = step_seconds(run, name);
        times.steps = std::ssize(seconds);
        times.median = median(seconds);
        times.low = quantile(seconds, 0);
        times.p5 = quantile(seconds, 0.05);
        times.p95 = quantile(seconds, 0.95);
        times.timed = std::any_of(run.timed.begin(), run.timed.end(),
                                  [&](TimedStep const& step) { return step.variant == name; });
        std::vector<double> const ratios = block_log_ratios(run, name, run.variants.front());
        if (!ratios.empty()) {
            times.ratio = bootstrap_ratio(ratios, seed_of(run));
        }
        std::vector<std::size_t> const rows = rows_of(run, name);
        bool const traced = std::all_of(rows.begin(), rows.end(), [&](std::size_t row) {
            return run.ranks.front().steps[row].detail !=
                   static_cast<std::uint32_t>(TraceDetail::off);
        });
        if (traced) {
            add_parts(times, run, rows);
        }
        all.push_back(times);
    }
    return all;
}

std::uint32_t typical_step(RunData const& run) {
    RankData const& first = run.ranks.front();
    require(!first.steps.empty(), ExitCode::input_data, "{}: holds no finished step",
            run.folder.string());
    std::string variant = run.variants.back();
    for (auto name = run.variants.rbegin(); name != run.variants.rend(); ++name) {
        auto const rows = rows_of(run, *name);
        if (first.steps[rows.front()].sums.bytes > 0) {
            variant = *name;
            break;
        }
    }
    std::vector<double> durations;
    std::vector<std::size_t> const rows = rows_of(run, variant);
    for (std::size_t const row : rows) {
        durations.push_back(static_cast<double>(first.steps[row].dur_ns));
    }
    double const middle = median(durations);
    auto const nearest = std::min_element(
        durations.begin(), durations.end(),
        [&](double a, double b) { return std::abs(a - middle) < std::abs(b - middle); });
    return first.steps[rows[static_cast<std::size_t>(nearest - durations.begin())]].step;
}

std::size_t row_of_step(RunData const& run, std::uint32_t step) {
    std::vector<StepRecord> const& steps = run.ranks.front().steps;
    auto const row = std::find_if(steps.begin(), steps.end(),
                                  [&](StepRecord const& each) { return each.step == step; });
    require(row != steps.end(), ExitCode::usage, "no step {}: this run has steps {} to {}", step,
            steps.empty() ? 0 : steps.front().step, steps.empty() ? 0 : steps.back().step);
    return static_cast<std::size_t>(row - steps.begin());
}

}  // namespace cpstep
