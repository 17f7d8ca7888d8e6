#include "app/options.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <utility>

#include "app/option_table.hpp"
#include "cuda/error.hpp"

namespace cpstep {
namespace {

constexpr std::size_t kScreenColumns = 100;
/// Fewer blocks have no spread for a confidence interval.
constexpr int kGateBlocks = 3;

void apply_settings(Options& options, std::vector<Setting> const& settings) {
    for (Setting const& setting : settings) {
        ResolvedValue& known = options.resolved.at(setting.spec->name);
        // A mention adds to those of its own source and replaces those of the sources below.
        bool const adds = setting.spec->repeatable && known.origin == setting.origin;
        std::string const text = adds ? known.value + ";" + setting.text : setting.text;
        std::string where = setting.where;
        if (adds && setting.origin == Origin::file) {  // "a.ini:4,5"
            where = known.where + "," + where.substr(where.rfind(':') + 1);
        }
        known = {setting.spec->apply(options, text, setting.label), setting.origin,
                 std::move(where)};
    }
}

bool is_given(Options const& options, std::string const& name) {
    return options.resolved.at(name).origin != Origin::fallback;
}

void fill_dependent_defaults(Options& options) {
    if (!is_given(options, "eps-clip-high")) {
        options.loss.eps_clip_high = options.loss.eps_clip;
        options.resolved["eps-clip-high"] = {options.resolved.at("eps-clip").value,
                                             Origin::fallback, "default: eps-clip"};
    }
}

/// "'--lr' (a.ini:4)": the setting a contradiction is about, with its place if not the command
/// line.
std::string named(Options const& options, std::string const& name) {
    ResolvedValue const& value = options.resolved.at(name);
    return value.origin == Origin::command_line ? fmt::format("--{}", name)
                                                : fmt::format("--{} ({})", name, value.where);
}

void check_data_source(Options const& options) {
    require(!options.hf_checkpoint.empty(), ExitCode::usage,
            "--hf-checkpoint is missing: name the Hugging Face folder of the model (with --init "
            "random only its config.json is used)");
    std::vector<std::string> sources;
    for (auto const* name : {"rollout-file", "prompt-data"}) {
        if (is_given(options, name)) {
            sources.push_back(named(options, name));
        }
    }
    if (options.rollout_prompt_len > 0) {
        sources.push_back(named(options, "rollout-prompt-len"));
    }
    require(!sources.empty(), ExitCode::usage,
            "no data: give one of --rollout-file, --prompt-data, --rollout-prompt-len");
    require(sources.size() == 1, ExitCode::usage, "{} exclude each other: keep one",
            fmt::join(sources, " and "));
    require(options.rollout_prompt_len == 0 || options.rollout_batch_size > 0, ExitCode::usage,
            "{} needs --rollout-batch-size: without a prompt file it sets the number of prompts",
            named(options, "rollout-prompt-len"));
    require(!options.rollout_file.empty() ||
                options.global_batch_size % options.n_samples_per_prompt == 0,
            ExitCode::usage, "{} {} is not a multiple of {} {}: a step takes whole prompts",
            named(options, "global-batch-size"), options.global_batch_size,
            named(options, "n-samples-per-prompt"), options.n_samples_per_prompt);
}

void check_combinations(Options const& options) {
    bool const built_in = options.self_test && options.hf_checkpoint.empty();
    if (!built_in) {
        check_data_source(options);
    }
    require(!options.use_dynamic_batch_size || options.max_tokens_per_gpu > 0, ExitCode::usage,
            "{} needs --max-tokens-per-gpu, the size of a pack",
            named(options, "use-dynamic-batch-size"));
    require(options.loss.tis_clip_low <= options.loss.tis_clip, ExitCode::usage,
            "{} {} is above {} {}: lower the first or raise the second",
            named(options, "tis-clip-low"), options.loss.tis_clip_low, named(options, "tis-clip"),
            options.loss.tis_clip);
    require(options.gate_ratio == 0 || options.blocks >= kGateBlocks, ExitCode::usage,
            "{} needs at least {} blocks for a confidence interval: raise {} {} or set the gate to "
            "0",
            named(options, "gate-ratio"), kGateBlocks, named(options, "blocks"), options.blocks);
}

void check_processor_settings(Options const& options) {
    if (options.device == DeviceKind::cpu) {
        require_host_settings(options, fmt::format("{} cpu", named(options, "device")));
    }
    require(options.attention_backend == AttentionBackend::automatic ||
                options.attention_backend == AttentionBackend::reference ||
                options.precision != Precision::fp32,
            ExitCode::usage, "{} {} computes in bf16 only: leave it out or leave out {} fp32",
            named(options, "attention-backend"), options.resolved.at("attention-backend").value,
            named(options, "precision"));
}

void list_not_applicable(Options& options) {
    for (OptionSpec const& spec : option_table()) {
        ResolvedValue const& value = options.resolved.at(spec.name);
        bool const off = spec.kind == OptionKind::flag && value.value == "false";
        if (spec.applicable || value.origin == Origin::fallback || off) {
            continue;
        }
        std::string const text = spec.kind == OptionKind::flag ? "" : " " + value.value;
        options.not_applicable.push_back(fmt::format("--{}{}: {}", spec.name, text, spec.help));
    }
}

/// "0,1" or "0-5,7": runs of three and more are joined.
std::string rank_list(std::vector<std::size_t> const& ranks) {
    std::vector<std::string> parts;
    for (std::size_t i = 0; i < ranks.size();) {
        std::size_t end = i + 1;
        while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) {
            ++end;
        }
        if (end - i >= 3) {
            parts.push_back(fmt::format("{}-{}", ranks[i], ranks[end - 1]));
        } else {
            for (std::size_t k = i; k < end; ++k) {
                parts.push_back(fmt::format("{}", ranks[k]));
            }
        }
        i = end;
    }
    return fmt::format("{} {}", ranks.size() == 1 ? "rank" : "ranks", fmt::join(parts, ","));
}

std::map<std::string, std::string> parse_serialized(std::string const& text) {
    std::map<std::string, std::string> values;
    for (std::size_t begin = 0; begin < text.size();) {
        std::size_t const end = std::min(text.find('\n', begin), text.size());
        std::string const line = text.substr(begin, end - begin);
        std::size_t const equals = std::min(line.find('='), line.size());
        values[line.substr(0, equals)] = equals < line.size() ? line.substr(equals + 1) : "";
        begin = end + 1;
    }
    return values;
}

std::string help_cell(OptionSpec const& spec) {
    std::string cell = "--" + spec.name;
    if (spec.kind != OptionKind::flag) {
        cell += " " + spec.metavar;
    }
    if (!spec.help.empty()) {
        cell += "  " + spec.help;
    }
    if (spec.kind != OptionKind::flag && !spec.fallback.empty() && spec.fallback != spec.metavar) {
        cell += " [" + spec.fallback + "]";
    }
    return cell;
}

/// Two short cells share a line.
std::string help_section(std::vector<std::string> const& cells) {
    constexpr std::size_t half = kScreenColumns / 2 - 1;
    std::string text;
    for (std::size_t i = 0; i < cells.size(); ++i) {
        bool const pair =
            i + 1 < cells.size() && cells[i].size() < half && cells[i + 1].size() < half;
        text += pair ? fmt::format("  {:<{}}{}\n", cells[i], half, cells[i + 1])
                     : fmt::format("  {}\n", cells[i]);
        i += pair ? 1 : 0;
    }
    return text;
}

/// Words in lines of the screen's width.
std::string wrapped(std::vector<std::string> const& words) {
    std::string text = " ";
    std::size_t column = 1;
    for (std::string const& word : words) {
        if (column + 1 + word.size() > kScreenColumns) {
            text += "\n ";
            column = 1;
        }
        text += " " + word;
        column += 1 + word.size();
    }
    return text + "\n";
}

}  // namespace

