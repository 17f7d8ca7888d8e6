#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "app/analysis/analysis.hpp"
#include "cuda/error.hpp"

namespace cpstep {
namespace {

using nlohmann::json;

std::string ms(double seconds) {
    return std::isfinite(seconds) ? fmt::format("{:.3f}", seconds * 1e3) : "-";
}

/// "12.345 (13.001)": the median over ranks and, where it differs, the largest.
std::string ms(Spread const& spread) {
    return spread.high > spread.mid ? fmt::format("{} ({})", ms(spread.mid), ms(spread.high))
                                    : ms(spread.mid);
}

std::string count_text(double bytes) {
    char const* const units[] = {"B", "KB", "MB", "GB", "TB"};
    int unit = 0;
    while (bytes >= 1000 && unit < 4) {
        bytes /= 1000;
        ++unit;
    }
    return fmt::format("{:.4g} {}", bytes, units[unit]);
}

std::size_t width_of(std::size_t least, std::vector<std::string> const& names) {
    for (std::string const& name : names) {
        least = std::max(least, name.size());
    }
    return least;
}

void head(std::string& out, RunData const& run) {
    fmt::format_to(std::back_inserter(out), "{}: {} rank{}", run.folder.string(), run.world,
                   run.world == 1 ? "" : "s");
    json const facts = run.finished() ? run.summary.value("run", json::object()) : json::object();
    fmt::format_to(std::back_inserter(out), " on {}", run.ranks.front().host);
    for (char const* key : {"backend", "wires", "version", "start_utc"}) {
        std::string const text = facts.value(key, "");
        if (!text.empty()) {
            out += "; " + text;
        }
    }
    out += "\n";
}

void times_table(std::string& out, Analysis const& analysis, std::size_t width) {
    fmt::format_to(std::back_inserter(out), "\n{:<{}} {:>6} {:>10} {:>10} {:>10} {:>10}  {}\n",
                   "step, ms", width, "steps", "median", "min", "p5", "p95",
                   "ratio to " + analysis.run.variants.front() + " [95 %] of blocks");
    for (VariantTimes const& t : analysis.variants) {
        std::string const ratio = t.ratio.blocks == 0
                                      ? "-"
                                      : fmt::format("{:.4f} [{:.4f}, {:.4f}] of {}", t.ratio.ratio,
                                                    t.ratio.low, t.ratio.high, t.ratio.blocks);
        fmt::format_to(std::back_inserter(out), "{:<{}} {:>6} {:>10} {:>10} {:>10} {:>10}  {}\n",
                       t.name, width, t.steps, ms(t.median), ms(t.low), ms(t.p5), ms(t.p95), ratio);
    }
}

void parts_table(std::string& out, Analysis const& analysis, std::size_t width) {
    fmt::format_to(std::back_inserter(out), "\n{:<{}} {:>19} {:>18} {:>17} {:>17} {:>17}\n",
                   "parts, ms", width, "compute", "communication", "exposed", "waiting", "idle");
    for (VariantTimes const& t : analysis.variants) {
        fmt::format_to(std::back_inserter(out), "{:<{}} {:>19} {:>18} {:>17} {:>17} {:>17}\n",
                       t.name, width, ms(t.compute), ms(t.comm), ms(t.exposed), ms(t.wait),
                       ms(t.idle));
    }
    if (analysis.run.world > 1) {
        out += "a rank's median over steps: median over ranks (largest)\n";
    }
}

void balance_table(std::string& out, Analysis const& analysis, std::size_t width) {
    fmt::format_to(std::back_inserter(out), "\n{:<{}} {:>9} {:>10} {:>22} {:>14} {:>10}\n",
                   "balance", width, "overlap %", "imbalance", "computes longest", "bytes a rank",
                   "bus GB/s");
    for (VariantTimes const& t : analysis.variants) {
        auto const number = [](double value, char const* format) {
            return std::isfinite(value) ? fmt::format(fmt::runtime(format), value) : "-";
        };
        fmt::format_to(
            std::back_inserter(out), "{:<{}} {:>9} {:>10} {:>22} {:>14} {:>10}\n", t.name, width,
            number(t.overlap.mid * 100, "{:.1f}"), number(t.imbalance, "{:.3f}"),
            t.slowest_rank < 0
                ? "-"
                : fmt::format("rank {} in {:.0f} %", t.slowest_rank, t.slowest_share * 100),
            count_text(t.bytes), number(t.bus_gb_s, "{:.3g}"));
    }
}

void step_tables(std::string& out, StepDetail const& step) {
    fmt::format_to(std::back_inserter(out), "\nstep {} ({}, {}), {} ms on the slowest rank\n",
                   step.step, step.variant,
                   step.block < 0 ? "not timed" : fmt::format("block {}", step.block),
                   ms(step.seconds));
    if (!step.phases.empty()) {
        fmt::format_to(std::back_inserter(out), "  {:<20} {:>21} {:>21} {:>21}\n", "phase, ms",
                       "total", "compute", "exposed");
    }
    for (PhaseTime const& phase : step.phases) {
        fmt::format_to(std::back_inserter(out), "  {:<20} {:>21} {:>21} {:>21}\n", phase.name,
                       ms(phase.total), ms(phase.compute), ms(phase.exposed));
    }
    if (!step.calls.empty()) {
        fmt::format_to(std::back_inserter(out), "  {:<20} {:>8} {:>12} {:>21} {:>21}\n",
                       "call, ms a rank", "calls", "bytes", "on the wire", "waiting");
    }
    for (CallTime const& call : step.calls) {
        fmt::format_to(std::back_inserter(out), "  {:<20} {:>8} {:>12} {:>21} {:>21}\n", call.label,
                       call.calls, count_text(static_cast<double>(call.bytes)), ms(call.comm),
                       ms(call.wait));
    }
    for (HopTime const& hop : step.hops) {
        fmt::format_to(std::back_inserter(out), "  {:<20} {:>8} {:>12} {:>21} {:>21}\n",
                       fmt::format("{} hop {}", hop.label, hop.hop + 1), hop.calls, "", "",
                       ms(hop.wait));
    }
    if (!step.hops.empty()) {
        out += "  of a hop: one wait, over the passes through attention\n";
    }
}

void proof_lines(std::string& out, RunData const& run) {
    if (!run.finished()) {
        return;
    }
    std::int64_t checks = 0;
    std::int64_t failed = 0;
    json closest;
    double share = -1;
    for (auto const& check : run.summary.value("parity", json::array())) {
        ++checks;
        failed += check.value("pass", false) ? 0 : 1;
        json const measured = check.value("measured", json());
        json const bound = check.value("bound", json());
        if (measured.is_number() && bound.is_number() && bound.get<double>() > 0 &&
            measured.get<double>() / bound.get<double>() > share) {
            share = measured.get<double>() / bound.get<double>();
            closest = check;
        }
    }
    fmt::format_to(std::back_inserter(out), "\nparity: {} checks, {} failed", checks, failed);
    if (share >= 0) {
        fmt::format_to(std::back_inserter(out), "; closest to its bound, at {:.2g} of it: {} of {}",
                       share, closest.value("check", "?"), closest.value("variant", "?"));
    }
    std::size_t labels = 0;
    std::vector<std::string> faults;
    for (auto const& variant : run.summary.value("variants", json::array())) {
        labels += variant.value("ledger", json::object()).size();
        for (auto const& fault : variant.value("ledger_faults", json::array())) {
            faults.push_back(variant.value("name", "?") + ": " + fault.get<std::string>());
        }
    }
    fmt::format_to(std::back_inserter(out), "\nledger: {} labels, {} off budget\n", labels,
                   faults.size());
    for (std::string const& fault : faults) {
        out += "  " + fault + "\n";
    }
}

void memory_line(std::string& out, RunData const& run) {
    if (!run.finished() || !run.summary.contains("memory")) {
        return;
    }
    std::int64_t planned = 0;
    std::int64_t peak = 0;
    for (auto const& rank : run.summary["memory"].value("ranks", json::array())) {
        planned = std::max(planned, rank.value("planned_bytes", std::int64_t{0}));
        peak = std::max(peak, rank.value("peak_bytes", std::int64_t{0}));
    }
    if (planned > 0) {
        fmt::format_to(std::back_inserter(out), "memory of the largest rank: planned {}, peak {}\n",
                       count_text(static_cast<double>(planned)),
                       count_text(static_cast<double>(peak)));
    }
}

}  // namespace

std::string report_text(Analysis const& analysis, bool colour) {
    RunData const& run = analysis.run;
    auto const paint = [&](char const* code, std::string const& text) {
        return colour ? fmt::format("\033[{}m{}\033[0m", code, text) : text;
    };
    std::string out;
    head(out, run);
    std::size_t const width = width_of(9, run.variants);
    if (!analysis.variants.empty()) {
        times_table(out, analysis, width);
        parts_table(out, analysis, width);
        balance_table(out, analysis, width);
    }
    if (analysis.step) {
        step_tables(out, *analysis.step);
    }
    proof_lines(out, run);
    memory_line(out, run);
    out += "\n";
    for (std::string const& problem : run.problems) {
        out += paint("33", "problem: ") + problem + "\n";
    }
    for (std::string const& note : analysis.notes) {
        out += "note: " + note + "\n";
    }
    std::string const verdict = verdict_line(run);
    bool const pass = run.finished() && run.summary.value("exit_code", 1) == 0;
    out += "verdict: " + paint(pass ? "32" : "31", verdict) + "\n";
    return out;
}

}  // namespace cpstep
