// Bus GB/s against message size as a page of its own: no script, no font, light and dark.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <map>

#include "app/doctor/table.hpp"

namespace cpstep::doctor {
namespace {

constexpr double left = 70, right = 600, top = 40, bottom = 380;
constexpr double width = 760, height = 440;

/// A logarithmic axis.
struct Axis {
    double low, high;   ///< values
    double begin, end;  ///< pixels
    double at(double value) const {
        return begin + (end - begin) * std::log(value / low) / std::log(high / low);
    }
};

struct Curve {
    std::string name;
    std::map<double, double> points;  // bytes: GB/s
};

std::vector<Curve> curves_of(std::vector<WireFacts> const& wires) {
    std::vector<Curve> curves;
    for (WireFacts const& wire : wires) {
        for (WireRate const& rate : wire.rates) {
            std::string const name = wire.name + " " + rate.op;
            auto curve = std::ranges::find(curves, name, &Curve::name);
            if (curve == curves.end()) {
                curve = curves.insert(curves.end(), Curve{.name = name, .points = {}});
            }
            if (rate.bus_gb_per_s > 0) {
                curve->points[static_cast<double>(rate.bytes)] = rate.bus_gb_per_s;
            }
        }
    }
    std::erase_if(curves, [](Curve const& curve) { return curve.points.empty(); });
    return curves;
}

/// Powers of ten around all values.
Axis rate_axis(std::vector<Curve> const& curves) {
    double low = curves.front().points.begin()->second;
    double high = low;
    for (Curve const& curve : curves) {
        for (auto const& [bytes, rate] : curve.points) {
            low = std::min(low, rate);
            high = std::max(high, rate);
        }
    }
    double const floor = std::pow(10, std::floor(std::log10(low)));
    double const ceiling = std::pow(10, std::ceil(std::log10(high)));
    return {
        .low = floor, .high = ceiling > floor ? ceiling : 10 * floor, .begin = bottom, .end = top};
}

/// Of curves, on a light and on a dark page.
constexpr std::array<std::pair<char const*, char const*>, 6> colors{{{"#0063b2", "#5cb0ff"},
                                                                     {"#c2410c", "#ff9d5c"},
                                                                     {"#15803d", "#5fd38a"},
                                                                     {"#7e22ce", "#cf9bff"},
                                                                     {"#0f766e", "#5eead4"},
                                                                     {"#be123c", "#ff8fa3"}}};

/// No CSS variables: not every viewer of SVG knows them.
std::string style() {
    std::string light =
        "text { fill: #222 } .page { fill: #fff } .grid { stroke: #ddd } .axis { stroke: #222 }\n";
    std::string dark =
        "text { fill: #e6e6e6 } .page { fill: #16181c } .grid { stroke: #3a3d44 } .axis { stroke: "
        "#e6e6e6 }\n";
    for (std::size_t i = 0; i < colors.size(); ++i) {
        auto const rule = [&](char const* color) {
            return fmt::format(".c{0} .curve {{ stroke: {1} }} .c{0} .dot {{ fill: {1} }}\n", i,
                               color);
        };
        light += rule(colors[i].first);
        dark += rule(colors[i].second);
    }
    return fmt::format(
        "<style>\nsvg {{ font: 13px sans-serif }} .curve {{ fill: none; stroke-width: 2 }}\n{}"
        "@media (prefers-color-scheme: dark) {{\n{}}}\n</style>\n"
        "<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n",
        light, dark);
}

/// low, low * factor, ... up to the end of the axis.
std::vector<double> ticks(Axis const& axis, double factor) {
    auto const last = static_cast<int>(std::log(axis.high / axis.low * 1.001) / std::log(factor));
    std::vector<double> values;
    for (int i = 0; i <= last; ++i) {
        values.push_back(axis.low * std::pow(factor, i));
    }
    return values;
}

void add_axes(std::string& out, Axis const& x, Axis const& y) {
    auto const to = std::back_inserter(out);
    for (double const bytes : ticks(x, 4)) {
        fmt::format_to(to,
                       "<line class=\"grid\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\"/>"
                       "<text x=\"{0:.1f}\" y=\"{3}\" text-anchor=\"middle\" font-size=\"11\">{4}"
                       "</text>\n",
                       x.at(bytes), top, bottom, bottom + 18,
                       size_text(static_cast<std::int64_t>(bytes)));
    }
    for (double const rate : ticks(y, 10)) {
        fmt::format_to(to,
                       "<line class=\"grid\" x1=\"{1}\" x2=\"{2}\" y1=\"{0:.1f}\" y2=\"{0:.1f}\"/>"
                       "<text x=\"{3}\" y=\"{4:.1f}\" text-anchor=\"end\">{5:g}</text>\n",
                       y.at(rate), left, right, left - 8, y.at(rate) + 4, rate);
    }
    fmt::format_to(to,
                   "<path class=\"axis\" fill=\"none\" d=\"M{0} {1}V{2}H{3}\"/>\n"
                   "<text x=\"{0}\" y=\"24\">bus GB/s</text>\n"
                   "<text x=\"{4}\" y=\"{5}\" text-anchor=\"middle\">message of a rank</text>\n",
                   left, top, bottom, right, (left + right) / 2, bottom + 42);
}

void add_curve(std::string& out, Curve const& curve, std::size_t index, Axis const& x,
               Axis const& y) {
    auto const to = std::back_inserter(out);
    std::size_t const color = index % colors.size();
    fmt::format_to(to, "<g class=\"c{}\"><polyline class=\"curve\" points=\"", color);
    for (auto const& [bytes, rate] : curve.points) {
        fmt::format_to(to, "{:.1f},{:.1f} ", x.at(bytes), y.at(rate));
    }
    out += "\"/>\n";
    for (auto const& [bytes, rate] : curve.points) {
        fmt::format_to(to,
                       "<circle class=\"dot\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\"><title>{}: {}, "
                       "{:.3g} GB/s</title></circle>\n",
                       x.at(bytes), y.at(rate), curve.name,
                       size_text(static_cast<std::int64_t>(bytes)), rate);
    }
    double const line = top + 12 + 20 * static_cast<double>(index);
    fmt::format_to(to,
                   "<path class=\"curve\" d=\"M{} {}h22\"/><text x=\"{}\" y=\"{}\">{}</text></g>\n",
                   right + 16, line, right + 44, line + 4, curve.name);
}

}  // namespace

std::string rates_svg(std::vector<WireFacts> const& wires) {
    std::vector<Curve> const curves = curves_of(wires);
    if (curves.empty()) {
        return "";
    }
    double largest = 4.0 * smallest_message;
    for (Curve const& curve : curves) {
        largest = std::max(largest, curve.points.rbegin()->first);
    }
    Axis const x{.low = double{smallest_message}, .high = largest, .begin = left, .end = right};
    Axis const y = rate_axis(curves);
    std::string out = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
        "height=\"{1}\">\n<title>cpstep doctor: wires</title>\n",
        width, height);
    out += style();
    add_axes(out, x, y);
    for (std::size_t i = 0; i < curves.size(); ++i) {
        add_curve(out, curves[i], i, x, y);
    }
    return out + "</svg>\n";
}

}  // namespace cpstep::doctor
