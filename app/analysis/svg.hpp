// Drawings for an HTML page: shapes take their colours from classes of the page's style.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cpstep {

/// Text as HTML and SVG want it.
std::string escaped(std::string_view text);

/// One inline drawing; lengths are pixels of its own box, which the page scales.
class Svg {
  public:
    Svg(double width, double height) : width_(width), height_(height) {}

    /// With `hint` a tooltip.
    void rect(double x, double y, double width, double height, std::string_view style,
              std::string_view hint = "");
    void line(double x1, double y1, double x2, double y2, std::string_view style);
    void dot(double x, double y, double radius, std::string_view style);
    /// `style` may hold "mid" or "end", which side of x the text is on.
    void text(double x, double y, std::string_view what, std::string_view style = "");
    /// Rectangles of one style as one shape, for many of them.
    struct Box {
        double x, y, width, height;
    };
    void boxes(std::vector<Box> const& boxes, std::string_view style);

    double width() const { return width_; }
    /// `label` is read to those who do not see it.
    std::string str(std::string_view label) const;

  private:
    double width_, height_;
    std::string body_;
};

/// A linear axis from `low` to `high` over [begin, end] pixels.
struct Axis {
    double low, high, begin, end;
    double at(double value) const {
        return high > low ? begin + (value - low) / (high - low) * (end - begin) : begin;
    }
};

/// Round positions between low and high, at most `most` and at least two.
std::vector<double> ticks(double low, double high, int most);

/// Gridlines with numbers times `scale` below the plot, from y `top` to `bottom`.
void draw_axis(Svg& svg, Axis const& axis, double top, double bottom, double scale);

}  // namespace cpstep
