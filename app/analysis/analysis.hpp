// A run and what follows from it: the content of every form of the report.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "app/analysis/run_data.hpp"
#include "app/analysis/step_detail.hpp"
#include "app/analysis/variant_times.hpp"

namespace cpstep {

struct Analysis {
    RunData run;
    std::vector<VariantTimes> variants;
    std::optional<StepDetail> step;  ///< none where no step was finished
    std::vector<std::string> notes;  ///< what limits the numbers, the run's own notes first
};

/// `step` chooses the one shown in detail; typical_step() without it.
Analysis analyse(RunData run, std::optional<std::uint32_t> step, int most_timelines);

/// "PASS (exit 0): reason", or that the run did not finish.
std::string verdict_line(RunData const& run);

/// For a terminal, at most 110 columns; `colour`: ANSI colours of verdict and problems.
std::string report_text(Analysis const& analysis, bool colour);

/// Valid JSON, NaN as null; format "cpstep-report", format_version 1.
std::string report_json_text(Analysis const& analysis);

/// A row a rank and step: the columns of /steps with the variant's name and the rank.
std::string report_csv(RunData const& run);

}  // namespace cpstep
