#include "app/analysis/diff.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "app/analysis/run_data.hpp"
#include "app/analysis/variant_times.hpp"

namespace cpstep {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t diff_seed = 1;

/// A side of the comparison: the file with the tensors and, of a run folder, its times.
struct Side {
    H5File file;
    std::optional<RunData> run;
};

Side open_side(fs::path const& path) {
    if (fs::is_directory(path)) {
        RunData run = load_run(path);
        return {H5File::open(path / "run.h5"), std::move(run)};
    }
    return {H5File::open(path), std::nullopt};
}

std::vector<std::string> variants_of(H5File const& file) {
    return file.exists("/variants") ? file.children("/variants") : std::vector<std::string>{};
}

void require_variant(H5File const& file, fs::path const& path, std::string const& name) {
    std::vector<std::string> const names = variants_of(file);
    require(std::find(names.begin(), names.end(), name) != names.end(), ExitCode::usage,
            "{}: no variant {}; it has {}", path.string(), name,
            names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", ")));
}

using Pairs = std::vector<std::pair<std::string, std::string>>;

Pairs pairs_of(DiffOptions const& options, Side const& a, Side const& b, Difference& out) {
    std::vector<std::string> const& wanted = options.variants;
    if (!wanted.empty()) {
        require_variant(a.file, options.a, wanted.front());
        require_variant(b.file, options.b, wanted.back());
        return {{wanted.front(), wanted.back()}};
    }
    std::vector<std::string> const names_a = variants_of(a.file);
    std::vector<std::string> const names_b = variants_of(b.file);
    if (names_a.empty() && names_b.empty()) {
        return {{"", ""}};
    }
    Pairs pairs;
    for (std::string const& name : names_a) {
        if (std::find(names_b.begin(), names_b.end(), name) != names_b.end()) {
            pairs.emplace_back(name, name);
        } else {
            out.notes.push_back(name + ": only in A");
        }
    }
    for (std::string const& name : names_b) {
        if (std::find(names_a.begin(), names_a.end(), name) == names_a.end()) {
            out.notes.push_back(name + ": only in B");
        }
    }
    require(!pairs.empty(), ExitCode::usage,
            "no variant is in both: {} has {}, {} has {}; name one of each with --variant",
            options.a.string(), fmt::join(names_a, ", "), options.b.string(),
            fmt::join(names_b, ", "));
    return pairs;
}

/// Mean seconds of each block.
std::vector<double> block_means(RunData const& run, std::string const& variant) {
    std::map<int, std::pair<double, int>> blocks;
    for (TimedStep const& step : run.timed) {
        if (step.variant == variant) {
            blocks[step.block].first += step.seconds;
            blocks[step.block].second += 1;
        }
    }
    std::vector<double> means;
    for (auto const& [block, sum] : blocks) {
        means.push_back(sum.first / sum.second);
    }
    return means;
}

json phases_of(RunData const& run, std::string const& name) {
    for (auto const& variant : run.summary.value("variants", json::array())) {
        if (variant.value("name", "") == name && variant.contains("timing")) {
            return variant["timing"].value("rank0_phases_s", json::object());
        }
    }
    return json::object();
}

void compare_times(VariantDifference& out, RunData const& a, RunData const& b, double gate) {
    out.paired = fs::equivalent(a.folder, b.folder);
    if (out.paired) {
        std::vector<double> const ratios = block_log_ratios(a, out.b, out.a);
        if (!ratios.empty()) {
            out.ratio = bootstrap_ratio(ratios, diff_seed);
        }
    } else {
        std::vector<double> const means_a = block_means(a, out.a);
        std::vector<double> const means_b = block_means(b, out.b);
        if (!means_a.empty() && !means_b.empty()) {
            out.ratio = unpaired_ratio(means_a, means_b, diff_seed);
        }
    }
    if (out.ratio) {
        out.gate = judge_gate(*out.ratio, gate);
    }
    json const phases_a = phases_of(a, out.a);
    json const phases_b = phases_of(b, out.b);
    for (auto const& [name, seconds] : phases_a.items()) {
        if (seconds.is_number() && phases_b.contains(name) && phases_b[name].is_number()) {
            out.phases.push_back({name, seconds.get<double>(), phases_b[name].get<double>()});
        }
    }
}

