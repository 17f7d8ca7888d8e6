#include "app/ranking.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "app/estimate.hpp"

namespace cpstep {

namespace {

constexpr std::uint64_t bootstrap_seed = 1062;
constexpr std::int64_t least_blocks = 3;  // fewer have no interval

VariantTiming const* timing_of(Report const& report, std::string const& name) {
    auto const found =
        std::find_if(report.timing.variants.begin(), report.timing.variants.end(),
                     [&](VariantTiming const& timing) { return timing.name == name; });
    return found == report.timing.variants.end() ? nullptr : &*found;
}

VariantCost cost_of(Report const& report, VariantResult const& result) {
    double const ranks = report.plans.front().grid.world;
    VariantCost cost;
    cost.name = result.name;
    for (auto const& [label, entry] : result.ledger) {
        double const bytes = wire_bytes(entry) / ranks;
        double const calls = static_cast<double>(entry.calls) / ranks;
        cost.wire_bytes += bytes;
        cost.calls += calls;
        if (label.starts_with("loss.")) {
            cost.loss_bytes += bytes;
            cost.loss_calls += calls;
        }
    }
    if (VariantTiming const* timing = timing_of(report, result.name)) {
        cost.step_seconds = timing->median;
    }
    return cost;
}

/// Places from 1 in rising order of `key`.
template <class Key>
void place(std::vector<VariantCost>& costs, int VariantCost::* where, Key const& key) {
    std::stable_sort(costs.begin(), costs.end(),
                     [&](VariantCost const& a, VariantCost const& b) { return key(a) < key(b); });
    for (std::size_t i = 0; i < costs.size(); ++i) {
        costs[i].*where = static_cast<int>(i) + 1;
    }
}

std::string_view trainer_of(LossComm loss) {
    return loss == LossComm::gather ? "FSDP trainers before slime #1062" : "Megatron trainers";
}

LossSaving saving_of(Report const& report, VariantPlan const& before, VariantPlan const& after,
                     std::vector<VariantCost> const& costs) {
    auto const cost = [&](std::string const& name) {
        return *std::find_if(costs.begin(), costs.end(),
                             [&](VariantCost const& c) { return c.name == name; });
    };
    VariantCost const old_cost = cost(before.name);
    VariantCost const new_cost = cost(after.name);
    LossSaving saving;
    saving.old_name = before.name;
    saving.new_name = after.name;
    saving.trainer = trainer_of(before.cp.loss);
    saving.old_calls = old_cost.loss_calls;
    saving.new_calls = new_cost.loss_calls;
    saving.old_bytes = old_cost.loss_bytes;
    saving.new_bytes = new_cost.loss_bytes;
    VariantTiming const* old_timing = timing_of(report, before.name);
    VariantTiming const* new_timing = timing_of(report, after.name);
    if (old_timing != nullptr && new_timing != nullptr) {
        saving.old_seconds = old_timing->loss_comm;
        saving.new_seconds = new_timing->loss_comm;
        saving.old_share = old_timing->loss_comm / old_timing->median;
        saving.ratio = paired_ratio(report.timing.steps, after.name, before.name, bootstrap_seed);
    }
    return saving;
}

std::string step_words(RatioEstimate const& ratio) {
    if (ratio.blocks < least_blocks) {
        return "too few blocks to tell";
    }
    if (ratio.high < 1) {
        return fmt::format("it saves {:.1f} % of the step", (1 - ratio.ratio) * 100);
    }
    return ratio.low > 1 ? fmt::format("it costs {:.1f} % of the step", (ratio.ratio - 1) * 100)
                         : std::string("no difference that these blocks can show");
}

std::string saving_text(LossSaving const& s) {
    std::string out = fmt::format(
        "old path of {}: {}\n"
        "  loss: {:g} calls and {} a rank and step; {}: {:g} calls and {}\n",
        s.trainer, s.old_name, s.old_calls, human_bytes(static_cast<std::int64_t>(s.old_bytes)),
        s.new_name, s.new_calls, human_bytes(static_cast<std::int64_t>(s.new_bytes)));
    if (s.ratio.blocks == 0) {
        return out;
    }
    if (!std::isnan(s.old_seconds)) {  // as with --trace-detail off
        fmt::format_to(std::back_inserter(out),
                       "  in loss calls {:.2f} ms, {:.1f} % of the step, against {:.2f} ms, waits "
                       "included\n",
                       s.old_seconds * 1e3, s.old_share * 100, s.new_seconds * 1e3);
    }
    fmt::format_to(std::back_inserter(out),
                   "  step with {} / step with {}: {:.3f} ({:.3f} .. {:.3f}), {}\n", s.new_name,
                   s.old_name, s.ratio.ratio, s.ratio.low, s.ratio.high, step_words(s.ratio));
    return out;
}

/// The plan that differs from `plan` in nothing but the scalar loss path; nullptr if there is none.
VariantPlan const* with_scalar_loss(Report const& report, VariantPlan const& plan) {
    CpConfig wanted = plan.cp;
    wanted.loss = LossComm::scalar;
    auto const found = std::find_if(report.plans.begin(), report.plans.end(),
                                    [&](VariantPlan const& p) { return p.cp == wanted; });
    return found == report.plans.end() ? nullptr : &*found;
}

bool on_old_path(VariantPlan const& plan) {
    return plan.cp.loss != LossComm::scalar && plan.cp.size > 1;
}

}  // namespace

std::vector<VariantCost> rank_variants(Report const& report) {
    std::vector<VariantCost> costs;
    for (VariantResult const& result : report.results) {
        costs.push_back(cost_of(report, result));
    }
    place(costs, &VariantCost::by_bytes, [](VariantCost const& c) { return c.wire_bytes; });
    if (!report.timing.variants.empty()) {
        place(costs, &VariantCost::by_time, [](VariantCost const& c) { return c.step_seconds; });
    }
    return costs;
}

std::vector<LossSaving> loss_savings(Report const& report) {
    std::vector<VariantCost> const costs = rank_variants(report);
    std::vector<LossSaving> savings;
    for (VariantPlan const& plan : report.plans) {
        VariantPlan const* const scalar = with_scalar_loss(report, plan);
        if (on_old_path(plan) && scalar != nullptr) {
            savings.push_back(saving_of(report, plan, *scalar, costs));
        }
    }
    return savings;
}

std::string ranking_text(Report const& report) {
    if (report.results.size() < 2) {
        return "";
    }
    std::vector<VariantCost> const costs = rank_variants(report);
    std::size_t width = 7;
    for (VariantCost const& cost : costs) {
        width = std::max(width, cost.name.size());
    }
    bool const timed = costs.front().by_time > 0;
    std::string out;
    auto const to = std::back_inserter(out);
    fmt::format_to(to, "\n{:<{}}  {:>10}  {:>7}  {:>12}  {:>8}  {:>8}  {:>10}  {:>10}\n", "ranking",
                   width, "step ms", "by time", "bytes a rank", "by bytes", "calls", "loss bytes",
                   "loss calls");
    for (VariantCost const& c : costs) {
        fmt::format_to(to, "{:<{}}  {:>10}  {:>7}  {:>12}  {:>8}  {:>8g}  {:>10}  {:>10g}\n",
                       c.name, width, timed ? fmt::format("{:.2f}", c.step_seconds * 1e3) : "-",
                       timed ? std::to_string(c.by_time) : "-",
                       human_bytes(static_cast<std::int64_t>(c.wire_bytes)), c.by_bytes, c.calls,
                       human_bytes(static_cast<std::int64_t>(c.loss_bytes)), c.loss_calls);
    }
    for (LossSaving const& saving : loss_savings(report)) {
        out += saving_text(saving);
    }
    for (VariantPlan const& plan : report.plans) {
        if (on_old_path(plan) && with_scalar_loss(report, plan) == nullptr) {
            fmt::format_to(to,
                           "old path of {}: {}; add the same variant with --cp-loss-comm scalar to "
                           "see what that saves\n",
                           trainer_of(plan.cp.loss), plan.name);
        }
    }
    return out;
}

}  // namespace cpstep
