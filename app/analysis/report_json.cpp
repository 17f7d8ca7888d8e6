#include "app/analysis/analysis.hpp"
#include "app/json_number.hpp"

namespace cpstep {
namespace {

using nlohmann::json;

json spread_json(Spread const& spread) {
    return {
        {"min", number(spread.low)}, {"median", number(spread.mid)}, {"max", number(spread.high)}};
}

json variant_json(VariantTimes const& t) {
    json out{{"name", t.name},
             {"timed", t.timed},
             {"steps", t.steps},
             {"median_s", number(t.median)},
             {"min_s", number(t.low)},
             {"p5_s", number(t.p5)},
             {"p95_s", number(t.p95)},
             {"ratio", nullptr},
             {"compute_s", spread_json(t.compute)},
             {"comm_s", spread_json(t.comm)},
             {"exposed_s", spread_json(t.exposed)},
             {"wait_s", spread_json(t.wait)},
             {"idle_s", spread_json(t.idle)},
             {"overlap", spread_json(t.overlap)},
             {"imbalance", number(t.imbalance)},
             {"slowest_rank", t.slowest_rank < 0 ? json(nullptr) : json(t.slowest_rank)},
             {"slowest_share", t.slowest_share},
             {"bytes_a_rank", t.bytes},
             {"bus_gb_s", number(t.bus_gb_s)}};
    if (t.ratio.blocks > 0) {
        out["ratio"] = {{"value", number(t.ratio.ratio)},
                        {"low", number(t.ratio.low)},
                        {"high", number(t.ratio.high)},
                        {"blocks", t.ratio.blocks}};
    }
    return out;
}

json step_json(StepDetail const& step) {
    json out{{"step", step.step},       {"variant", step.variant}, {"block", step.block},
             {"seconds", step.seconds}, {"phases", json::array()}, {"calls", json::array()},
             {"hops", json::array()}};
    for (PhaseTime const& phase : step.phases) {
        out["phases"].push_back({{"name", phase.name},
                                 {"total_s", spread_json(phase.total)},
                                 {"compute_s", spread_json(phase.compute)},
                                 {"exposed_s", spread_json(phase.exposed)}});
    }
    for (CallTime const& call : step.calls) {
        out["calls"].push_back({{"label", call.label},
                                {"calls", call.calls},
                                {"bytes", call.bytes},
                                {"comm_s", spread_json(call.comm)},
                                {"wait_s", spread_json(call.wait)}});
    }
    for (HopTime const& hop : step.hops) {
        out["hops"].push_back({{"label", hop.label},
                               {"hop", hop.hop + 1},
                               {"calls", hop.calls},
                               {"wait_s", spread_json(hop.wait)}});
    }
    return out;
}

}  // namespace

std::string report_json_text(Analysis const& analysis) {
    RunData const& run = analysis.run;
    json out{{"format", "cpstep-report"},
             {"format_version", 1},
             {"folder", run.folder.string()},
             {"finished", run.finished()},
             {"world", run.world},
             {"ranks", run.ranks.size()},
             {"variants", json::array()},
             {"step", analysis.step ? step_json(*analysis.step) : json(nullptr)},
             {"problems", run.problems},
             {"notes", analysis.notes},
             {"summary", run.summary}};
    for (VariantTimes const& times : analysis.variants) {
        out["variants"].push_back(variant_json(times));
    }
    return out.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

}  // namespace cpstep
