// How equal the variants are.
#include <algorithm>
#include <cmath>

#include "app/analysis/charts.hpp"
#include "app/analysis/svg.hpp"
#include "cuda/error.hpp"

namespace cpstep {
namespace {

constexpr double width = 1000;
constexpr double left = 190;
constexpr double right = 30;
constexpr std::size_t most_rows = 24;

std::string bin_text(int bin) {
    return bin == 0 ? "equal"
                    : fmt::format("{:.0e} to {:.0e}", std::pow(10, bin / 2.0 - 10.5),
                                  std::pow(10, bin / 2.0 - 10));
}

}  // namespace

std::string histogram_chart(std::vector<ErrorHistogram> const& histograms) {
    if (histograms.empty()) {
        return "";
    }
    std::size_t const rows = std::min(histograms.size(), most_rows);
    constexpr double row = 58;
    double const bottom = 4 + row * static_cast<double>(rows);
    double const bar = (width - left - right) / ErrorHistogram::bins;
    Svg svg(width, bottom + 36);
    for (int bin = 1; bin < ErrorHistogram::bins; bin += 2) {
        double const x = left + bar * bin;
        svg.line(x, 4, x, bottom, "grid");
        if (bin == 1) {
            continue;  // its number would meet the word "equal"
        }
        svg.text(x, bottom + 14, fmt::format("1e{}", (bin - 21) / 2), "num mid");
    }
    svg.text(left + bar / 2, bottom + 14, "equal", "num mid");
    svg.text(width - right, bottom + 32, "absolute difference to the baseline, nat", "num end");
    for (std::size_t i = 0; i < rows; ++i) {
        ErrorHistogram const& histogram = histograms[i];
        std::int64_t const most = std::max<std::int64_t>(
            *std::max_element(histogram.count.begin(), histogram.count.end()), 1);
        double const base = 4 + row * static_cast<double>(i + 1);
        svg.text(left - 10, base - 28, histogram.variant, "end");
        svg.text(left - 10, base - 12, histogram.array, "num end");
        for (int bin = 0; bin < ErrorHistogram::bins; ++bin) {
            std::int64_t const count = histogram.count.at(static_cast<std::size_t>(bin));
            if (count > 0) {
                double const height = std::max(
                    (row - 10) * static_cast<double>(count) / static_cast<double>(most), 1.0);
                svg.rect(left + bar * bin + 1, base - height, bar - 2, height, "comm",
                         fmt::format("{} {}: {} values {}", histogram.variant, histogram.array,
                                     count, bin_text(bin)));
            }
        }
        if (histogram.nonfinite > 0) {
            svg.text(width - right, base - 30, fmt::format("{} NaN or Inf", histogram.nonfinite),
                     "bad end");
        }
        svg.line(left, base, width - right, base, "axis");
    }
    return svg.str("Differences to the baseline");
}

}  // namespace cpstep
