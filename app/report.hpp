// The verdict for people (table on stdout) and for scripts (summary.json): the same content.
#pragma once

#include <string>

#include "app/options.hpp"
#include "app/verdict.hpp"

namespace cpstep {

/// Facts of the run that stand above the results.
struct RunFacts {
    std::string version, backend, mpi, host, start_utc;
    std::string wires;  ///< Wires::description()
    std::string cuda;   ///< cuda_versions()
    std::int64_t parameters = 0;
    std::int64_t samples = 0, tokens = 0, response_tokens = 0;
    int world = 1;
};

/// For a terminal: rows of numbers take at most 110 columns.
std::string report_table(Report const& report, RunFacts const& facts, double gate_ratio);

/// Always valid JSON; NaN and Inf as null. format "cpstep-summary", format_version 1.
std::string report_json(Report const& report, RunFacts const& facts, Options const& options);

}  // namespace cpstep
