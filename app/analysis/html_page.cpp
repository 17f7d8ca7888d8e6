#include "app/analysis/html_page.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>

#include "app/analysis/charts.hpp"
#include "app/analysis/html_style.hpp"
#include "app/analysis/svg.hpp"
#include "cuda/error.hpp"

namespace cpstep {
namespace {

using nlohmann::json;

std::string key(char const* kind, char const* name) {
    return fmt::format(R"(<span class="key {}"></span>{})", kind, name);
}

/// A heading with a drawing; nothing where nothing is drawn.
void section(std::string& out, std::string const& title, std::string const& about,
             std::string const& content) {
    if (!content.empty()) {
        fmt::format_to(std::back_inserter(out),
                       "<h2>{}</h2><p>{}</p><div class=\"card\">{}</div>\n", title, about, content);
    }
}

std::string ms(double seconds) {
    return std::isfinite(seconds) ? fmt::format("{:.3f}", seconds * 1e3) : "–";
}

std::string row(std::vector<std::string> const& cells, char const* tag = "td") {
    std::string out = "<tr>";
    for (std::string const& cell : cells) {
        out += fmt::format("<{}>{}</{}>", tag, escaped(cell), tag);
    }
    return out + "</tr>\n";
}

std::string times_table(Analysis const& analysis) {
    if (analysis.variants.empty()) {
        return "";
    }
    std::string out =
        "<table>" +
        row({"variant", "steps", "median ms", "min", "p5", "p95", "ratio [95 %]", "blocks"}, "th");
    for (VariantTimes const& t : analysis.variants) {
        out += row({t.name, std::to_string(t.steps), ms(t.median), ms(t.low), ms(t.p5), ms(t.p95),
                    t.ratio.blocks > 0 ? fmt::format("{:.4f} [{:.4f}, {:.4f}]", t.ratio.ratio,
                                                     t.ratio.low, t.ratio.high)
                                       : "–",
                    std::to_string(t.ratio.blocks)});
    }
    return out + "</table>";
}

std::string number(double value, char const* format) {
    return std::isfinite(value) ? fmt::format(fmt::runtime(format), value) : "–";
}

std::string parts_table(Analysis const& analysis) {
    if (analysis.variants.empty()) {
        return "";
    }
    std::string out =
        "<table>" + row({"variant", "compute ms", "comm.", "exposed", "waiting", "idle",
                         "overlap %", "imbalance", "computes longest", "bus GB/s"},
                        "th");
    for (VariantTimes const& t : analysis.variants) {
        out += row({t.name, ms(t.compute.mid), ms(t.comm.mid), ms(t.exposed.mid), ms(t.wait.mid),
                    ms(t.idle.mid), number(t.overlap.mid * 100, "{:.1f}"),
                    number(t.imbalance, "{:.3f}"),
                    t.slowest_rank < 0
                        ? "–"
                        : fmt::format("rank {} in {:.0f} %", t.slowest_rank, t.slowest_share * 100),
                    number(t.bus_gb_s, "{:.3g}")});
    }
    return out + "</table>";
}

std::string calls_table(StepDetail const& step) {
    if (step.calls.empty()) {
        return "";
    }
    std::string out = "<table>" + row({"call", "calls", "bytes", "on the wire, ms", "waiting, ms",
                                       "waiting, most", "waiting, least"},
                                      "th");
    for (CallTime const& call : step.calls) {
        out += row({call.label, std::to_string(call.calls), std::to_string(call.bytes),
                    ms(call.comm.mid), ms(call.wait.mid), ms(call.wait.high), ms(call.wait.low)});
    }
    for (HopTime const& hop : step.hops) {
        out += row({fmt::format("{} hop {}", hop.label, hop.hop + 1), std::to_string(hop.calls), "",
                    "", ms(hop.wait.mid), ms(hop.wait.high), ms(hop.wait.low)});
    }
    return out + "</table>";
}

std::string ledger_table(RunData const& run) {
    std::string rows;
    for (auto const& variant :
         run.finished() ? run.summary.value("variants", json::array()) : json::array()) {
        json const ledger = variant.value("ledger", json::object());
        for (auto at = ledger.begin(); at != ledger.end(); ++at) {
            json const& entry = at.value();
            auto const count = [&](char const* name) { return entry.value(name, std::int64_t{0}); };
            bool const off =
                count("calls") != count("budget_calls") || count("bytes") != count("budget_bytes");
            std::string line =
                row({variant.value("name", "?"), at.key(), entry.value("op", ""),
                     std::to_string(count("calls")), std::to_string(count("budget_calls")),
                     std::to_string(count("bytes")), std::to_string(count("budget_bytes")), ""});
            std::string const empty = "<td></td></tr>";
            line.replace(line.find(empty), empty.size(),
                         off ? "<td class=\"bad\">off</td></tr>" : "<td>ok</td></tr>");
            rows += line;
        }
    }
    return rows.empty() ? ""
                        : "<table>" +
                              row({"variant", "label", "operation", "calls", "budget", "bytes",
                                   "budget bytes", ""},
                                  "th") +
                              rows + "</table>";
}

/// A check's share of its bound; infinite where it has no size.
double share_of(json const& check) {
    json const measured = check.value("measured", json());
    json const bound = check.value("bound", json());
    if (!measured.is_number() || !bound.is_number()) {
        return INFINITY;
    }
    if (bound.get<double>() > 0) {
        return measured.get<double>() / bound.get<double>();
    }
    return check.value("pass", false) ? 0 : INFINITY;
}

/// The worst check of each kind.
std::string checks_table(RunData const& run) {
    struct Worst {
        double share = -1;
        json check;
        int count = 0, failed = 0;
    };
    std::map<std::string, Worst> kinds;
    json const checks = run.finished() ? run.summary.value("parity", json::array()) : json::array();
    for (auto const& check : checks) {
        std::string const name = check.value("check", "?");
        Worst& worst = kinds[name.substr(0, name.find(' '))];
        worst.count += 1;
        worst.failed += check.value("pass", false) ? 0 : 1;
        if (share_of(check) > worst.share) {
            worst.share = share_of(check);
            worst.check = check;
        }
    }
    std::string rows;
    for (auto const& [kind, worst] : kinds) {
        auto const size = [&](char const* name) {
            json const value = worst.check.value(name, json());
            return value.is_number() ? fmt::format("{:.2e}", value.get<double>()) : "NaN";
        };
        fmt::format_to(std::back_inserter(rows),
                       "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>"
                       "<td{}>{}</td></tr>\n",
                       escaped(kind), worst.count, escaped(worst.check.value("variant", "?")),
                       size("measured"), size("bound"), escaped(worst.check.value("unit", "")),
                       worst.failed > 0 ? " class=\"bad\"" : "",
                       worst.failed > 0 ? fmt::format("{} failed", worst.failed) : "ok");
    }
    return rows.empty()
               ? ""
               : "<table>" +
                     row({"check", "count", "worst in", "measured", "bound", "unit", ""}, "th") +
                     rows + "</table>";
}

std::string list(std::vector<std::string> const& items) {
    std::string out;
    for (std::string const& item : items) {
        out += "<li>" + escaped(item) + "</li>\n";
    }
    return out.empty() ? "" : "<ul>" + out + "</ul>";
}

void head(std::string& out, RunData const& run) {
    bool const good = run.finished() && run.summary.value("exit_code", 1) == 0;
    fmt::format_to(std::back_inserter(out),
                   "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                   "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
                   "<title>cpstep: {}</title><style>{}</style></head><body>\n",
                   escaped(run.folder.string()), html_style);
    fmt::format_to(std::back_inserter(out), "<h1>{}</h1><div class=\"verdict {}\">{}</div><p>{}",
                   escaped(run.folder.string()), good ? "good" : "bad", escaped(verdict_line(run)),
                   run.world == 1 ? "1 rank" : fmt::format("{} ranks", run.world));
    json const facts = run.finished() ? run.summary.value("run", json::object()) : json::object();
    for (char const* name : {"backend", "wires", "version", "host", "start_utc"}) {
        std::string const text = facts.value(name, "");
        out += text.empty() ? "" : "; " + escaped(text);
    }
    out += "</p>\n";
}

void step_sections(std::string& out, StepDetail const& step) {
    section(
        out,
        fmt::format("Step {} ({}{}) on {}", step.step, escaped(step.variant),
                    step.block < 0 ? "" : fmt::format(", block {}", step.block),
                    step.timelines.size() == 1 ? "one rank"
                                               : fmt::format("{} ranks", step.timelines.size())),
        "Upper lane:" + key("pass", "pass") + key("compute", "compute") +
            key("exposed", "waiting") + "; lower lane:" + key("comm", "communication") + ".",
        timeline_chart(step));
    section(out, fmt::format("Calls of step {}", step.step),
            "Time of a rank's calls of a label together; median over ranks. A hop: one wait.",
            calls_table(step));
}

}  // namespace

std::string html_page(Analysis const& analysis) {
    RunData const& run = analysis.run;
    std::string out;
    head(out, run);
    section(out, "Problems", "Files of the run that could not be used.", list(run.problems));
    section(out, "Step time", "A dot a step; the bar from p5 to p95, the mark at the median.",
            step_strips(analysis));
    section(out, "CP=N against CP=1",
            "Step time over the baseline's: median of the blocks' ratios and its 95 % interval.",
            ratio_chart(analysis));
    section(out, "What a step is made of",
            "Medians over steps and ranks." + key("compute", "compute") +
                key("exposed", "exposed communication") + key("rest", "rest"),
            parts_chart(analysis));
    section(out, "Passes of a step", "Rank 0, medians over steps.", phases_chart(run));
    section(out, "Numbers",
            "Of a step: the slowest rank's time; below, medians over steps, then over ranks. "
            "Imbalance: "
            "the longest compute of a step over the mean.",
            times_table(analysis) + parts_table(analysis));
    if (analysis.step) {
        step_sections(out, *analysis.step);
    }
    section(
        out, "Ranks and steps",
        "Compute time of timed steps beside the median of the variant; a cell shows the slowest of "
        "the ranks and steps it stands for.",
        heat_map(run));
    section(out, "Differences to the baseline",
            "Values of response tokens, by the size of their difference.",
            histogram_chart(parity_histograms(run)));
    section(out, "Checks", "The worst of each kind, beside its derived bound.", checks_table(run));
    section(out, "Ledger", "Calls and bytes of all ranks in a step, beside the closed form.",
            ledger_table(run));
    section(out, "Validity", "What limits these numbers.", list(analysis.notes));
    return out + "</body></html>\n";
}

}  // namespace cpstep
