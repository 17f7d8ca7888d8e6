#include "app/analysis/saved.hpp"

#include <fmt/format.h>

#include <cmath>
#include <iterator>

#include "cuda/error.hpp"
#include "io/h5.hpp"

namespace cpstep {
namespace {

/// A shard is NaN until it is written, as a whole.
void count_shards(SavedRank& saved, H5File const& file) {
    if (!file.exists("/tensors")) {
        return;
    }
    for (std::string const& variant : file.children("/tensors")) {
        std::string const base = "/tensors/" + variant;
        for (std::string const& name : file.children(base)) {
            std::string path = base;
            path.append("/").append(name);
            if (name != "response_index" && file.dims(path).at(0) > 0) {
                ++saved.shards;
                saved.shards_written += std::isnan(file.read_f64(path, 0, 1).front()) ? 0 : 1;
            }
        }
    }
}

bool alike(SavedRank const& a, SavedRank const& b) {
    return a.steps == b.steps && a.last == b.last && a.shards_written == b.shards_written &&
           (a.loose_events > 0) == (b.loose_events > 0);
}

}  // namespace

SavedRank saved_rank(RankData const& rank) {
    RankData const whole = load_rank(rank.file);  // `rank` may have been cut to what all ranks have
    H5File const file = H5File::open(rank.file);
    SavedRank saved{.rank = rank.rank, .steps = std::ssize(whole.steps), .last = "no step"};
    for (StepRecord const& step : whole.steps) {
        saved.events += static_cast<std::int64_t>(step.events);
    }
    saved.loose_events = file.dims("/events").at(0) - saved.events;
    count_shards(saved, file);
    if (!whole.steps.empty()) {
        StepRecord const& last = whole.steps.back();
        saved.last = fmt::format(
            "last: step {}, {}, {}", std::uint32_t{last.step}, variant_of(whole, last),
            last.block < 0 ? "not timed" : fmt::format("block {}", std::int32_t{last.block}));
    }
    return saved;
}

std::string saved_text(RunData const& run, std::size_t most_lines) {
    std::string out = fmt::format("{}: {} of {} rank files can be read\n", run.folder.string(),
                                  run.ranks.size(), run.world);
    std::vector<SavedRank> ranks;
    for (RankData const& rank : run.ranks) {
        ranks.push_back(saved_rank(rank));
    }
    std::size_t lines = 0;
    for (std::size_t from = 0; from < ranks.size();) {
        std::size_t to = from;
        std::int64_t events = 0;
        std::int64_t loose = 0;
        while (to < ranks.size() && alike(ranks[from], ranks[to])) {
            events += ranks[to].events;
            loose += ranks[to++].loose_events;
        }
        if (lines++ == most_lines) {
            fmt::format_to(std::back_inserter(out), "... and {} more ranks\n", ranks.size() - from);
            break;
        }
        SavedRank const& first = ranks[from];
        fmt::format_to(std::back_inserter(out), "{}: {} steps, {} events, {} of {} shards; {}{}\n",
                       to - from == 1 ? fmt::format("rank {}", first.rank)
                                      : fmt::format("ranks {}-{}", first.rank, ranks[to - 1].rank),
                       first.steps, events, first.shards_written, first.shards, first.last,
                       loose > 0 ? fmt::format("; {} events of an unfinished step", loose) : "");
        from = to;
    }
    return out;
}

}  // namespace cpstep
