// Timelines for other programs: Chrome trace JSON.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "app/analysis/run_data.hpp"

namespace cpstep {

/// perfetto: one file with a process a rank, for ui.perfetto.dev and chrome://tracing.
/// hta: a folder with a file a rank, for HolisticTraceAnalysis: leaves as GPU kernels.
enum class ExportFormat : std::uint8_t { perfetto, hta };

/// Of all steps, or of one. Microseconds since the earliest rank's epoch, by each host's wall
/// clock: exact among ranks of a host, between hosts as good as their wall clocks agree. Nothing is
/// written above 5 million events: Error(usage) asks for a step.
void export_trace(RunData const& run, ExportFormat format, std::filesystem::path const& output,
                  std::optional<std::uint32_t> step);

}  // namespace cpstep
