#include "app/analysis/svg.hpp"

#include <fmt/format.h>

#include <cmath>
#include <iterator>

namespace cpstep {
namespace {

/// A tenth of a pixel is enough.
std::string px(double value) {
    std::string text = fmt::format("{:.1f}", value);
    return text.ends_with(".0") ? text.substr(0, text.size() - 2) : text;
}

}  // namespace

std::string escaped(std::string_view text) {
    std::string out;
    for (char const c : text) {
        switch (c) {
            case '&':
                out += "&amp;";
                break;
            case '<':
                out += "&lt;";
                break;
            case '>':
                out += "&gt;";
                break;
            case '"':
                out += "&quot;";
                break;
            default:
                out += c;
        }
    }
    return out;
}

void Svg::rect(double x, double y, double width, double height, std::string_view style,
               std::string_view hint) {
    fmt::format_to(std::back_inserter(body_),
                   R"(<rect class="{}" x="{}" y="{}" width="{}" height="{}")", style, px(x), px(y),
                   px(width), px(height));
    body_ += hint.empty() ? "/>" : "><title>" + escaped(hint) + "</title></rect>";
}

void Svg::line(double x1, double y1, double x2, double y2, std::string_view style) {
    fmt::format_to(std::back_inserter(body_),
                   R"(<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>)", style, px(x1), px(y1),
                   px(x2), px(y2));
}

void Svg::dot(double x, double y, double radius, std::string_view style) {
    fmt::format_to(std::back_inserter(body_), R"(<circle class="{}" cx="{}" cy="{}" r="{}"/>)",
                   style, px(x), px(y), px(radius));
}

void Svg::text(double x, double y, std::string_view what, std::string_view style) {
    fmt::format_to(std::back_inserter(body_), R"(<text class="{}" x="{}" y="{}">{}</text>)", style,
                   px(x), px(y), escaped(what));
}

void Svg::boxes(std::vector<Box> const& boxes, std::string_view style) {
    if (boxes.empty()) {
        return;
    }
    fmt::format_to(std::back_inserter(body_), R"(<path class="{}" d=")", style);
    for (Box const& box : boxes) {
        fmt::format_to(std::back_inserter(body_), "M{} {}h{}v{}h-{}z", px(box.x), px(box.y),
                       px(box.width), px(box.height), px(box.width));
    }
    body_ += "\"/>";
}

std::string Svg::str(std::string_view label) const {
    return fmt::format(R"(<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>)",
                       px(width_), px(height_), escaped(label), body_);
}

std::vector<double> ticks(double low, double high, int most) {
    if (!(high > low)) {
        return {low};
    }
    double const rough = (high - low) / most;
    double const decade = std::pow(10.0, std::floor(std::log10(rough)));
    double step = decade * 10;
    for (double const factor : {1.0, 2.0, 5.0}) {
        if (factor * decade >= rough) {
            step = factor * decade;
            break;
        }
    }
    std::vector<double> at;
    auto const last = static_cast<std::int64_t>(std::floor(high / step + 1e-9));
    for (auto i = static_cast<std::int64_t>(std::ceil(low / step)); i <= last; ++i) {
        at.push_back(static_cast<double>(i) * step);
    }
    return at;
}

void draw_axis(Svg& svg, Axis const& axis, double top, double bottom, double scale) {
    for (double const tick : ticks(axis.low, axis.high, 8)) {
        double const x = axis.at(tick);
        svg.line(x, top, x, bottom, "grid");
        double const shown = std::abs(tick) < (axis.high - axis.low) * 1e-9 ? 0 : tick * scale;
        svg.text(x, bottom + 14, fmt::format("{:.6g}", shown), "num mid");
    }
}

}  // namespace cpstep
