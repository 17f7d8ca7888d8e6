#include "app/analysis/analysis.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "cuda/error.hpp"

namespace cpstep {
namespace {

std::vector<std::string> notes_of(Analysis const& analysis) {
    RunData const& run = analysis.run;
    std::vector<std::string> notes;
    if (run.finished() && run.summary.contains("notes")) {
        for (auto const& note : run.summary["notes"]) {
            notes.push_back(note.is_string() ? note.get<std::string>() : note.dump());
        }
    }
    if (!run.finished()) {
        notes.emplace_back("the run did not finish: no verdict, no parity, no ledger");
    }
    bool const timed = std::any_of(analysis.variants.begin(), analysis.variants.end(),
                                   [](VariantTimes const& times) { return times.timed; });
    if (!timed) {
        notes.emplace_back(
            "no timed steps: times are of verification and warm-up steps, and give no ratio");
    }
    for (VariantTimes const& times : analysis.variants) {
        if (times.ratio.blocks > 0 && times.ratio.blocks < 6) {
            notes.push_back(fmt::format(
                "{}: the interval rests on {} blocks; below 6 it is about their extremes",
                times.name, times.ratio.blocks));
            break;
        }
    }
    if (analysis.step && analysis.step->detail == TraceDetail::passes) {
        notes.emplace_back(
            "timed steps trace passes only: compute is what their waits leave of them");
    }
    if (analysis.step && analysis.step->detail == TraceDetail::off) {
        notes.emplace_back("timed steps were not traced (--trace-detail off): no parts of a step");
    }
    notes.emplace_back(
        "times are compared within a rank; nothing rests on the clocks of two ranks");
    return notes;
}

}  // namespace

Analysis analyse(RunData run, std::optional<std::uint32_t> step, int most_timelines) {
    Analysis analysis;
    analysis.run = std::move(run);
    if (!analysis.run.variants.empty()) {
        analysis.variants = variant_times(analysis.run);
        analysis.step =
            step_detail(analysis.run, step ? *step : typical_step(analysis.run), most_timelines);
    } else {
        require(!step, ExitCode::usage, "no step {}: this run has no finished step",
                step.value_or(0));
    }
    analysis.notes = notes_of(analysis);
    return analysis;
}

std::string verdict_line(RunData const& run) {
    if (!run.finished()) {
        return "NOT FINISHED";
    }
    std::string name = run.summary.value("verdict", "?");
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    return fmt::format("{} (exit {}): {}", name, run.summary.value("exit_code", 1),
                       run.summary.value("reason", ""));
}

std::string report_csv(RunData const& run) {
    std::string out =
        "rank,step,variant,block,detail,t0_ns,dur_ns,events,compute_ns,comm_ns,exposed_ns,wait_ns,"
        "idle_ns,bytes\n";
    char const* const details[] = {"layers", "passes", "off"};
    for (RankData const& rank : run.ranks) {
        for (StepRecord const& s : rank.steps) {
            fmt::format_to(std::back_inserter(out), "{},{},{},{},{},{},{},{},{},{},{},{},{},{}\n",
                           rank.rank, std::uint32_t{s.step}, variant_of(rank, s),
                           std::int32_t{s.block}, details[std::min<std::uint32_t>(s.detail, 2)],
                           std::int64_t{s.t0_ns}, std::int64_t{s.dur_ns}, std::uint64_t{s.events},
                           std::int64_t{s.sums.compute_ns}, std::int64_t{s.sums.comm_ns},
                           std::int64_t{s.sums.exposed_ns}, std::int64_t{s.sums.wait_ns},
                           std::int64_t{s.sums.idle_ns}, std::uint64_t{s.sums.bytes});
        }
    }
    return out;
}

}  // namespace cpstep