Options parse_run_options(std::vector<std::string> const& arguments,
                          std::map<std::string, std::string> const& environment) {
    std::vector<Setting> const from_line = read_command_line(arguments);
    std::vector<Setting> const from_environment = read_environment(environment);
    Options options;
    for (OptionSpec const& spec : option_table()) {
        options.resolved[spec.name] = {spec.fallback, Origin::fallback, "default"};
    }
    std::string config;
    for (auto const* settings : {&from_environment, &from_line}) {
        for (Setting const& setting : *settings) {
            config = setting.spec->name == "config" ? setting.text : config;
        }
    }
    if (!config.empty()) {
        apply_settings(options, read_ini(config));
    }
    apply_settings(options, from_environment);
    apply_settings(options, from_line);
    fill_dependent_defaults(options);
    check_combinations(options);
    check_processor_settings(options);
    list_not_applicable(options);
    return options;
}

void require_host_settings(Options const& options, std::string const& why) {
    require(
        options.precision != Precision::bf16, ExitCode::usage,
        "{} bf16 needs a GPU ({}): the host computes in fp32 only, and bf16 emulated on it would "
        "show neither the rounding nor the speed of a GPU; leave it out or take fp32",
        named(options, "precision"), why);
    for (auto const& [name, fits] :
         {std::pair("attention-backend",
                    options.attention_backend == AttentionBackend::automatic ||
                        options.attention_backend == AttentionBackend::reference),
          std::pair("transport", options.transport == Transport::automatic ||
                                     options.transport == Transport::mpi)}) {
        require(fits, ExitCode::usage, "{} {} needs a GPU ({}); leave it out", named(options, name),
                options.resolved.at(name).value, why);
    }
}

