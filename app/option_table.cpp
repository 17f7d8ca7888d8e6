#include "app/option_table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "app/option_kinds.hpp"
#include "app/option_variants.hpp"

namespace cpstep {
namespace {

using namespace option_kinds;

/// Token counts: positions and tokens are 32-bit.
constexpr double kMaxTokens = 1 << 30;

std::string apply_context_parallel(Options& options, std::string const& value,
                                   std::string const& label) {
    std::vector<int> sizes;
    for (std::string const& item : split_list(value, label)) {
        sizes.push_back(static_cast<int>(
            parse_in_range<std::int64_t>(item, label, {.low = 1, .high = 1 << 20})));
    }
    std::sort(sizes.begin(), sizes.end());
    require(std::adjacent_find(sizes.begin(), sizes.end()) == sizes.end(), ExitCode::usage,
            "{}: '{}' names a size twice", label, value);
    if (sizes.front() != 1) {
        sizes.insert(sizes.begin(), 1);  // the baseline of every comparison
    }
    options.context_parallel_size = sizes;
    return fmt::format("{}", fmt::join(sizes, ","));
}

std::vector<std::string> const saved_arrays{"gradients", "weights"};

std::string apply_save(Options& options, std::string const& value, std::string const& label) {
    options.save_gradients = options.save_weights = false;
    for (std::string const& item : split_list(value, label)) {
        bool const weights = choice_index(item, saved_arrays, label) == 1;
        bool& target = weights ? options.save_weights : options.save_gradients;
        require(!target, ExitCode::usage, "{}: '{}' names {} twice", label, value, item);
        target = true;
    }
    return options.save_gradients && options.save_weights ? "gradients,weights" : value;
}

OptionSpec list(std::string name, std::string help, std::string fallback,
                std::string (*apply)(Options&, std::string const&, std::string const&)) {
    OptionSpec spec = make_spec(std::move(name), OptionKind::list, "LIST", std::move(help));
    spec.fallback = std::move(fallback);
    spec.apply = apply;
    return spec;
}

std::vector<OptionSpec> model_options() {
    OptionSpec config =
        make_spec("config", OptionKind::text, "FILE",
                  "ini file: 'key = value', names as below; paths relative to the current folder");
    config.apply = [](Options&, std::string const& value, std::string const& label) {
        require(!value.empty(), ExitCode::usage, "{}: the value is empty", label);
        return value;
    };
    return {
        config,
        text("hf-checkpoint", "DIR",
             "Hugging Face folder: config.json, tokenizer, weights; required",
             &Options::hf_checkpoint),
        text("ref-load", "DIR", "reference; else initial weights", &Options::ref_load),
        choice("init", "weights", {"checkpoint", "random"},
               [](Options& o, std::size_t i) { o.init_random = i == 1; }),
        integer("seed", "of every random draw", kNotNegative, &Options::seed),
        flag("allow-nonfinite", "accept NaN and Inf weights", &Options::allow_nonfinite),
    };
}

std::vector<OptionSpec> rollout_options() {
    return {
        text("prompt-data", "FILE", "prompts, JSON lines", &Options::prompt_data),
        text("input-key", "KEY", "field of a line", &Options::input_key),
        flag("apply-chat-template", "messages as ChatML", &Options::apply_chat_template),
        flag("rollout-shuffle", "seeded prompt order", &Options::rollout_shuffle),
        text("rollout-file", "FILE", "recorded samples (HDF5)", &Options::rollout_file),
        flag("skip-bad", "pass over bad prompt lines", &Options::skip_bad),
        integer("rollout-prompt-len", "seeded prompts of N tokens in place of a prompt file",
                {.high = kMaxTokens}, &Options::rollout_prompt_len),
        choice("rollout-source", "seeded responses", {"synthetic"},
               [](Options& o, std::size_t) { o.rollout_source = "synthetic"; }),
        integer("rollout-batch-size", "prompts, 0: all", kNotNegative,
                &Options::rollout_batch_size),
        integer("n-samples-per-prompt", "responses", kFromOne, &Options::n_samples_per_prompt),
        integer("global-batch-size", "samples, 0: all", kNotNegative, &Options::global_batch_size),
        integer("rollout-max-response-len", "tokens", {.low = 1, .high = kMaxTokens},
                &Options::rollout_max_response_len),
        flag("rollout-fixed-response-len", "all of that length",
             &Options::rollout_fixed_response_len),
        real("rollout-noise", "standard deviation of old log-probs around the current policy's",
             {.high = 10}, &Options::rollout_noise),
    };
}

std::vector<OptionSpec> algorithm_options() {
    auto const loss = [](auto PolicyLossOptions::* member) {
        return [member](Options& o) -> auto& { return o.loss.*member; };
    };
    auto const loss_flag = [](bool PolicyLossOptions::* member) {
        return [member](Options& o, bool value) { o.loss.*member = value; };
    };
    OptionSpec high = real("eps-clip-high", "ratio up to 1+X", kNotNegative,
                           loss(&PolicyLossOptions::eps_clip_high));
    high.fallback = "eps-clip";
    return {
        choice("advantage-estimator", "", {"grpo", "gspo", "cispo"},
               [](Options& o, std::size_t i) { o.loss.estimator = static_cast<Estimator>(i); }),
        real("eps-clip", "ratio from 1-X", kUnit, loss(&PolicyLossOptions::eps_clip)),
        high,
        real("eps-clip-c", "dual clip, above 1", {.low = 1, .low_open = true},
             loss(&PolicyLossOptions::eps_clip_c)),
        flag("use-opsm", "off-policy sequence masking", loss_flag(&PolicyLossOptions::use_opsm)),
        real("opsm-delta", "sequence KL bound", kNotNegative, loss(&PolicyLossOptions::opsm_delta)),
        flag("use-tis", "importance sampling weight", loss_flag(&PolicyLossOptions::use_tis)),
        real("tis-clip", "upper bound of the weight", kPositive,
             loss(&PolicyLossOptions::tis_clip)),
        real("tis-clip-low", "lower bound", kNotNegative, loss(&PolicyLossOptions::tis_clip_low)),
        flag("use-kl-loss", "KL to the reference", loss_flag(&PolicyLossOptions::use_kl_loss)),
        real("kl-loss-coef", "its factor", kNotNegative, loss(&PolicyLossOptions::kl_loss_coef)),
        choice("kl-loss-type", "form", {"k1", "k2", "k3", "low_var_kl"},
               [](Options& o, std::size_t i) { o.loss.kl_type = static_cast<KlType>(i); }),
        flag("use-unbiased-kl", "weighted KL", loss_flag(&PolicyLossOptions::use_unbiased_kl)),
        real("entropy-coef", "entropy bonus", kNotNegative, loss(&PolicyLossOptions::entropy_coef)),
        flag("calculate-per-token-loss", "mean over all tokens",
             &Options::calculate_per_token_loss),
        flag("normalize-advantages", "whiten over the batch", &Options::normalize_advantages),
        flag("disable-rewards-normalization", "no group mean",
             [](Options& o, bool value) { o.rewards_normalization = !value; }),
        flag("disable-grpo-std-normalization", "no group std",
             [](Options& o, bool value) { o.grpo_std_normalization = !value; }),
    };
}

std::vector<OptionSpec> optimizer_options() {
    auto const adam = [](double AdamWOptions::* member) {
        return [member](Options& o) -> double& { return o.adamw.*member; };
    };
    return {
        fixed("optimizer", "AdamW", {"adam"}),
        real("lr", "learning rate", kUnit, adam(&AdamWOptions::lr)),
        fixed("lr-decay-style", "", {"constant"}),
        real("weight-decay", "decoupled", kUnit, adam(&AdamWOptions::weight_decay)),
        real("adam-beta1", "first moment", kBelowOne, adam(&AdamWOptions::beta1)),
        real("adam-beta2", "second moment", kBelowOne, adam(&AdamWOptions::beta2)),
        real("adam-eps", "denominator", {.high = 1, .low_open = true}, adam(&AdamWOptions::eps)),
        real("clip-grad", "global norm, 0: off", kNotNegative, &Options::clip_grad),
    };
}

std::string apply_hierarchical(Options& options, std::string const& value,
                               std::string const& label) {
    options.hierarchical = parse_factors(value, ',', label);
    return value;
}

std::vector<OptionSpec> layout_options() {
    std::string const reason = "only context and data parallelism are covered";
    OptionSpec hierarchical =
        list("hierarchical-context-parallel-sizes",
             "for a2a+p2p, of the CP size that is their product", "", apply_hierarchical);
    hierarchical.metavar = "A2A,P2P";
    hierarchical.takes_two_words = true;
    OptionSpec variant =
        list("variant", "repeatable, beside cp1; keys: the five above, trace-detail", "",
             apply_variants);
    variant.metavar = "NAME[:KEY=VALUE,...]";
    variant.repeatable = true;
    return {
        list("context-parallel-size", "sizes to compare, e.g. 1,2,4; 1 is always in", "1,WORLD",
             apply_context_parallel),
        choice_list("cp-comm-type", cp_method_names, &Options::cp_comm_type),
        choice_list("cp-loss-comm", loss_comm_names, &Options::cp_loss_comm),
        choice_list("cp-layout", cp_layout_names, &Options::cp_layout),
        hierarchical,
        variant,
        must_be("tensor-model-parallel-size", 1, "must be 1", reason),
        must_be("pipeline-model-parallel-size", 1, "must be 1", reason),
        flag("use-dynamic-batch-size", "pack by tokens", &Options::use_dynamic_batch_size),
        integer("max-tokens-per-gpu", "a pack", kNotNegative, &Options::max_tokens_per_gpu),
        flag("balance-data", "even out tokens over ranks", &Options::balance_data),
        integer("micro-batch-size", "samples, if not packed", kFromOne, &Options::micro_batch_size),
    };
}

std::vector<OptionSpec> processor_options() {
    return {
        choice("device", "auto: cuda if any", {"auto", "cuda", "cpu"},
               [](Options& o, std::size_t i) { o.device = static_cast<DeviceKind>(i); }),
        flag("allow-gpu-sharing", "several ranks on one GPU", &Options::allow_gpu_sharing),
        choice("precision", "bf16 on cuda", {"auto", "bf16", "fp32"},
               [](Options& o, std::size_t i) {
                   o.precision = i == 0   ? std::nullopt
                                 : i == 1 ? std::optional(Precision::bf16)
                                          : std::optional(Precision::fp32);
               }),
        choice("attention-backend", "", {"auto", "cudnn", "mma", "reference"},
               [](Options& o, std::size_t i) {
                   o.attention_backend = static_cast<AttentionBackend>(i);
               }),
        choice("transport", "the wire", {"auto", "nccl", "ipc", "mpi"},
               [](Options& o, std::size_t i) { o.transport = static_cast<Transport>(i); }),
        integer("nccl-max-ctas", "SMs, 0: NCCL's choice", {.high = 1024}, &Options::nccl_max_ctas),
        integer("threads", "a rank, 0: cores / ranks", {.high = 4096}, &Options::threads),
        real("comm-timeout", "seconds", {.high = 86400, .low_open = true}, &Options::comm_timeout),
    };
}

std::vector<OptionSpec> measurement_options() {
    return {
        integer("warmup-steps", "untimed", kNotNegative, &Options::warmup_steps),
        integer("blocks", "ABBA blocks, 0: no timing", kNotNegative, &Options::blocks),
        integer("block-steps", "steps a visit", kFromOne, &Options::block_steps),
        real("gate-ratio", "largest time ratio, 0: off", kNotNegative, &Options::gate_ratio),
        choice("trace-detail", "of timed steps", {"auto", "layers", "passes", "off"},
               [](Options& o, std::size_t i) {
                   o.trace_detail =
                       i == 0 ? std::nullopt : std::optional(static_cast<TraceDetail>(i - 1));
               }),
    };
}

std::vector<OptionSpec> output_options() {
    OptionSpec save = list("save", "of gradients,weights", "", apply_save);
    save.choices = saved_arrays;
    return {
        text("output", "DIR", "results", &Options::output),
        flag("force", "overwrite a finished run", &Options::force),
        save,
        flag("quiet", "only the verdict", &Options::quiet),
        flag("dry-run", "print settings and plan, then stop", &Options::dry_run),
        flag("self-test", "plant known CP bugs", &Options::self_test),
    };
}

std::vector<OptionSpec> ignored_options() {
    std::string const launcher = "concerns the trainer's launcher; ranks are those of mpirun";
    std::string const engine = "concerns the rollout engine; there is none here";
    std::string const reward = "concerns reward computation; rewards come with the rollout";
    std::string const one_step = "one rollout is verified";
    std::string const dropout = "the compared steps run without dropout";
    std::vector<OptionSpec> table{
        ignored(OptionKind::text, "train-backend", "the step is computed by this program"),
        ignored(OptionKind::integer, "actor-num-nodes", launcher),
        ignored(OptionKind::integer, "actor-num-gpus-per-node", launcher),
        ignored(OptionKind::integer, "num-gpus-per-node", launcher),
        ignored(OptionKind::flag, "colocate", launcher),
        ignored(OptionKind::integer, "rollout-num", one_step),
        ignored(OptionKind::integer, "num-rollout", one_step),
        ignored(OptionKind::integer, "rollout-num-gpus", engine),
        ignored(OptionKind::integer, "rollout-num-gpus-per-engine", engine),
        ignored(OptionKind::real, "rollout-temperature", engine),
        ignored(OptionKind::real, "sglang-mem-fraction-static", engine),
        ignored(OptionKind::flag, "ci-test", "concerns the trainer's own tests"),
        ignored(OptionKind::flag, "ci-disable-kl-checker", "concerns the trainer's own tests"),
        ignored(OptionKind::flag, "sequence-parallel", "no effect at tensor parallel size 1"),
        ignored(OptionKind::text, "rm-type", reward),
        ignored(OptionKind::text, "label-key", reward),
        ignored(OptionKind::integer, "log-probs-chunk-size", "log-probs are not chunked"),
        ignored(OptionKind::text, "megatron-to-hf-mode", "Hugging Face weights are read directly"),
        must_be("attention-dropout", 0, dropout, dropout),
        must_be("hidden-dropout", 0, dropout, dropout),
    };
    for (OptionSpec& spec : table) {
        spec.applicable = false;
    }
    return table;
}

std::vector<OptionSpec> build_table() {
    std::vector<OptionSpec> table;
    auto const add = [&table](std::string const& section, std::vector<OptionSpec> specs) {
        for (OptionSpec& spec : specs) {
            spec.section = section;
            table.push_back(std::move(spec));
        }
    };
    add("Model", model_options());
    add("Rollout", rollout_options());
    add("Algorithm", algorithm_options());
    add("Optimizer", optimizer_options());
    add("Layout and batching", layout_options());
    add("Processor and wires", processor_options());
    add("Measurement", measurement_options());
    add("Output", output_options());
    add("Accepted, not applicable", ignored_options());
    return table;
}

}  // namespace

std::vector<OptionSpec> const& option_table() {
    static std::vector<OptionSpec> const table = build_table();
    return table;
}

OptionSpec const* find_option(std::string const& name) {
    auto const& table = option_table();
    auto const found = std::find_if(table.begin(), table.end(),
                                    [&](OptionSpec const& spec) { return spec.name == name; });
    return found == table.end() ? nullptr : &*found;
}

}  // namespace cpstep
