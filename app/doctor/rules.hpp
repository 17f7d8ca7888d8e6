// The checks of `cpstep doctor`: facts in, rows out. Nothing here asks a machine.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "app/doctor/facts.hpp"

namespace cpstep::doctor {

/// In rising severity. skip: nothing is known, and the value says why.
enum class Status : std::uint8_t { skip, pass, warn, fail };

struct Finding {
    Status status = Status::skip;
    std::string value;
    std::string fix = {};  ///< what to do about it; of a warning or failure
};

struct Row {
    std::string check;
    std::string wanted;
    Finding finding;
};

/// One check. A rank's own is made one of the job by over_ranks<>: the worst finding counts, and
/// the ranks that have it are named unless all do.
struct Rule {
    char const* check;
    char const* wanted;
    Finding (*judge)(JobFacts const&);
};

std::span<Rule const> gpu_rules();
std::span<Rule const> link_rules();
std::span<Rule const> host_rules();
std::span<Rule const> job_rules();
/// One row a wire.
std::vector<Row> wire_rows(std::vector<WireFacts> const& wires);

/// All of them, in the order of the table.
std::vector<Row> judge(JobFacts const& job);
Status worst_of(std::vector<Row> const& rows);

/// "PASS".
char const* name_of(Status status);

}  // namespace cpstep::doctor
