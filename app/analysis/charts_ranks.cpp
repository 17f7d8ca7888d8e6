// What each rank does: the timeline of a step, the heat map of all steps.
#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "app/analysis/charts.hpp"
#include "app/analysis/svg.hpp"
#include "cuda/error.hpp"

namespace cpstep {
namespace {

constexpr double width = 1000;
constexpr double left = 70;
constexpr double right = 20;
constexpr std::size_t most_rank_bins = 64;
constexpr std::size_t most_step_bins = 120;

/// Intervals as boxes; those closer than half a pixel are drawn as one.
std::vector<Svg::Box> boxes_of(std::vector<Interval> const& intervals, Axis const& axis, double y,
                               double height) {
    std::vector<Svg::Box> boxes;
    for (Interval const& interval : intervals) {
        double const x = axis.at(static_cast<double>(interval.begin));
        double const end = std::max(axis.at(static_cast<double>(interval.end)), x + 0.3);
        if (!boxes.empty() && x - (boxes.back().x + boxes.back().width) < 0.5) {
            boxes.back().width = std::max(end - boxes.back().x, boxes.back().width);
        } else {
            boxes.push_back({x, y, end - x, height});
        }
    }
    return boxes;
}

/// Names above the lanes: the passes of the first rank where there is room for them.
void name_passes(Svg& svg, RankTimeline const& rank, Axis const& axis) {
    double free_from = left;
    for (Event const& event : rank.events) {
        std::string const& name = rank.names[event.name];
        if (event.kind != SpanKind::pass || name.starts_with("layer.")) {
            continue;
        }
        double const x = axis.at(static_cast<double>(event.t0_ns));
        double const end = axis.at(static_cast<double>(event.t0_ns + event.dur_ns));
        if (x >= free_from && end - x > 7.2 * static_cast<double>(name.size())) {
            svg.line(x, 4, x, 18, "grid");
            svg.text(x + 3, 14, name, "num");
            free_from = end;
        }
    }
}

/// The cell of the heat map at a row and column.
struct Cells {
    std::size_t rows, columns;
    std::vector<double> value;  // NaN: nothing there
    double& at(std::size_t row, std::size_t column) { return value[row * columns + column]; }
};

/// Rows of /steps that were timed, or all where none was: the first steps of a run are many times
/// slower, and no shade would be left for the others.
std::vector<std::size_t> compared_steps(RunData const& run) {
    std::vector<StepRecord> const& steps = run.ranks.front().steps;
    std::vector<std::size_t> all;
    std::vector<std::size_t> timed;
    for (std::size_t i = 0; i < steps.size(); ++i) {
        all.push_back(i);
        if (steps[i].block >= 0) {
            timed.push_back(i);
        }
    }
    return timed.empty() ? all : timed;
}

/// Compute of each rank and step beside its variant's median, binned by the largest.
Cells binned(RunData const& run, std::vector<std::size_t> const& shown) {
    std::vector<StepRecord> const& steps = run.ranks.front().steps;
    std::map<std::uint32_t, std::vector<double>> of_variant;
    for (RankData const& rank : run.ranks) {
        for (std::size_t const i : shown) {
            of_variant[steps[i].variant].push_back(
                static_cast<double>(rank.steps[i].sums.compute_ns));
        }
    }
    std::map<std::uint32_t, double> middle;
    for (auto const& [variant, values] : of_variant) {
        middle[variant] = median(values);
    }
    Cells cells{
        std::min(run.ranks.size(), most_rank_bins), std::min(shown.size(), most_step_bins), {}};
    cells.value.assign(cells.rows * cells.columns, not_known);
    for (std::size_t r = 0; r < run.ranks.size(); ++r) {
        for (std::size_t i = 0; i < shown.size(); ++i) {
            StepRecord const& step = run.ranks[r].steps[shown[i]];
            double const base = middle[steps[shown[i]].variant];
            if (base > 0) {
                double const excess = static_cast<double>(step.sums.compute_ns) / base - 1;
                double& cell =
                    cells.at(r * cells.rows / run.ranks.size(), i * cells.columns / shown.size());
                cell = std::isnan(cell) ? excess : std::max(cell, excess);
            }
        }
    }
    return cells;
}

}  // namespace

std::string timeline_chart(StepDetail const& step) {
    if (step.timelines.empty() || !(step.seconds > 0)) {
        return "";
    }
    double const lane = step.timelines.size() <= 8 ? 12 : 6;
    double const row = 2 * lane + 5;
    double const bottom = 22 + row * static_cast<double>(step.timelines.size());
    Svg svg(width, bottom + 34);
    Axis const axis{0, step.seconds * 1e9, left, width - right};
    draw_axis(svg, axis, 20, bottom, 1e-6);
    svg.text(width - right, bottom + 30, "ms from the start of the rank's own step", "num end");
    name_passes(svg, step.timelines.front(), axis);
    double y = 24;
    for (RankTimeline const& rank : step.timelines) {
        svg.text(left - 8, y + lane + 4, fmt::format("rank {}", rank.rank), "num end");
        svg.boxes(boxes_of(intervals_of(rank.events, SpanKind::pass), axis, y, lane), "pass");
        svg.boxes(boxes_of(intervals_of(rank.events, SpanKind::compute), axis, y, lane), "compute");
        svg.boxes(boxes_of(intervals_of(rank.events, SpanKind::wait), axis, y, lane), "exposed");
        svg.boxes(boxes_of(intervals_of(rank.events, SpanKind::comm), axis, y + lane, lane),
                  "comm");
        y += row;
    }
    return svg.str(fmt::format("Timeline of step {}", step.step));
}

std::string heat_map(RunData const& run) {
    if (run.variants.empty()) {
        return "";
    }
    std::vector<std::size_t> const compared = compared_steps(run);
    Cells cells = binned(run, compared);
    double least = INFINITY;
    double most = -INFINITY;
    for (double const value : cells.value) {
        if (!std::isnan(value)) {
            least = std::min(least, value);
            most = std::max(most, value);
        }
    }
    if (!(most >= least)) {
        return "";
    }
    constexpr std::size_t levels = 8;
    double const high = std::max(most, 0.01);
    double const low = std::min(least, 0.0);
    double const cell_width = (width - left - right) / static_cast<double>(cells.columns);
    double const cell_height = std::clamp(320.0 / static_cast<double>(cells.rows), 5.0, 26.0);
    std::array<std::vector<Svg::Box>, levels> shades;
    for (std::size_t r = 0; r < cells.rows; ++r) {
        for (std::size_t c = 0; c < cells.columns; ++c) {
            double const value = cells.at(r, c);
            if (!std::isnan(value)) {
                auto const level = static_cast<std::size_t>((value - low) / (high - low) * levels);
                shades.at(std::min(level, levels - 1))
                    .push_back({left + static_cast<double>(c) * cell_width,
                                6 + static_cast<double>(r) * cell_height, cell_width, cell_height});
            }
        }
    }
    double const bottom = 6 + cell_height * static_cast<double>(cells.rows);
    Svg svg(width, bottom + 62);
    for (std::size_t i = 0; i < levels; ++i) {
        svg.boxes(shades[i], fmt::format("heat{}", i));
        double const x = left + 300 + 50 * static_cast<double>(i);
        svg.rect(x, bottom + 28, 50, 12, fmt::format("heat{}", i));
        if (i % 2 == 0) {
            double const value = low + (high - low) * static_cast<double>(i) / levels;
            svg.text(x, bottom + 54, fmt::format("{:+.1f} %", value * 100), "num mid");
        }
    }
    svg.text(left + 292, bottom + 38, "compute against the median", "num end");
    std::size_t const shown = std::min<std::size_t>(cells.rows, 16);
    for (std::size_t i = 0; i < shown; ++i) {
        std::size_t const r = i * cells.rows / shown;
        int const rank = run.ranks[(r * run.ranks.size() + cells.rows - 1) / cells.rows].rank;
        svg.text(left - 8, 6 + (static_cast<double>(r) + 0.5) * cell_height + 4,
                 fmt::format("rank {}", rank), "num end");
    }
    std::vector<StepRecord> const& steps = run.ranks.front().steps;
    svg.text(left, bottom + 16, fmt::format("step {}", steps[compared.front()].step), "num");
    svg.text(width - right, bottom + 16, fmt::format("step {}", steps[compared.back()].step),
             "num end");
    return svg.str("Compute time of each rank and step");
}

}  // namespace cpstep
