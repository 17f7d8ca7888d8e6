#include "app/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>

#include "app/estimate.hpp"
#include "app/json_number.hpp"
#include "app/ranking.hpp"
#include "app/run_clock.hpp"

namespace cpstep {

namespace {

using nlohmann::json;

char const* gate_name(GateResult gate) {
    switch (gate) {
        case GateResult::pass:
            return "pass";
        case GateResult::fail:
            return "FAIL";
        case GateResult::inconclusive:
            return "inconclusive";
        case GateResult::off:
            break;
    }
    return "off";
}

/// Tensor checks of one kind are shown as one row, the worst; a failed one shows before a passed
/// one.
std::string row_group(std::string const& name) {
    if (name.starts_with("gradient ") || name.starts_with("updated ")) {
        return name.substr(0, name.find(' '));
    }
    return name;
}

struct CheckRow {
    Check worst;
    int count = 0;
    int passed = 0;
    int failed = 0;  ///< counts_as_failed(); what neither passed nor failed is left open

    char const* status() const { return failed > 0 ? "FAIL" : passed == count ? "ok" : "open"; }
};

std::vector<CheckRow> check_rows(Report const& report, std::string const& variant) {
    std::vector<CheckRow> rows;
    for (Check const& check : report.checks) {
        if (check.variant != variant) {
            continue;
        }
        auto row = std::find_if(rows.begin(), rows.end(), [&](CheckRow const& r) {
            return row_group(r.worst.name) == row_group(check.name);
        });
        if (row == rows.end()) {
            row = rows.insert(rows.end(), {check, 0, 0, 0});
        } else if ((row->worst.pass && !check.pass) ||
                   (row->worst.pass == check.pass && !(check.measured <= row->worst.measured))) {
            row->worst = check;
        }
        row->count += 1;
        row->passed += check.pass ? 1 : 0;
        row->failed += counts_as_failed(report, check) ? 1 : 0;
    }
    return rows;
}

/// Above this many variants one that passes takes a line, not a table.
constexpr std::size_t full_tables = 3;

void parity_line(std::string& out, Report const& report, VariantResult const& result) {
    Check const* closest = nullptr;
    double share = -1;
    int count = 0;
    for (Check const& check : report.checks) {
        if (check.variant == result.name) {
            ++count;
            if (check.bound > 0 && check.measured / check.bound > share) {
                share = check.measured / check.bound;
                closest = &check;
            }
        }
    }
    fmt::format_to(std::back_inserter(out), "{}: {} checks pass", result.name, count);
    if (closest != nullptr) {
        fmt::format_to(std::back_inserter(out), "; closest to its bound, at {:.2g} of it: {}",
                       share, closest->name);
    }
    out += "\n";
}

void parity_table(std::string& out, Report const& report, VariantResult const& result) {
    bool const baseline = &result == &report.results.front();
    bool const passes =
        std::all_of(report.checks.begin(), report.checks.end(),
                    [&](Check const& check) { return check.pass || check.variant != result.name; });
    if (passes && report.results.size() > full_tables) {
        parity_line(out, report, result);
        return;
    }
    fmt::format_to(std::back_inserter(out), "\n{}\n",
                   baseline ? result.name + " alone"
                            : result.name + " against " + report.results.front().name);
    fmt::format_to(std::back_inserter(out), "  {:<17} {:>10} {:>10}  {:<19} {:<4} {}\n", "check",
                   "measured", "bound", "unit", "", "worst at");
    for (CheckRow const& row : check_rows(report, result.name)) {
        std::string const group = row_group(row.worst.name);
        bool const tensor = group != row.worst.name;
        std::string const where =
            tensor ? row.worst.name.substr(group.size() + 1) : row.worst.where;
        fmt::format_to(std::back_inserter(out), "  {:<17} {:>10.2e} {:>10.2e}  {:<19} {:<4} {}\n",
                       row.count > 1 ? fmt::format("{} ({})", group, row.count) : group,
                       row.worst.measured, row.worst.bound, row.worst.unit, row.status(), where);
    }
}

/// Columns that the longest variant name takes, at least `least`.
std::size_t name_width(Report const& report, std::size_t least) {
    for (VariantPlan const& plan : report.plans) {
        least = std::max(least, plan.name.size());
    }
    return least;
}

void timing_table(std::string& out, Report const& report) {
    if (report.timing.variants.empty()) {
        out += "\ntiming: off (--blocks 0)\n";
        return;
    }
    std::size_t const width = name_width(report, 8);
    fmt::format_to(std::back_inserter(out),
                   "\n{:<{}} {:>5} {:>10} {:>8} {:>10} {:>10} {:>12}  {:<22} {}\n", "timing", width,
                   "steps", "median ms", "MAD", "min", "max", "exposed comm", "ratio (95 % CI)",
                   "gate");
    for (std::size_t i = 0; i < report.timing.variants.size(); ++i) {
        VariantTiming const& t = report.timing.variants[i];
        std::string const ratio = i == 0 ? "1 (baseline)"
                                         : fmt::format("{:.3f} ({:.3f} .. {:.3f})", t.ratio.ratio,
                                                       t.ratio.low, t.ratio.high);
        std::string const exposed = std::isnan(t.exposed_comm)  // --trace-detail off
                                        ? "-"
                                        : fmt::format("{:.2f}", t.exposed_comm * 1e3);
        fmt::format_to(std::back_inserter(out),
                       "{:<{}} {:>5} {:>10.2f} {:>8.2f} {:>10.2f} {:>10.2f} {:>12}  {:<22} {}\n",
                       t.name, width, t.steps, t.median * 1e3, t.mad * 1e3, t.low * 1e3,
                       t.high * 1e3, exposed, ratio, gate_name(report.gates[i]));
    }
}

constexpr char const* ledger_row = "{:<{}} {:<24} {:<14} {:>6} {:>11} {:>6} {:>12}\n";

void ledger_table(std::string& out, VariantResult const& result, std::size_t width) {
    for (auto const& [label, entry] : result.ledger) {
        auto const budget = result.budget.find(label);
        bool const known = budget != result.budget.end();
        fmt::format_to(std::back_inserter(out), ledger_row, result.name, width, label, entry.op,
                       entry.calls, entry.bytes,
                       known ? std::to_string(budget->second.calls) : "none",
                       known ? std::to_string(budget->second.bytes) : "none");
    }
}

/// Up to this many ranks have a row of their own; of more, only the one with the largest peak.
constexpr std::size_t memory_rows = 8;

void memory_table(std::string& out, Report const& report) {
    if (report.memory.empty()) {
        return;
    }
    auto const to = std::back_inserter(out);
    auto const row = [&](std::size_t rank) {
        MemoryUse const& use = report.memory[rank];
        double const share =
            static_cast<double>(use.peak_bytes) / static_cast<double>(use.planned_bytes);
        fmt::format_to(to, "rank {:<6} {:>11} {:>11} {:>12}\n", rank,
                       human_bytes(use.planned_bytes), human_bytes(use.peak_bytes),
                       fmt::format("{:.2f}", share));
    };
    fmt::format_to(to, "\n{:<11} {:>11} {:>11} {:>12}\n", "memory", "planned", "peak",
                   "peak / plan");
    if (report.memory.size() <= memory_rows) {
        for (std::size_t rank = 0; rank < report.memory.size(); ++rank) {
            row(rank);
        }
    } else {
        auto const largest = std::max_element(
            report.memory.begin(), report.memory.end(),
            [](MemoryUse const& a, MemoryUse const& b) { return a.peak_bytes < b.peak_bytes; });
        row(static_cast<std::size_t>(largest - report.memory.begin()));
    }
    std::vector<std::string> parts;
    for (auto const& [name, bytes] : report.memory_parts) {
        parts.push_back(fmt::format("{} {}", name, human_bytes(bytes)));
    }
    if (!parts.empty()) {
        fmt::format_to(to, "of the plan: {}\n", fmt::join(parts, ", "));
    }
}

std::string precision_text(Report const& report) {
    return report.precision == Precision::bf16
               ? fmt::format("bf16; reference: {}", report.reference_name)
               : "fp32";
}

/// The notes and what the report itself says of its worth.
std::vector<std::string> notes_of(Report const& report) {
    std::vector<std::string> notes = report.notes;
    if (!report.timing_valid && !report.timing.variants.empty()) {
        notes.emplace_back(blind_timing);
    }
    for (std::string const& note : clock_notes(report.gpu_clocks)) {
        notes.push_back(note);
    }
    return notes;
}

json ledger_json(VariantResult const& result) {
    json out = json::object();
    auto const put = [&](Ledger const& ledger, char const* calls, char const* bytes) {
        for (auto const& [label, entry] : ledger) {
            out[label]["op"] = entry.op;
            out[label]["group_size"] = entry.group_size;
            out[label][calls] = entry.calls;
            out[label][bytes] = entry.bytes;
        }
    };
    put(result.ledger, "calls", "bytes");
    put(result.budget, "budget_calls", "budget_bytes");
    return out;
}

json timing_json(VariantTiming const& timing, GateResult gate) {
    json phases = json::object();
    for (auto const& [name, seconds] : timing.phases) {
        phases[name] = number(seconds);
    }
    return {{"steps", timing.steps},
            {"median_s", number(timing.median)},
            {"mad_s", number(timing.mad)},
            {"min_s", number(timing.low)},
            {"max_s", number(timing.high)},
            {"exposed_comm_s", number(timing.exposed_comm)},
            {"loss_comm_s", number(timing.loss_comm)},
            {"rank0_phases_s", phases},
            {"ratio", number(timing.ratio.ratio)},
            {"ratio_low", number(timing.ratio.low)},
            {"ratio_high", number(timing.ratio.high)},
            {"blocks", timing.ratio.blocks},
            {"gate", gate_name(gate)}};
}

json variant_json(Report const& report, std::size_t index) {
    VariantPlan const& plan = report.plans[index];
    json out{{"name", plan.name},
             {"dp", plan.grid.dp()},
             {"cp", plan.grid.cp},
             {"cp_comm_type", name_of(plan.cp.method)},
             {"cp_layout", name_of(plan.cp.layout)},
             {"cp_loss_comm", name_of(plan.cp.loss)},
             {"a2a", plan.cp.a2a},
             {"micro_batches", plan.schedule.front().size()}};
    if (index < report.results.size()) {
        for (auto const& [name, value] : report.results[index].metrics.named()) {
            out["metrics"][name] = number(value);
        }
        out["ledger"] = ledger_json(report.results[index]);
        out["ledger_faults"] = report.results[index].ledger_faults;
    }
    if (index < report.timing.variants.size()) {
        out["timing"] = timing_json(report.timing.variants[index], report.gates[index]);
    }
    return out;
}

json memory_json(Report const& report) {
    json out{{"ranks", json::array()}, {"parts_bytes", json::object()}};
    for (MemoryUse const& use : report.memory) {
        out["ranks"].push_back(
            {{"planned_bytes", use.planned_bytes}, {"peak_bytes", use.peak_bytes}});
    }
    for (auto const& [name, bytes] : report.memory_parts) {
        out["parts_bytes"][name] = bytes;
    }
    return out;
}

json ranking_json(Report const& report) {
    json out = json::array();
    for (VariantCost const& cost : rank_variants(report)) {
        out.push_back({{"variant", cost.name},
                       {"by_time", cost.by_time > 0 ? json(cost.by_time) : json(nullptr)},
                       {"by_bytes", cost.by_bytes},
                       {"step_s", cost.by_time > 0 ? number(cost.step_seconds) : json(nullptr)},
                       {"wire_bytes_a_rank", cost.wire_bytes},
                       {"calls_a_rank", cost.calls},
                       {"loss_bytes_a_rank", cost.loss_bytes},
                       {"loss_calls_a_rank", cost.loss_calls}});
    }
    return out;
}

json savings_json(Report const& report) {
    json out = json::array();
    for (LossSaving const& saving : loss_savings(report)) {
        bool const timed = saving.ratio.blocks > 0;
        auto const when_timed = [&](double value) { return timed ? number(value) : json(nullptr); };
        out.push_back({{"old", saving.old_name},
                       {"new", saving.new_name},
                       {"trainer", saving.trainer},
                       {"old_loss_calls_a_rank", saving.old_calls},
                       {"new_loss_calls_a_rank", saving.new_calls},
                       {"old_loss_bytes_a_rank", saving.old_bytes},
                       {"new_loss_bytes_a_rank", saving.new_bytes},
                       {"old_loss_comm_s", when_timed(saving.old_seconds)},
                       {"new_loss_comm_s", when_timed(saving.new_seconds)},
                       {"old_loss_share_of_step", when_timed(saving.old_share)},
                       {"step_ratio_new_to_old", when_timed(saving.ratio.ratio)},
                       {"step_ratio_low", when_timed(saving.ratio.low)},
                       {"step_ratio_high", when_timed(saving.ratio.high)}});
    }
    return out;
}

}  // namespace

std::string report_table(Report const& report, RunFacts const& facts, double gate_ratio) {
    std::string out = fmt::format(
        "cpstep {}: {} ranks, {} parameters, {} samples, {} tokens ({} of responses)\n{}; {}\n",
        facts.version, facts.world, facts.parameters, facts.samples, facts.tokens,
        facts.response_tokens, facts.backend, facts.mpi.substr(0, facts.mpi.find(',')));
    if (!facts.cuda.empty()) {
        out += facts.cuda + "\n";
    }
    fmt::format_to(std::back_inserter(out), "precision: {}{}\n", precision_text(report),
                   facts.wires.empty() ? "" : "; wires: " + facts.wires);
    out += clock_line(report.clocks);
    fmt::format_to(std::back_inserter(out), "signal: {}\n", report.signal.reason);
    for (std::size_t i = 0; i < report.results.size(); ++i) {
        StepMetrics const& m = report.results[i].metrics;
        VariantPlan const& plan = report.plans[i];
        fmt::format_to(
            std::back_inserter(out),
            "{}: DP {} x CP {}{}, {} micro-batches a rank, loss {:.7g}, grad_norm {:.7g}\n",
            plan.name, plan.grid.dp(), plan.grid.cp, description(plan.cp),
            plan.schedule.front().size(), m.loss, m.grad_norm);
    }
    if (report.results.size() > full_tables) {
        out += "\n";
    }
    for (VariantResult const& result : report.results) {
        parity_table(out, report, result);
    }
    std::size_t const width = name_width(report, 6);
    out += "\n";
    fmt::format_to(std::back_inserter(out), ledger_row, "ledger", width, "label", "operation",
                   "calls", "bytes", "budget", "budget bytes");
    for (VariantResult const& result : report.results) {
        ledger_table(out, result, width);
    }
    memory_table(out, report);
    timing_table(out, report);
    out += ranking_text(report);
    for (std::string const& note : notes_of(report)) {
        fmt::format_to(std::back_inserter(out), "note: {}\n", note);
    }
    std::string name = verdict_name(report.code);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    fmt::format_to(std::back_inserter(out), "\nverdict: {} (exit {}): {}{}\n", name,
                   static_cast<int>(report.code), report.reason,
                   gate_ratio > 0 ? fmt::format("; gate {}", gate_ratio) : "");
    return out;
}

std::string report_json(Report const& report, RunFacts const& facts, Options const& options) {
    json out{
        {"format", "cpstep-summary"},
        {"format_version", 1},
        {"verdict", verdict_name(report.code)},
        {"exit_code", static_cast<int>(report.code)},
        {"reason", report.reason},
        {"signal", {{"present", report.signal.present}, {"reason", report.signal.reason}}},
        {"run",
         {{"version", facts.version},
          {"backend", facts.backend},
          {"cuda", facts.cuda},
          {"wires", facts.wires},
          {"mpi", facts.mpi},
          {"host", facts.host},
          {"start_utc", facts.start_utc},
          {"ranks", facts.world},
          {"parameters", facts.parameters},
          {"samples", facts.samples},
          {"tokens", facts.tokens},
          {"response_tokens", facts.response_tokens}}},
        {"gate_ratio", options.gate_ratio > 0 ? json(options.gate_ratio) : json(nullptr)},
        {"precision", report.precision == Precision::bf16 ? "bf16" : "fp32"},
        {"reference", report.reference_name.empty() ? json(nullptr) : json(report.reference_name)},
        {"timing_valid", report.timing_valid},
        {"reproducible", report.timing.reproducible},
        {"notes", notes_of(report)},
        {"memory", memory_json(report)},
        {"clock", clock_json(report.clocks)},
        {"variants", json::array()},
        {"parity", json::array()},
        {"config", json::object()}};
    for (std::size_t i = 0; i < report.plans.size(); ++i) {
        out["variants"].push_back(variant_json(report, i));
    }
    for (Check const& check : report.checks) {
        out["parity"].push_back({{"variant", check.variant},
                                 {"check", check.name},
                                 {"measured", number(check.measured)},
                                 {"bound", number(check.bound)},
                                 {"unit", check.unit},
                                 {"where", check.where},
                                 {"pass", check.pass}});
    }
    out["ranking"] = ranking_json(report);
    out["loss_savings"] = savings_json(report);
    for (auto const& [name, value] : options.resolved) {
        out["config"][name] = value.value;
    }
    return out.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

}  // namespace cpstep
