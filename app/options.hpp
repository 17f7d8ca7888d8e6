// Every setting of `cpstep run`: one table drives the command line, CPSTEP_* environment, ini file,
// --help, --dry-run and the /config group of run.h5.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "app/cp_config.hpp"
#include "app/nearest_name.hpp"
#include "cuda/adamw.hpp"
#include "cuda/cuda_device.hpp"
#include "cuda/policy_loss.hpp"
#include "io/trace.hpp"
#include "mpi/wires.hpp"

namespace cpstep {

/// Where a value came from, in rising precedence.
enum class Origin : std::uint8_t { fallback, file, environment, command_line };

struct ResolvedValue {
    std::string value;  ///< as text, canonical
    Origin origin = Origin::fallback;
    std::string where;  ///< "inputs/smoke.ini:4", "CPSTEP_LR", "command line", "default"
};

/// Factors of a CP size for a2a+p2p, each above 1.
struct HierarchicalSizes {
    int a2a = 0;  ///< adjacent ranks that scatter heads among each other
    int p2p = 0;  ///< ranks of a ring

    std::int64_t product() const { return std::int64_t{a2a} * p2p; }
    friend bool operator==(HierarchicalSizes const&, HierarchicalSizes const&) = default;
};

/// Where a rank computes; automatic: on CUDA where this process sees a device.
enum class DeviceKind : std::uint8_t { automatic, cuda, cpu };

/// One --variant; variant_specs() fills in what it leaves out.
struct NamedVariant {
    std::string name;
    std::optional<int> size;
    std::optional<CpMethod> method;
    std::optional<LossComm> loss;
    std::optional<CpLayout> layout;
    std::optional<HierarchicalSizes> hierarchical;
    std::optional<TraceDetail> trace_detail;
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
    std::vector<CpMethod> cp_comm_type{CpMethod::p2p};
    std::vector<LossComm> cp_loss_comm{LossComm::scalar};
    std::vector<CpLayout> cp_layout{CpLayout::zigzag};
    std::optional<HierarchicalSizes> hierarchical;  ///< --hierarchical-context-parallel-sizes
    std::vector<NamedVariant> variants;  ///< --variant; empty: all combinations of the lists
    bool use_dynamic_batch_size = false;
    std::int64_t max_tokens_per_gpu = 0;
    bool balance_data = false;
    std::int64_t micro_batch_size = 1;

    // processor and wires
    DeviceKind device = DeviceKind::automatic;
    Transport transport = Transport::automatic;
    std::optional<Precision> precision;  ///< none: bf16 on CUDA, fp32 on the host
    AttentionBackend attention_backend = AttentionBackend::automatic;
    bool allow_gpu_sharing = false;  ///< several ranks may compute on one GPU
    int nccl_max_ctas = 0;           ///< SMs an NCCL call takes at most; 0: NCCL's choice
    int threads = 0;                 ///< of the host, a rank; 0: cores / ranks of the host

    // verification and measurement
    int warmup_steps = 2;
    int blocks = 5;                           ///< ABBA blocks; 0: no timing
    std::optional<TraceDetail> trace_detail;  ///< of timed steps; none: the processor's
    int block_steps = 1;        ///< steps a variant at each of its two visits of a block
    double gate_ratio = 0.0;    ///< 0: off
    double comm_timeout = 120;  ///< seconds
    bool self_test = false;     ///< plant known bugs and see whether the verdict finds them

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
/// contradictory settings: Error(usage), with file:line for the ini. A source that names variants
/// replaces all variants of the sources below it.
/// Paths in the ini are relative to the current folder, not to the file.
Options parse_run_options(std::vector<std::string> const& arguments,
                          std::map<std::string, std::string> const& environment);

/// Error(usage) for a setting that needs a GPU where `why` there is none to compute on.
void require_host_settings(Options const& options, std::string const& why);

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

}  // namespace cpstep
