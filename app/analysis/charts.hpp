// The drawings of the HTML report. Each is one SVG, or "" where there is nothing to draw.
#pragma once

#include <string>

#include "app/analysis/analysis.hpp"
#include "app/analysis/parity_histogram.hpp"

namespace cpstep {

/// A dot a timed step, a bar from p5 to p95, a mark at the median.
std::string step_strips(Analysis const& analysis);
/// T(variant) / T(baseline) with its 95 % interval, the gate if one was set.
std::string ratio_chart(Analysis const& analysis);
/// Of a variant's step: compute, exposed communication, the rest; medians over ranks.
std::string parts_chart(Analysis const& analysis);
/// Of a variant's step, the passes of rank 0; medians over steps.
std::string phases_chart(RunData const& run);

/// A lane of compute and one of communication for each kept rank, each from its own step's start.
std::string timeline_chart(StepDetail const& step);
/// Compute time of a rank and step beside the median of its variant. At most 64 x 120 cells; a cell
/// shows the slowest of what it stands for.
std::string heat_map(RunData const& run);

/// Absolute differences to the baseline on a logarithmic axis.
std::string histogram_chart(std::vector<ErrorHistogram> const& histograms);

}  // namespace cpstep
