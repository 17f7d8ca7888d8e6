// Every setting of `cpstep run`: one table drives the command line, CPSTEP_* environment, ini file,
// --help, --dry-run and the /config group of run.h5.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "cuda/adamw.hpp"
#include "cuda/policy_loss.hpp"

namespace cpstep {

/// Where a value came from, in rising precedence.
enum class Origin : std::uint8_t { fallback, file, environment, command_line };

struct ResolvedValue {
    std::string value;  ///< as text, canonical
    Origin origin = Origin::fallback;
    std::string where;  ///< "inputs/smoke.ini:4", "CPSTEP_LR", "command line", "default"
};

struct Options {
    // model and data
    std::filesystem::path hf_checkpoint;  ///< --hf-checkpoint DIR
    std::filesystem::path ref_load;     ///< --ref-load DIR; empty: the policy's own initial weights
    bool init_random = false;           ///< --init checkpoint|random
    std::filesystem::path prompt_data;  ///< --prompt-data FILE.jsonl
    std::string input_key = "input";    ///< --input-key
    bool apply_chat_template = false;
    bool rollout_shuffle = false;
    bool skip_bad = false;               ///< --skip-bad: pass over bad prompt lines
    bool allow_nonfinite = false;        ///< --allow-nonfinite: accept NaN/Inf weights
    std::filesystem::path rollout_file;  ///< --rollout-file FILE.h5
    std::string rollout_source = "synthetic";
    std::int64_t rollout_batch_size = 0;  ///< prompts a rollout; 0: all prompts of the file
    std::int64_t n_samples_per_prompt = 1;
    std::int64_t rollout_max_response_len = 256;
    bool rollout_fixed_response_len = false;  ///< every response has the maximal length
    std::int64_t rollout_prompt_len = 0;  ///< > 0: seeded prompts of this length, no prompt file
    double rollout_noise = 0.02;          ///< std of the off-policy noise on old log-probs
    std::int64_t global_batch_size = 0;   ///< samples a step; 0: all
    std::int64_t seed = 1234;

    // algorithm
    PolicyLossOptions loss;
    bool calculate_per_token_loss = false;
    bool normalize_advantages = false;
    bool rewards_normalization = true;   ///< off with --disable-rewards-normalization
    bool grpo_std_normalization = true;  ///< off with --disable-grpo-std-normalization
    AdamWOptions adamw;                  ///< lr, betas, eps, weight decay
    double clip_grad = 1.0;

    // parallel layout and batching
    std::vector<int> context_parallel_size;  ///< empty: 1 and the world size
    bool use_dynamic_batch_size = false;
    std::int64_t max_tokens_per_gpu = 0;
    bool balance_data = false;
    std::int64_t micro_batch_size = 1;

    // verification and measurement
    int warmup_steps = 2;
    int blocks = 5;             ///< ABBA blocks; 0: no timing
    int block_steps = 1;        ///< steps a variant at each of its two visits of a block
    double gate_ratio = 0.0;    ///< 0: off
    int threads = 0;            ///< a rank; 0: cores / ranks of the host
    double comm_timeout = 120;  ///< seconds

    // output
    std::filesystem::path output = "out";
    bool force = false;
    bool save_gradients = false;  ///< --save gradients,weights
    bool save_weights = false;
    bool quiet = false;
    bool dry_run = false;

    /// Every option by name, for --dry-run, /config and the comparison of ranks.
    std::map<std::string, ResolvedValue> resolved;
    /// Accepted options of the trainer's launcher or rollout engine that have no meaning here.
    std::vector<std::string> not_applicable;
};

/// Parse the arguments after `cpstep run`. Precedence: command line > CPSTEP_* environment >
/// --config ini > default. Unknown, misspelt (nearest name given), duplicated, out of range or
/// contradictory settings: Error(usage), with file:line for the ini.
/// Paths in the ini are relative to the current folder, not to the file.
Options parse_run_options(std::vector<std::string> const& arguments,
                          std::map<std::string, std::string> const& environment);

/// The process environment, CPSTEP_* only.
std::map<std::string, std::string> cpstep_environment();

/// Text of `cpstep run --help`: fits a screen of 100 columns.
std::string run_help();

/// Table of every value with its origin, and the list of options that are not applicable.
std::string describe_options(Options const& options);

/// The differing keys between ranks, one line each ("lr: 1e-06 on ranks 0,1; 2e-06 on rank 2"),
/// empty if none. Each text is rank r's serialize_options().
std::string serialize_options(Options const& options);
std::string options_difference(std::vector<std::string> const& by_rank);

/// Nearest of `names` by edit distance, "" if none is close.
std::string nearest_name(std::string const& name, std::vector<std::string> const& names);

}  // namespace cpstep
