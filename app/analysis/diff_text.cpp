#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>

#include "app/analysis/diff.hpp"
#include "app/json_number.hpp"

namespace cpstep {
namespace {

using nlohmann::json;

constexpr std::size_t shown_tensors = 20;

bool failed(TensorDifference const& tensor, double tolerance) {
    return !tensor.fault.empty() || !(tensor.judged <= tolerance);
}

/// Failed ones first, then by size.
std::vector<TensorDifference> ordered(std::vector<TensorDifference> tensors, double tolerance) {
    std::stable_sort(tensors.begin(), tensors.end(), [&](auto const& a, auto const& b) {
        bool const fails = failed(a, tolerance);
        return fails != failed(b, tolerance) ? fails : a.judged > b.judged;
    });
    return tensors;
}

void tensor_table(std::string& out, VariantDifference const& variant, double tolerance) {
    std::vector<TensorDifference> const rows = ordered(variant.tensors, tolerance);
    fmt::format_to(std::back_inserter(out), "  {:<46} {:>9} {:>9} {:>9} {:>11}  {}\n", "tensor",
                   "values", "max abs", "rel L2", "max ulp", "largest at");
    for (std::size_t i = 0; i < std::min(rows.size(), shown_tensors); ++i) {
        TensorDifference const& t = rows[i];
        if (t.fault.empty()) {
            fmt::format_to(std::back_inserter(out),
                           "  {:<46} {:>9} {:>9.2e} {:>9.2e} {:>11}  {}{}\n", t.name, t.values,
                           t.max_abs, t.rel_l2, t.max_ulp, t.where,
                           failed(t, tolerance) ? " DIFFERS" : "");
        } else {
            fmt::format_to(std::back_inserter(out), "  {:<46} {} {}\n", t.name, t.fault, t.where);
        }
    }
    if (rows.size() > shown_tensors) {
        auto const more =
            std::count_if(rows.begin() + shown_tensors, rows.end(),
                          [&](TensorDifference const& t) { return failed(t, tolerance); });
        fmt::format_to(std::back_inserter(out), "  ... {} more with smaller differences{}\n",
                       rows.size() - shown_tensors,
                       more > 0 ? fmt::format(", {} of them beyond the tolerance", more) : "");
    }
}

void time_table(std::string& out, VariantDifference const& variant) {
    if (!variant.phases.empty()) {
        fmt::format_to(std::back_inserter(out), "  {:<46} {:>9} {:>9} {:>9}\n",
                       "phase of rank 0, ms", "A", "B", "B/A");
    }
    for (PhaseDifference const& phase : variant.phases) {
        fmt::format_to(std::back_inserter(out), "  {:<46} {:>9.3f} {:>9.3f} {:>9}\n", phase.name,
                       phase.a * 1e3, phase.b * 1e3,
                       phase.a > 0 ? fmt::format("{:.3f}", phase.b / phase.a) : "-");
    }
    if (variant.ratio) {
        fmt::format_to(std::back_inserter(out),
                       "  step time B/A {:.4f}, 95 % interval [{:.4f}, {:.4f}] from {} blocks{}\n",
                       variant.ratio->ratio, variant.ratio->low, variant.ratio->high,
                       variant.ratio->blocks,
                       variant.paired ? ""
                                      : " of runs that were not interleaved: drift between them "
                                        "is not in the interval");
    }
}

char const* gate_text(GateResult gate) {
    switch (gate) {
        case GateResult::pass:
            return "pass";
        case GateResult::fail:
            return "fail";
        case GateResult::inconclusive:
            return "inconclusive";
        case GateResult::off:
            break;
    }
    return "off";
}

char const* verdict_word(ExitCode code) {
    switch (code) {
        case ExitCode::pass:
            return "EQUAL";
        case ExitCode::performance:
            return "SLOWER";
        case ExitCode::inconclusive:
            return "UNDECIDED";
        default:
            return "DIFFERENT";
    }
}

json tensor_json(TensorDifference const& t) {
    return {{"name", t.name},
            {"values", t.values},
            {"max_abs", number(t.max_abs)},
            {"rel_l2", number(t.rel_l2)},
            {"max_ulp", t.max_ulp},
            {"where", t.where},
            {"a", number(t.a)},
            {"b", number(t.b)},
            {"judged", number(t.judged)},
            {"fault", t.fault}};
}

}  // namespace

std::string diff_text(DiffOptions const& options, Difference const& difference, bool colour) {
    std::string out = fmt::format("A: {}\nB: {}\n", options.a.string(), options.b.string());
    for (VariantDifference const& variant : difference.variants) {
        out += variant.a.empty() ? "\n" : fmt::format("\n{} of A, {} of B\n", variant.a, variant.b);
        tensor_table(out, variant, options.tolerance);
        time_table(out, variant);
    }
    out += "\n";
    for (std::string const& note : difference.notes) {
        out += "note: " + note + "\n";
    }
    bool const pass = difference.code == ExitCode::pass;
    std::string const verdict = fmt::format("{} (exit {}): {}", verdict_word(difference.code),
                                            static_cast<int>(difference.code), difference.reason);
    out += "verdict: " +
           (colour ? fmt::format("\033[{}m{}\033[0m", pass ? 32 : 31, verdict) : verdict) + "\n";
    return out;
}

std::string diff_json(DiffOptions const& options, Difference const& difference) {
    json out{{"format", "cpstep-diff"},        {"format_version", 1},
             {"a", options.a.string()},        {"b", options.b.string()},
             {"tolerance", options.tolerance}, {"exit_code", static_cast<int>(difference.code)},
             {"reason", difference.reason},    {"notes", difference.notes},
             {"variants", json::array()}};
    for (VariantDifference const& variant : difference.variants) {
        json entry{{"a", variant.a},           {"b", variant.b},
                   {"tensors", json::array()}, {"phases", json::array()},
                   {"ratio", nullptr},         {"gate", gate_text(variant.gate)}};
        for (TensorDifference const& tensor : variant.tensors) {
            entry["tensors"].push_back(tensor_json(tensor));
        }
        for (PhaseDifference const& phase : variant.phases) {
            entry["phases"].push_back({{"name", phase.name}, {"a_s", phase.a}, {"b_s", phase.b}});
        }
        if (variant.ratio) {
            entry["ratio"] = {{"value", number(variant.ratio->ratio)},
                              {"low", number(variant.ratio->low)},
                              {"high", number(variant.ratio->high)},
                              {"blocks", variant.ratio->blocks},
                              {"paired", variant.paired}};
        }
        out["variants"].push_back(std::move(entry));
    }
    return out.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

}  // namespace cpstep
