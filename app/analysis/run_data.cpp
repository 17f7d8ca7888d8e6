#include "app/analysis/run_data.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "cuda/error.hpp"
#include "io/h5.hpp"

namespace cpstep {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

template <class Record>
std::vector<Record> records_of(std::vector<std::byte> const& bytes) {
    std::vector<Record> records(bytes.size() / sizeof(Record));
    if (!records.empty()) {
        std::memcpy(records.data(), bytes.data(), bytes.size());
    }
    return records;
}

template <class T>
T attribute(H5File const& file, fs::path const& path, char const* name) {
    H5Value const value = file.read_attribute("/", name);
    require(std::holds_alternative<T>(value), ExitCode::input_data,
            "{}: attribute {} has the wrong type", path.string(), name);
    return std::get<T>(value);
}

void require_format(H5File const& file, fs::path const& path, char const* format) {
    require(attribute<std::string>(file, path, "format") == format, ExitCode::input_data,
            "{}: not a {} file", path.string(), format);
    auto const version = attribute<std::int64_t>(file, path, "format_version");
    require(version == 1, ExitCode::input_data,
            "{}: written by a newer tool: its format_version is {}, this one reads 1",
            path.string(), version);
}

/// Rank files of the folder, by name.
std::vector<fs::path> rank_files(fs::path const& folder) {
    std::vector<fs::path> files;
    std::error_code error;
    for (auto const& entry : fs::recursive_directory_iterator(folder / "ranks", error)) {
        if (entry.path().extension() == ".h5") {
            files.push_back(entry.path());
        }
    }
    std::sort(files.begin(), files.end());
    return files;
}

/// Reads every rank file; those of another run than the first, or than `run_id`, are left out.
void load_ranks(RunData& run, std::string run_id) {
    for (fs::path const& file : rank_files(run.folder)) {
        try {
            RankData rank = load_rank(file);
            run_id = run_id.empty() ? rank.run_id : run_id;
            if (rank.run_id != run_id) {
                run.problems.push_back(
                    fmt::format("{}: of another run ({})", file.string(), rank.run_id));
                continue;
            }
            run.world = std::max(run.world, rank.world);
            run.ranks.push_back(std::move(rank));
        } catch (Error const& error) {
            run.problems.emplace_back(error.what());
        }
    }
    require(!run.ranks.empty(), ExitCode::input_data, "{}: no rank file can be read{}{}",
            run.folder.string(), run.problems.empty() ? "" : ": ",
            run.problems.empty() ? "" : run.problems.front());
    std::sort(run.ranks.begin(), run.ranks.end(),
              [](RankData const& a, RankData const& b) { return a.rank < b.rank; });
}

/// Ranks without a file that could be read, as "3-5, 9".
std::string missing_ranks(RunData const& run) {
    std::set<int> present;
    for (RankData const& rank : run.ranks) {
        present.insert(rank.rank);
    }
    std::vector<std::string> parts;
    for (int first = 0; first < run.world; ++first) {
        int last = first;
        while (last < run.world && !present.contains(last)) {
            ++last;
        }
        if (last > first) {
            parts.push_back(last == first + 1 ? std::to_string(first)
                                              : fmt::format("{}-{}", first, last - 1));
            first = last;
        }
    }
    return fmt::format("{}", fmt::join(parts, ", "));
}

/// Steps beyond those that every rank has belong to no comparison of ranks.
void keep_common_steps(RunData& run) {
    std::size_t common = run.ranks.front().steps.size();
    std::size_t most = 0;
    for (RankData const& rank : run.ranks) {
        common = std::min(common, rank.steps.size());
        most = std::max(most, rank.steps.size());
    }
    if (common < most) {
        run.problems.push_back(fmt::format(
            "ranks have {} to {} steps: only the first {} are compared", common, most, common));
    }
    for (RankData& rank : run.ranks) {
        rank.steps.resize(common);
    }
    RankData const& first = run.ranks.front();
    for (StepRecord const& step : first.steps) {
        std::string const& name = variant_of(first, step);
        if (std::find(run.variants.begin(), run.variants.end(), name) == run.variants.end()) {
            run.variants.push_back(name);
        }
    }
    std::string const missing = missing_ranks(run);
    if (!missing.empty()) {
        run.problems.push_back("no file of rank " + missing);
    }
}

/// The run's own times, between a barrier and the end of the step on the slowest rank.
void load_timed_steps(RunData& run, H5File const& file) {
    std::vector<std::string> const variants = file.read_strings("/steps/variant");
    std::vector<std::int64_t> const blocks = file.read_i64("/steps/block");
    std::vector<double> const seconds = file.read_f64("/steps/seconds");
    require(variants.size() == blocks.size() && blocks.size() == seconds.size(),
            ExitCode::input_data, "{}: /steps has columns of unequal length",
            (run.folder / "run.h5").string());
    for (std::size_t i = 0; i < seconds.size(); ++i) {
        if (blocks[i] >= 0) {
            run.timed.push_back({variants[i], static_cast<int>(blocks[i]), seconds[i]});
        }
    }
}

}  // namespace

