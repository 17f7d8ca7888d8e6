// Arguments of cpstep-report.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "app/described_options.hpp"

namespace cpstep {

enum class ReportCommand : std::uint8_t { report, recover, diff, export_ };

struct ReportOptions {
    ReportCommand command = ReportCommand::report;
    bool help = false;
    std::vector<std::filesystem::path> inputs;  ///< DIR; of diff A and B
    bool json = false;
    std::filesystem::path csv, html;
    std::optional<std::uint32_t> step;
    std::string format;            ///< of an export: perfetto or hta
    std::filesystem::path output;  ///< of an export
    std::vector<std::string> variants;
    double tolerance = 1e-5, gate_ratio = 0;
};

/// argv[1...]. Error(usage) names the nearest option of one that is not known.
ReportOptions parse_report_options(std::vector<std::string> words);

/// At most 24 lines of 80 columns.
std::string report_help(ReportCommand command);

/// What parsing, --help, man page and completion share; the report itself comes first.
std::vector<CommandText> report_commands();
ExitTexts report_exits();

}  // namespace cpstep