std::map<std::string, std::string> cpstep_environment() {
    std::map<std::string, std::string> result;
    for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
        std::string const text = *entry;
        std::size_t const equals = text.find('=');
        if (text.starts_with("CPSTEP_") && equals != std::string::npos) {
            result[text.substr(0, equals)] = text.substr(equals + 1);
        }
    }
    return result;
}

std::string run_help() {
    std::string text =
        "usage: mpirun -n RANKS cpstep run --hf-checkpoint DIR DATA [options]\n"
        "DATA is one of --prompt-data, --rollout-file, --rollout-prompt-len. Precedence: command "
        "line,\n"
        "CPSTEP_* environment (CPSTEP_LR, CPSTEP_USE_TIS=1), --config file, default [in "
        "brackets].\n";
    std::vector<std::string> ignored;
    std::vector<std::string> cells;
    auto const& table = option_table();
    for (std::size_t i = 0; i < table.size(); ++i) {
        if (!table[i].applicable) {
            ignored.push_back("--" + table[i].name);
            continue;
        }
        cells.push_back(help_cell(table[i]));
        if (i + 1 == table.size() || table[i + 1].section != table[i].section) {
            text += table[i].section + ":\n" + help_section(cells);
            cells.clear();
        }
    }
    return text + "Accepted from a trainer's launch line, without effect here:\n" +
           wrapped(ignored);
}

std::string describe_options(Options const& options) {
    struct Row {
        std::string name, value, origin;
    };
    std::vector<Row> rows{{"option", "value", "origin"}};
    for (OptionSpec const& spec : option_table()) {
        auto const found = options.resolved.find(spec.name);
        if (spec.applicable && found != options.resolved.end()) {
            std::string const& value = found->second.value;
            rows.push_back({spec.name, value.empty() ? "-" : value, found->second.where});
        }
    }
    std::size_t name_width = 0;
    std::size_t value_width = 0;
    for (Row const& row : rows) {
        name_width = std::max(name_width, row.name.size());
        value_width = std::max(value_width, row.value.size());
    }
    // One long path must not push every origin off the screen.
    value_width = std::min<std::size_t>(value_width, 40);
    std::string text;
    for (Row const& row : rows) {
        text += fmt::format("{:<{}}  {:<{}}  {}\n", row.name, name_width, row.value, value_width,
                            row.origin);
    }
    if (!options.not_applicable.empty()) {
        text += fmt::format("not applicable:\n  {}\n", fmt::join(options.not_applicable, "\n  "));
    }
    return text;
}

std::string serialize_options(Options const& options) {
    std::string text;
    for (auto const& [name, value] : options.resolved) {
        text += name + "=";
        for (char const c : value.value) {
            text += c == '\n' ? std::string("\\n") : std::string(1, c);  // one line an option
        }
        text += '\n';
    }
    return text;
}

std::string options_difference(std::vector<std::string> const& by_rank) {
    std::vector<std::map<std::string, std::string>> ranks;
    std::set<std::string> names;
    for (std::string const& text : by_rank) {
        ranks.push_back(parse_serialized(text));
        for (auto const& [name, value] : ranks.back()) {
            names.insert(name);
        }
    }
    std::string difference;
    for (std::string const& name : names) {
        std::vector<std::pair<std::string, std::vector<std::size_t>>> groups;  // by first rank
        for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
            auto const found = ranks[rank].find(name);
            std::string value = found == ranks[rank].end() ? "(absent)" : found->second;
            value = value.empty() ? "(unset)" : value;
            auto group = std::find_if(groups.begin(), groups.end(),
                                      [&](auto const& g) { return g.first == value; });
            if (group == groups.end()) {
                group = groups.insert(groups.end(), {value, {}});
            }
            group->second.push_back(rank);
        }
        if (groups.size() < 2) {
            continue;
        }
        std::vector<std::string> parts;
        for (auto const& [value, members] : groups) {
            parts.push_back(fmt::format("{} on {}", value, rank_list(members)));
        }
        difference += fmt::format("{}: {}\n", name, fmt::join(parts, "; "));
    }
    return difference;
}

}  // namespace cpstep
