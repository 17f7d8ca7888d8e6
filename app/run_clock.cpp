#include "app/run_clock.hpp"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <sstream>

namespace cpstep {

RunEpoch agree_on_epoch(World& world, std::vector<ClockReading> const& clocks,
                        std::function<std::int64_t()> const& clock) {
    auto const unix_time = std::chrono::system_clock::now().time_since_epoch();
    std::int64_t const unix_now =
        std::chrono::duration_cast<std::chrono::nanoseconds>(unix_time).count();
    RunEpoch epoch;
    std::istringstream(world.broadcast(fmt::format("{} {}", clock(), unix_now))) >> epoch.own_ns >>
        epoch.unix_ns;
    epoch.own_ns -= clocks[static_cast<std::size_t>(world.rank())].offset_ns;
    return epoch;
}

std::vector<RankClock> joined(std::vector<ClockReading> const& start,
                              std::vector<ClockReading> const& end) {
    std::vector<RankClock> clocks;
    for (std::size_t rank = 0; rank < start.size(); ++rank) {
        clocks.push_back({.start = start[rank], .end = end.at(rank)});
    }
    return clocks;
}

std::string clock_line(std::span<RankClock const> clocks) {
    if (clocks.size() < 2) {
        return "";
    }
    auto const worst = std::ranges::max_element(clocks, {}, &RankClock::bound_ns);
    return fmt::format(
        "clock bound: {:.1f} us between any two ranks (rank {}: +- {:.1f} us, drift {:.0f} ppb); "
        "nearer moments have no order\n",
        static_cast<double>(pair_bound_ns(clocks)) * 1e-3, worst - clocks.begin(),
        static_cast<double>(worst->bound_ns()) * 1e-3, worst->drift_ppb());
}

nlohmann::json clock_json(std::span<RankClock const> clocks) {
    nlohmann::json out{{"pair_bound_ns", pair_bound_ns(clocks)},
                       {"ranks", nlohmann::json::array()}};
    for (RankClock const& clock : clocks) {
        out["ranks"].push_back({{"offset_ns", clock.start.offset_ns},
                                {"bound_ns", clock.bound_ns()},
                                {"drift_ppb", clock.drift_ppb()}});
    }
    return out;
}

void write_clocks(H5File& file, std::span<RankClock const> clocks) {
    std::vector<std::int64_t> dims{std::ssize(clocks)};
    auto const write = [&](char const* name, auto const& value_of) {
        std::vector<std::int64_t> values;
        std::ranges::transform(clocks, std::back_inserter(values), value_of);
        file.write(name, std::span<std::int64_t const>(values), dims, "ns");
    };
    using Clock = RankClock const&;
    write("/clock/start_at", [](Clock clock) { return clock.start.at_ns; });
    write("/clock/start_offset", [](Clock clock) { return clock.start.offset_ns; });
    write("/clock/start_bound", [](Clock clock) { return clock.start.bound_ns; });
    write("/clock/end_at", [](Clock clock) { return clock.end.at_ns; });
    write("/clock/end_offset", [](Clock clock) { return clock.end.offset_ns; });
    write("/clock/end_bound", [](Clock clock) { return clock.end.bound_ns; });
    write("/clock/bound", [](Clock clock) { return clock.bound_ns(); });
    std::vector<double> drifts;
    std::ranges::transform(clocks, std::back_inserter(drifts), &RankClock::drift_ppb);
    file.write("/clock/drift", std::span<double const>(drifts), dims, "1e-9");
    file.attribute("/clock", "pair_bound_ns", pair_bound_ns(clocks));
    file.attribute(
        "/clock", "about",
        std::string("a rank's steady clock + offset = rank 0's, to within bound; /events "
                    "of all ranks are on rank 0's time axis by the start's offset"));
}

}  // namespace cpstep
