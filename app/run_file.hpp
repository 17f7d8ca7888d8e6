// run.h5: everything rank 0 knows at the end of a run, for offline analysis.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "app/report.hpp"

namespace cpstep {

/// Where a rank ran and what it wrote.
struct RankRecord {
    std::string host;
    int local_rank = 0;
    std::int64_t events = 0;
    std::string device = {};  ///< Processor::device
};

struct RunFileContent {
    Report const& report;
    RunFacts const& facts;
    Options const& options;
    ParameterLayout const& layout;
    std::vector<RankRecord> ranks;
    std::string run_id;
    std::int64_t epoch_unix_ns = 0;
    std::string summary;  ///< text of summary.json
};

/// Written as run.h5.part and renamed when complete: /config /environment /topology /clock /steps
/// /events (virtual, over the rank files) /event_count /ledger /verdict /variants. Error(output).
void write_run_file(std::filesystem::path const& file, RunFileContent const& content);

/// Bytes run.h5 and the rank files take at most, from sizes known before the run.
std::int64_t estimate_run_bytes(Options const& options, std::int64_t parameters, int variants,
                                std::int64_t response_tokens, std::int64_t events);

}  // namespace cpstep
