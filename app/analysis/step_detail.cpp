#include "app/analysis/step_detail.hpp"

#include <algorithm>
#include <map>
#include <string_view>

#include "cuda/error.hpp"

namespace cpstep {
namespace {

constexpr double seconds_per_ns = 1e-9;

/// What the ranks add to, each its value.
struct Gathered {
    struct Phase {
        std::vector<double> total, compute, exposed;
    };
    struct Call {
        std::int64_t calls = 0;
        std::uint64_t bytes = 0;
        std::vector<double> comm, wait;
    };
    std::vector<std::string> phase_order;
    std::map<std::string, Phase> phases;
    std::map<std::string, Call> calls;
    std::map<std::pair<std::string, int>, std::vector<double>> hops;
};

Interval interval_of(Event const& event) {
    return {event.t0_ns, event.t0_ns + event.dur_ns};
}

/// Passes that lie in no other pass, by name.
std::map<std::string, std::vector<Interval>> outer_passes(RankTimeline const& rank,
                                                          std::vector<std::string>& order) {
    std::vector<Event const*> passes;
    for (Event const& event : rank.events) {
        if (event.kind == SpanKind::pass) {
            passes.push_back(&event);
        }
    }
    std::sort(passes.begin(), passes.end(), [](Event const* a, Event const* b) {
        return a->t0_ns != b->t0_ns ? a->t0_ns < b->t0_ns : a->dur_ns > b->dur_ns;
    });
    std::map<std::string, std::vector<Interval>> outer;
    std::int64_t end = 0;
    for (Event const* pass : passes) {
        if (pass->t0_ns + pass->dur_ns > end) {
            end = pass->t0_ns + pass->dur_ns;
            std::string const& name = rank.names[pass->name];
            outer[name].push_back(interval_of(*pass));
            if (std::find(order.begin(), order.end(), name) == order.end()) {
                order.push_back(name);
            }
        }
    }
    return outer;
}

void gather_phases(Gathered& all, RankTimeline const& rank) {
    std::vector<Interval> const compute = intervals_of(rank.events, SpanKind::compute);
    std::vector<Interval> const comm = intervals_of(rank.events, SpanKind::comm);
    std::vector<Interval> const wait = intervals_of(rank.events, SpanKind::wait);
    bool const leaves = !compute.empty();
    for (auto const& [name, intervals] : outer_passes(rank, all.phase_order)) {
        std::vector<Interval> const pass = merged(intervals);
        std::vector<Interval> const calls = intersection(comm, pass);
        std::int64_t const total = length_ns(pass);
        std::int64_t const working =
            leaves ? overlap_ns(pass, compute) : total - overlap_ns(pass, wait);
        std::int64_t const exposed =
            leaves ? length_ns(calls) - overlap_ns(calls, compute) : overlap_ns(calls, wait);
        Gathered::Phase& phase = all.phases[name];
        phase.total.push_back(static_cast<double>(total) * seconds_per_ns);
        phase.compute.push_back(static_cast<double>(working) * seconds_per_ns);
        phase.exposed.push_back(static_cast<double>(exposed) * seconds_per_ns);
    }
}

void gather_calls(Gathered& all, RankTimeline const& rank) {
    std::map<std::string, std::pair<double, double>> own;
    for (Event const& event : rank.events) {
        std::string const& name = rank.names[event.name];
        double const seconds = static_cast<double>(event.dur_ns) * seconds_per_ns;
        if (event.kind == SpanKind::comm) {
            own[name].first += seconds;
            all.calls[name].calls += 1;
            all.calls[name].bytes += event.bytes;
        } else if (event.kind == SpanKind::wait) {
            own[name].second += seconds;
        }
    }
    for (auto const& [name, seconds] : own) {
        all.calls[name].comm.push_back(seconds.first);
        all.calls[name].wait.push_back(seconds.second);
    }
}

/// Waits of exchanges (they have a peer) inside each attention pass, numbered from 0 by label.
void gather_hops(Gathered& all, RankTimeline const& rank) {
    std::vector<Event const*> waits;
    for (Event const& event : rank.events) {
        if (event.kind == SpanKind::wait && event.peer >= 0) {
            waits.push_back(&event);
        }
    }
    std::sort(waits.begin(), waits.end(),
              [](Event const* a, Event const* b) { return a->t0_ns < b->t0_ns; });
    for (Event const& pass : rank.events) {
        std::string_view const name = rank.names[pass.name];
        if (pass.kind != SpanKind::pass || !name.starts_with("layer.attention")) {
            continue;
        }
        std::map<std::string, int> next;
        auto const from = std::lower_bound(
            waits.begin(), waits.end(), pass.t0_ns,
            [](Event const* wait, std::int64_t begin) { return wait->t0_ns < begin; });
        for (auto at = from; at != waits.end() && (*at)->t0_ns < pass.t0_ns + pass.dur_ns; ++at) {
            std::string const& label = rank.names[(*at)->name];
            all.hops[{label, next[label]++}].push_back(static_cast<double>((*at)->dur_ns) *
                                                       seconds_per_ns);
        }
    }
}

void summarize(StepDetail& detail, Gathered const& all) {
    for (std::string const& name : all.phase_order) {
        Gathered::Phase const& phase = all.phases.at(name);
        detail.phases.push_back(
            {name, spread_of(phase.total), spread_of(phase.compute), spread_of(phase.exposed)});
    }
    for (auto const& [label, call] : all.calls) {
        detail.calls.push_back(
            {label, call.calls, call.bytes, spread_of(call.comm), spread_of(call.wait)});
    }
    for (auto const& [key, waits] : all.hops) {
        detail.hops.push_back({key.first, key.second, std::ssize(waits), spread_of(waits)});
    }
}

}  // namespace

StepDetail step_detail(RunData const& run, std::uint32_t step, int most_timelines) {
    std::size_t const row = row_of_step(run, step);
    StepRecord const& record = run.ranks.front().steps[row];
    StepDetail detail;
    detail.step = step;
    detail.variant = variant_of(run.ranks.front(), record);
    detail.block = record.block;
    detail.detail = static_cast<TraceDetail>(record.detail);
    std::size_t const ranks = run.ranks.size();
    auto const kept = std::min<std::size_t>(ranks, static_cast<std::size_t>(most_timelines));
    Gathered all;
    for (std::size_t i = 0; i < ranks; ++i) {
        RankData const& rank = run.ranks[i];
        StepRecord const& own = rank.steps[row];
        detail.seconds = std::max(detail.seconds, static_cast<double>(own.dur_ns) * seconds_per_ns);
        RankTimeline timeline{rank.rank, rank.names, load_events(rank, step)};
        for (Event& event : timeline.events) {
            event.t0_ns -= own.t0_ns;
        }
        gather_phases(all, timeline);
        gather_calls(all, timeline);
        gather_hops(all, timeline);
        if (detail.timelines.size() * ranks <= i * kept && detail.timelines.size() < kept) {
            detail.timelines.push_back(std::move(timeline));
        }
    }
    summarize(detail, all);
    return detail;
}

}  // namespace cpstep