/// In the order of a run's own verdict: not finite, not equal, slower, undecided.
void judge(Difference& out, DiffOptions const& options) {
    auto const set = [&](ExitCode code, std::string const& reason) {
        if (out.code == ExitCode::pass) {
            out.code = code;
            out.reason = reason;
        }
    };
    for (VariantDifference const& variant : out.variants) {
        for (TensorDifference const& tensor : variant.tensors) {
            if (tensor.nonfinite) {
                set(ExitCode::nonfinite,
                    fmt::format("{}: NaN or Inf at {}", tensor.name, tensor.where));
            }
        }
    }
    for (VariantDifference const& variant : out.variants) {
        for (TensorDifference const& tensor : variant.tensors) {
            if (!tensor.fault.empty() || !(tensor.judged <= options.tolerance)) {
                set(ExitCode::parity, tensor.fault.empty()
                                          ? fmt::format("{}: {:.2e} > {:.2e}", tensor.name,
                                                        tensor.judged, options.tolerance)
                                          : tensor.name + ": " + tensor.fault);
            }
        }
    }
    for (VariantDifference const& variant : out.variants) {
        if (options.gate_ratio > 0 && !variant.ratio) {
            set(ExitCode::inconclusive, variant.b + ": no timed steps to hold against the gate");
        }
        if (variant.gate == GateResult::fail) {
            set(ExitCode::performance,
                fmt::format("{}: slower, {:.4f} [{:.4f}, {:.4f}] > {}", variant.b,
                            variant.ratio->ratio, variant.ratio->low, variant.ratio->high,
                            options.gate_ratio));
        }
    }
    for (VariantDifference const& variant : out.variants) {
        if (variant.gate == GateResult::inconclusive) {
            set(ExitCode::inconclusive,
                variant.b + ": the interval of the ratio includes the gate");
        }
    }
    std::int64_t values = 0;
    for (VariantDifference const& variant : out.variants) {
        for (TensorDifference const& tensor : variant.tensors) {
            values += tensor.values;
        }
    }
    if (values == 0) {
        set(ExitCode::inconclusive, "there is nothing to compare");
    }
    if (out.code == ExitCode::pass) {
        out.reason = fmt::format("{} values agree within {:.1e}", values, options.tolerance);
    }
}

}  // namespace

RatioEstimate unpaired_ratio(std::vector<double> const& a, std::vector<double> const& b,
                             std::uint64_t seed) {
    RatioEstimate estimate;
    estimate.ratio = median(b) / median(a);
    estimate.blocks = static_cast<std::int64_t>(std::min(a.size(), b.size()));
    std::mt19937_64 engine(seed);
    auto const resampled = [&](std::vector<double> const& from) {
        std::vector<double> drawn(from.size());
        for (double& value : drawn) {
            value = from[engine() % from.size()];
        }
        return median(drawn);
    };
    std::vector<double> ratios(10000);
    for (double& ratio : ratios) {
        double const base = resampled(a);
        ratio = resampled(b) / base;
    }
    estimate.low = quantile(ratios, 0.025);
    estimate.high = quantile(ratios, 0.975);
    return estimate;
}

Difference compare(DiffOptions const& options) {
    Side const a = open_side(options.a);
    Side const b = open_side(options.b);
    Difference out;
    for (auto const& [name_a, name_b] : pairs_of(options, a, b, out)) {
        VariantDifference variant;
        variant.a = name_a;
        variant.b = name_b;
        auto const group = [](std::string const& name) {
            return name.empty() ? std::string("/") : "/variants/" + name;
        };
        variant.tensors = tensor_differences({a.file, group(name_a)}, {b.file, group(name_b)});
        if (a.run && b.run) {
            compare_times(variant, *a.run, *b.run, options.gate_ratio);
        }
        out.variants.push_back(std::move(variant));
    }
    judge(out, options);
    return out;
}

}  // namespace cpstep