std::string const& variant_of(RankData const& rank, StepRecord const& step) {
    require(step.variant < rank.names.size(), ExitCode::input_data,
            "{}: /steps: step {} names row {} of /names, which has {}", rank.file.string(),
            step.step, step.variant, rank.names.size());
    return rank.names[step.variant];
}

RankData load_rank(fs::path const& path) {
    H5File const file = H5File::open(path);
    require_format(file, path, "cpstep-trace");
    RankData rank;
    rank.file = path;
    rank.rank = static_cast<int>(attribute<std::int64_t>(file, path, "rank"));
    rank.world = static_cast<int>(attribute<std::int64_t>(file, path, "world"));
    require(rank.rank >= 0 && rank.rank < rank.world, ExitCode::input_data,
            "{}: rank {} of {} ranks", path.string(), rank.rank, rank.world);
    rank.host = attribute<std::string>(file, path, "host");
    rank.run_id = attribute<std::string>(file, path, "run_id");
    rank.names = file.read_strings("/names");
    rank.steps = records_of<StepRecord>(file.read_records("/steps", step_columns()));
    for (StepRecord const& step : rank.steps) {
        (void)variant_of(rank, step);
    }
    return rank;
}

RunData load_run(fs::path const& folder) {
    fs::path const path = folder / "run.h5";
    require(fs::is_directory(folder), ExitCode::input_data, "{}: no such folder", folder.string());
    require(fs::exists(path), ExitCode::input_data,
            "{}: no run.h5: the run did not finish; 'cpstep-report recover {}' reports what was "
            "saved",
            folder.string(), folder.string());
    RunData run;
    run.folder = folder;
    H5File const file = H5File::open(path);
    require_format(file, path, "cpstep-run");
    std::vector<std::string> const text = file.read_strings("/verdict/summary");
    run.summary = json::parse(text.empty() ? "" : text.front(), nullptr, false);
    require(run.summary.is_object(), ExitCode::input_data, "{}: /verdict/summary is not JSON",
            path.string());
    load_ranks(run, attribute<std::string>(file, path, "run_id"));
    keep_common_steps(run);
    load_timed_steps(run, file);
    return run;
}

RunData load_unfinished_run(fs::path const& folder) {
    require(fs::is_directory(folder), ExitCode::input_data, "{}: no such folder", folder.string());
    RunData run;
    run.folder = folder;
    load_ranks(run, "");
    keep_common_steps(run);
    RankData const& first = run.ranks.front();
    for (std::size_t i = 0; i < first.steps.size(); ++i) {
        std::int64_t slowest = 0;
        for (RankData const& rank : run.ranks) {
            slowest = std::max(slowest, rank.steps[i].dur_ns);
        }
        if (first.steps[i].block >= 0) {
            run.timed.push_back({variant_of(first, first.steps[i]), first.steps[i].block,
                                 static_cast<double>(slowest) * 1e-9});
        }
    }
    return run;
}

std::vector<Event> load_events(RankData const& rank, std::uint32_t step) {
    std::int64_t first = 0;
    for (StepRecord const& row : rank.steps) {
        if (row.step == step) {
            H5File const file = H5File::open(rank.file);
            std::vector<Event> events = records_of<Event>(file.read_records(
                "/events", event_columns(), first, static_cast<std::int64_t>(row.events)));
            for (Event const& event : events) {
                require(event.name < rank.names.size() && event.step == step, ExitCode::input_data,
                        "{}: /events: a row of step {} is damaged", rank.file.string(), step);
            }
            return events;
        }
        first += static_cast<std::int64_t>(row.events);
    }
    fail(ExitCode::input_data, "{}: has no step {}", rank.file.string(), step);
}

}  // namespace cpstep
