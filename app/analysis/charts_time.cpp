// Times of variants: strips, ratios, what a step is made of.
#include <algorithm>
#include <cmath>
#include <map>

#include "app/analysis/charts.hpp"
#include "app/analysis/svg.hpp"
#include "cuda/error.hpp"

namespace cpstep {
namespace {

using nlohmann::json;

constexpr double width = 1000;
constexpr double left = 190;
constexpr double right = 30;
constexpr std::size_t most_dots = 300;
constexpr std::size_t label_letters = 26;

std::string label(std::string const& name) {
    return name.size() <= label_letters ? name : name.substr(0, label_letters - 1) + "…";
}

void row_label(Svg& svg, std::string const& name, double middle) {
    svg.text(left - 10, middle + 4, label(name), "end");
}

std::string ms(double seconds) {
    return fmt::format("{:.3f} ms", seconds * 1e3);
}

/// A part of a bar, and its style.
struct Part {
    std::string name;
    double seconds;
    std::string style;
};

struct Bar {
    std::string name;
    std::vector<Part> parts;
};

/// Bars of stacked parts, all on one axis from 0.
std::string stacked(std::vector<Bar> const& bars, std::string const& what) {
    double longest = 0;
    for (Bar const& bar : bars) {
        double sum = 0;
        for (Part const& part : bar.parts) {
            sum += part.seconds;
        }
        longest = std::max(longest, sum);
    }
    if (!(longest > 0)) {
        return "";
    }
    constexpr double row = 30;
    double const bottom = 6 + row * static_cast<double>(bars.size());
    Svg svg(width, bottom + 34);
    Axis const axis{0, longest * 1.02, left, width - right};
    draw_axis(svg, axis, 4, bottom, 1e3);
    svg.text(width - right, bottom + 30, "ms", "num end");
    double y = 10;
    for (Bar const& bar : bars) {
        row_label(svg, bar.name, y + 10);
        double at = 0;
        for (Part const& part : bar.parts) {
            double const x = axis.at(at);
            at += part.seconds;
            double const wide = axis.at(at) - x;
            svg.rect(x, y, std::max(wide - 1, 0.3), 20, part.style,
                     fmt::format("{}: {}, {}", bar.name, part.name, ms(part.seconds)));
            if (wide > 8 * static_cast<double>(part.name.size())) {
                svg.text(x + 5, y + 14, part.name, "inside");
            }
        }
        y += row;
    }
    return svg.str(what);
}

}  // namespace

std::string step_strips(Analysis const& analysis) {
    RunData const& run = analysis.run;
    if (analysis.variants.empty()) {
        return "";
    }
    std::vector<std::vector<double>> all;
    double low = INFINITY;
    double high = 0;
    for (VariantTimes const& times : analysis.variants) {
        all.push_back(step_seconds(run, times.name));
        low = std::min(low, *std::min_element(all.back().begin(), all.back().end()));
        high = std::max(high, *std::max_element(all.back().begin(), all.back().end()));
    }
    constexpr double row = 40;
    double const bottom = 6 + row * static_cast<double>(all.size());
    double const margin = std::max((high - low) * 0.04, high * 1e-3);
    Axis const axis{low - margin, high + margin, left, width - right};
    Svg svg(width, bottom + 34);
    draw_axis(svg, axis, 4, bottom, 1e3);
    svg.text(width - right, bottom + 30, "ms", "num end");
    for (std::size_t i = 0; i < all.size(); ++i) {
        VariantTimes const& times = analysis.variants[i];
        double const middle = 6 + row * (static_cast<double>(i) + 0.5);
        row_label(svg, times.name, middle);
        svg.rect(axis.at(times.p5), middle - 9,
                 std::max(axis.at(times.p95) - axis.at(times.p5), 1.0), 18, "span",
                 fmt::format("{}: p5 {}, median {}, p95 {} of {} steps", times.name, ms(times.p5),
                             ms(times.median), ms(times.p95), times.steps));
        std::size_t const every = (all[i].size() + most_dots - 1) / most_dots;
        for (std::size_t k = 0; k < all[i].size(); k += every) {
            double const shift = static_cast<double>(k * 7 % 5) * 4 - 8;
            svg.dot(axis.at(all[i][k]), middle + shift, 2.4, "sample");
        }
        svg.line(axis.at(times.median), middle - 14, axis.at(times.median), middle + 14, "median");
    }
    return svg.str("Step times of each variant");
}

std::string ratio_chart(Analysis const& analysis) {
    std::vector<VariantTimes const*> rows;
    double low = 1;
    double high = 1;
    for (std::size_t i = 1; i < analysis.variants.size(); ++i) {
        if (analysis.variants[i].ratio.blocks > 0) {
            rows.push_back(&analysis.variants[i]);
            low = std::min(low, rows.back()->ratio.low);
            high = std::max(high, rows.back()->ratio.high);
        }
    }
    if (rows.empty()) {
        return "";
    }
    json const gate =
        analysis.run.finished() ? analysis.run.summary.value("gate_ratio", json()) : json();
    if (gate.is_number()) {
        high = std::max(high, gate.get<double>());
    }
    constexpr double row = 30;
    double const bottom = 20 + row * static_cast<double>(rows.size());
    double const margin = std::max((high - low) * 0.08, 0.002);
    Axis const axis{low - margin, high + margin, left, width - right};
    Svg svg(width, bottom + 20);
    draw_axis(svg, axis, 18, bottom, 1);
    svg.line(axis.at(1), 14, axis.at(1), bottom, "one");
    svg.text(axis.at(1), 11, label(analysis.variants.front().name), "num mid");
    if (gate.is_number()) {
        svg.line(axis.at(gate.get<double>()), 14, axis.at(gate.get<double>()), bottom, "gate");
        svg.text(axis.at(gate.get<double>()), 11, "gate", "num mid");
    }
    double middle = 20 + row / 2;
    for (VariantTimes const* times : rows) {
        RatioEstimate const& r = times->ratio;
        row_label(svg, times->name, middle);
        svg.rect(axis.at(r.low), middle - 4, std::max(axis.at(r.high) - axis.at(r.low), 1.0), 8,
                 "interval",
                 fmt::format("{}: {:.4f} [{:.4f}, {:.4f}], {} blocks", times->name, r.ratio, r.low,
                             r.high, r.blocks));
        svg.dot(axis.at(r.ratio), middle, 5, "estimate");
        middle += row;
    }
    return svg.str("Step time over the baseline's");
}

std::string parts_chart(Analysis const& analysis) {
    std::vector<Bar> bars;
    for (VariantTimes const& times : analysis.variants) {
        if (std::isfinite(times.compute.mid)) {
            double const rest = times.median - times.compute.mid - times.exposed.mid;
            bars.push_back({times.name,
                            {{"compute", times.compute.mid, "compute"},
                             {"exposed communication", times.exposed.mid, "exposed"},
                             {"rest", std::max(rest, 0.0), "rest"}}});
        }
    }
    return stacked(bars, "Compute, exposed communication and the rest of a step");
}

std::string phases_chart(RunData const& run) {
    std::vector<Bar> bars;
    if (!run.finished()) {
        return "";
    }
    // The passes in the order of a step; others after them.
    std::vector<std::string> order{"ref_forward", "old_forward", "advantages", "train_forward",
                                   "loss",        "backward",    "optimizer"};
    for (auto const& variant : run.summary.value("variants", json::array())) {
        json const phases =
            variant.value("timing", json::object()).value("rank0_phases_s", json::object());
        for (auto const& [name, seconds] : phases.items()) {
            if (std::find(order.begin(), order.end(), name) == order.end()) {
                order.push_back(name);
            }
        }
        Bar bar{variant.value("name", "?"), {}};
        for (std::size_t i = 0; i < order.size(); ++i) {
            if (phases.contains(order[i]) && phases[order[i]].is_number()) {
                bar.parts.push_back(
                    {order[i], phases[order[i]].get<double>(), fmt::format("phase{}", i % 7)});
            }
        }
        if (!bar.parts.empty()) {
            bars.push_back(std::move(bar));
        }
    }
    return stacked(bars, "Passes of a step");
}

}  // namespace cpstep
