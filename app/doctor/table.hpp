// What `cpstep doctor` prints.
#pragma once

#include <string>
#include <vector>

#include "app/doctor/rules.hpp"

namespace cpstep::doctor {

/// Rows, each with its advice on the next line where it warns or fails, the matrix of peers, the
/// rates of wires, and one line of verdict.
std::string text_of(std::vector<Row> const& rows, JobFacts const& job);

/// The same as JSON: format "cpstep-doctor", format_version 1.
std::string json_of(std::vector<Row> const& rows, JobFacts const& job);

/// An SVG page: bus GB/s of each wire and operation against message size, both axes logarithmic;
/// "" if no wire was measured.
std::string rates_svg(std::vector<WireFacts> const& wires);

/// "4 KiB", "256 MiB".
std::string size_text(std::int64_t bytes);

}  // namespace cpstep::doctor
