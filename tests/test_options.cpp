#define BOOST_TEST_MODULE options
#include <stdlib.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <string>

#include "app/option_table.hpp"
#include "app/options.hpp"
#include "options_fixture.hpp"

namespace {

using namespace cpstep;
using namespace cpstep::test;

constexpr char const* kLaunchLine =
    "--train-backend fsdp --actor-num-nodes 1 --actor-num-gpus-per-node 2 --colocate "
    "--hf-checkpoint DIR --ref-load DIR --prompt-data F.jsonl --input-key messages "
    "--apply-chat-template --rollout-shuffle --rollout-num 1 --rollout-batch-size 2 "
    "--n-samples-per-prompt 1 --rollout-max-response-len 1024 --global-batch-size 8 "
    "--advantage-estimator gspo --use-kl-loss --kl-loss-coef 0.00 --kl-loss-type low_var_kl "
    "--entropy-coef 0.00 --optimizer adam --lr 1e-6 --lr-decay-style constant "
    "--weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.98 --tensor-model-parallel-size 1 "
    "--sequence-parallel --pipeline-model-parallel-size 1 --context-parallel-size 2 "
    "--use-dynamic-batch-size --max-tokens-per-gpu 2048 --rollout-num-gpus-per-engine 1 "
    "--ci-test --ci-disable-kl-checker";

}  // namespace

BOOST_AUTO_TEST_CASE(the_trainers_launch_line_is_accepted_as_it_is) {
    Options const options = parse(words(kLaunchLine));
    BOOST_TEST((options.hf_checkpoint == "DIR" && options.ref_load == "DIR"));
    BOOST_TEST((options.prompt_data == "F.jsonl" && options.input_key == "messages"));
    BOOST_TEST((options.apply_chat_template && options.rollout_shuffle));
    BOOST_TEST((options.rollout_batch_size == 2 && options.n_samples_per_prompt == 1));
    BOOST_TEST((options.rollout_max_response_len == 1024 && options.global_batch_size == 8));
    BOOST_TEST((options.loss.estimator == Estimator::gspo && options.loss.use_kl_loss));
    BOOST_TEST((options.loss.kl_type == KlType::low_var_kl));
    BOOST_TEST((options.loss.kl_loss_coef == 0 && options.loss.entropy_coef == 0));
    BOOST_TEST((options.adamw.lr == 1e-6 && options.adamw.weight_decay == 0.1));
    BOOST_TEST((options.adamw.beta1 == 0.9 && options.adamw.beta2 == 0.98));
    BOOST_TEST((options.context_parallel_size == std::vector<int>{1, 2}));
    BOOST_TEST((options.use_dynamic_batch_size && options.max_tokens_per_gpu == 2048));
    BOOST_TEST(options.not_applicable.size() == 9U);
    std::string const table = describe_options(options);
    for (auto const* text :
         {"--train-backend fsdp: ", "--actor-num-nodes 1: ", "--actor-num-gpus-per-node 2: ",
          "--colocate: ", "--rollout-num 1: ", "--rollout-num-gpus-per-engine 1: ", "--ci-test: ",
          "--ci-disable-kl-checker: ", "--sequence-parallel: "}) {
        expect(table, text);
    }
}

BOOST_AUTO_TEST_CASE(applying_every_default_text_changes_nothing) {
    Options const plain;
    Options const options = parse(with());
    Options applied;
    for (OptionSpec const& spec : option_table()) {
        bool const derived = spec.name == "eps-clip-high" || spec.name == "context-parallel-size";
        if (!spec.fallback.empty() && !derived) {
            BOOST_TEST(spec.apply(applied, spec.fallback, spec.name) == spec.fallback);
        }
    }
    for (Options const* o : {&options, static_cast<Options const*>(&applied)}) {
        BOOST_TEST((o->init_random == plain.init_random && o->input_key == plain.input_key));
        BOOST_TEST((o->rollout_source == plain.rollout_source && o->seed == plain.seed));
        BOOST_TEST((o->loss.estimator == plain.loss.estimator));
        BOOST_TEST((o->loss.kl_type == plain.loss.kl_type && !o->loss.eps_clip_c));
        BOOST_TEST(o->loss.eps_clip_high == plain.loss.eps_clip_high);
        BOOST_TEST((o->rewards_normalization && o->grpo_std_normalization));
        BOOST_TEST((o->adamw.beta2 == plain.adamw.beta2 && o->adamw.lr == plain.adamw.lr));
        BOOST_TEST((o->blocks == plain.blocks && o->comm_timeout == plain.comm_timeout));
        BOOST_TEST((o->output == plain.output && o->context_parallel_size.empty()));
        BOOST_TEST((o->cp_comm_type == plain.cp_comm_type && o->cp_layout == plain.cp_layout));
        BOOST_TEST((o->cp_loss_comm == plain.cp_loss_comm && o->variants.empty()));
        BOOST_TEST((o->device == DeviceKind::automatic && o->transport == Transport::automatic));
        BOOST_TEST((!o->precision && o->attention_backend == AttentionBackend::automatic));
        BOOST_TEST((!o->allow_gpu_sharing && o->nccl_max_ctas == 0 && o->threads == 0));
    }
}

BOOST_AUTO_TEST_CASE(each_flag_sets_its_own_member) {
    Options const o = parse(with(
        {"--skip-bad", "--allow-nonfinite", "--rollout-fixed-response-len", "--use-opsm",
         "--use-tis", "--use-unbiased-kl", "--calculate-per-token-loss", "--normalize-advantages",
         "--disable-rewards-normalization", "--disable-grpo-std-normalization", "--balance-data",
         "--force", "--quiet", "--dry-run", "--save", "weights,gradients", "--init=random"}));
    BOOST_TEST((o.skip_bad && o.allow_nonfinite && o.rollout_fixed_response_len));
    BOOST_TEST((o.loss.use_opsm && o.loss.use_tis && o.loss.use_unbiased_kl));
    BOOST_TEST((o.calculate_per_token_loss && o.normalize_advantages && o.balance_data));
    BOOST_TEST((!o.rewards_normalization && !o.grpo_std_normalization));
    BOOST_TEST((o.force && o.quiet && o.dry_run && o.save_gradients && o.save_weights));
    BOOST_TEST((o.init_random && !o.loss.use_kl_loss && !o.use_dynamic_batch_size));
    BOOST_TEST(o.resolved.at("save").value == "gradients,weights");
}

BOOST_AUTO_TEST_CASE(each_number_sets_its_own_member) {
    Options const o = parse(with(
        words("--seed 7 --eps-clip 0.1 --eps-clip-high 0.3 --eps-clip-c 2.5 --opsm-delta 0.004 "
              "--tis-clip 5 --tis-clip-low 0.25 --entropy-coef 0.01 --kl-loss-coef 0.02 --adam-eps "
              "1e-7 --clip-grad 0 --micro-batch-size 3 --warmup-steps 1 --blocks 9 --block-steps 4 "
              "--gate-ratio 1.05 --threads 6 --comm-timeout 2.5 --rollout-noise 0.5")));
    BOOST_TEST((o.seed == 7 && o.micro_batch_size == 3 && o.threads == 6));
    BOOST_TEST((o.loss.eps_clip == 0.1 && o.loss.eps_clip_high == 0.3));
    BOOST_TEST((o.loss.eps_clip_c == 2.5 && o.loss.opsm_delta == 0.004));
    BOOST_TEST((o.loss.tis_clip == 5.0 && o.loss.tis_clip_low == 0.25));
    BOOST_TEST((o.loss.entropy_coef == 0.01 && o.loss.kl_loss_coef == 0.02));
    BOOST_TEST((o.adamw.eps == 1e-7 && o.clip_grad == 0.0));
    BOOST_TEST((o.warmup_steps == 1 && o.blocks == 9 && o.block_steps == 4));
    BOOST_TEST((o.gate_ratio == 1.05 && o.comm_timeout == 2.5 && o.rollout_noise == 0.5));
}

BOOST_AUTO_TEST_CASE(eps_clip_high_follows_eps_clip_unless_given) {
    Options const follows = parse(with({"--eps-clip", "4e-4"}));
    BOOST_TEST(follows.loss.eps_clip_high == 4e-4);
    BOOST_TEST(follows.resolved.at("eps-clip-high").value == "0.0004");
    BOOST_TEST(follows.resolved.at("eps-clip-high").where == "default: eps-clip");
    Options const own = parse(with({"--eps-clip", "0.2", "--eps-clip-high", "0.28"}));
    BOOST_TEST(own.loss.eps_clip_high == 0.28);
}

BOOST_AUTO_TEST_CASE(context_parallel_sizes_always_include_the_baseline) {
    auto const sizes = [](std::string const& text) {
        return parse(with({"--context-parallel-size", text})).context_parallel_size;
    };
    BOOST_TEST((sizes("1") == std::vector<int>{1}));
    BOOST_TEST((sizes("4") == std::vector<int>{1, 4}));
    BOOST_TEST((sizes("4,2,1") == std::vector<int>{1, 2, 4}));
    BOOST_TEST(parse(with()).resolved.at("context-parallel-size").value == "1,WORLD");
    for (auto const* bad : {"0", "2,2", "1,,2", "2,", "two", "-1", "1.5"}) {
        expect(refused({"--context-parallel-size", bad}), "--context-parallel-size: ");
    }
}

BOOST_AUTO_TEST_CASE(command_line_beats_environment_beats_file_beats_default) {
    IniFolder const folder;
    std::string const file = folder.ini(
        "\xEF\xBB\xBF# settings\nlr = 3e-6\n  seed=5   ; five\n\r\nblocks = 7 # odd\n"
        "use-tis = yes\nuse-opsm = on\noutput = a#b\n");
    Options const o =
        parse(with({"--config", file, "--lr", "1e-5"}),
              {{"CPSTEP_LR", "2e-5"}, {"CPSTEP_SEED", "6"}, {"CPSTEP_USE_OPSM", "0"}});
    BOOST_TEST((o.adamw.lr == 1e-5 && o.seed == 6 && o.blocks == 7));
    BOOST_TEST((o.loss.use_tis && !o.loss.use_opsm && o.output == "a#b"));
    auto const from = [&o](std::string const& name, Origin origin, std::string const& where) {
        ResolvedValue const& value = o.resolved.at(name);
        return value.origin == origin && value.where == where;
    };
    BOOST_TEST(o.resolved.at("lr").value == "1e-05");
    BOOST_TEST(from("lr", Origin::command_line, "command line"));
    BOOST_TEST(from("seed", Origin::environment, "CPSTEP_SEED"));
    BOOST_TEST(from("blocks", Origin::file, file + ":5"));
    BOOST_TEST(from("warmup-steps", Origin::fallback, "default"));
    BOOST_TEST(o.resolved.size() == option_table().size());
    BOOST_TEST(parse(with(), {{"CPSTEP_CONFIG", file}}).seed == 5);
}

BOOST_AUTO_TEST_CASE(command_line_mistakes_are_named) {
    expect(refused({"--use-tiss"}), "unknown option '--use-tiss'; did you mean '--use-tis'?");
    expect(refused({"--eps_clip", "0.1"}), "did you mean '--eps-clip'?");
    expect(refused({"--eps_clip=0.1"}), "did you mean '--eps-clip'?");
    expect(refused({"--zzzzzzzz"}), "cpstep run --help");
    expect(refused({"--context-parallel", "2"}), "unknown option");
    expect(refused({"extra"}), "unexpected argument 'extra'");
    expect(refused({"-x"}), "unexpected argument '-x'");
    expect(refused({"--force", "true"}), "unexpected argument 'true'");
    expect(refused({"--force=true"}), "'--force' is a flag");
    expect(refused({"--lr", "1", "--lr", "1"}), "'--lr' is given twice");
    expect(refused({"--force", "--force"}), "'--force' is given twice");
    expect(refused({"--lr"}), "option '--lr' needs a value (X)");
    expect(refused({"--lr="}), "'--lr'");
    expect(refused({"--output", "--force"}), "option '--output' needs a value");
    expect(refused({"--output", ""}), "--output: the value is empty");
    expect(refused({"--output", "--", "x"}), "--output");
}

BOOST_AUTO_TEST_CASE(values_that_are_not_numbers_or_out_of_range_are_refused) {
    for (auto const* bad : {"1e30", "1.5", "5ms", "", "+3", "0x10", "99999999999999999999", "-1",
                            "3000000000", "nan", "1 "}) {
        expect(refused({"--blocks", bad}), "--blocks");
    }
    for (auto const* bad : {"5ms", "", "nan", "inf", "-inf", "1e400", "1,5", "-1e-6", "2"}) {
        expect(refused({"--lr", bad}), "--lr");
    }
    expect(refused({"--blocks", "1e30"}), "'1e30' is not an integer");
    expect(refused({"--lr", "5ms"}), "'5ms' is not a number");
    expect(refused({"--lr", "nan"}), "'nan' is not a finite number");
    expect(refused({"--adam-beta1", "1"}), "must be in [0, 1)");
    expect(refused({"--eps-clip-c", "1"}), "must be more than 1");
    expect(refused({"--eps-clip", "1.5"}), "must be in [0, 1]");
    expect(refused({"--tis-clip", "0"}), "must be more than 0");
    expect(refused({"--comm-timeout", "0"}), "out of range");
    expect(refused({"--rollout-max-response-len", "0"}), "out of range");
}

BOOST_AUTO_TEST_CASE(choices_name_what_is_available) {
    expect(refused({"--advantage-estimator", "ppo"}),
           "'ppo' is not available; choose from: grpo, gspo, cispo");
    expect(refused({"--device", "gpu"}), "choose from: auto, cuda, cpu");
    expect(refused({"--cp-comm-type", "ring"}), "choose from: p2p, all_gather, a2a, a2a+p2p");
    expect(refused({"--save", "weights,loss"}), "'loss' is not available");
    expect(refused({"--save", "weights,weights"}), "twice");
    expect(refused({"--tensor-model-parallel-size", "2"}), "only context and data parallelism");
    expect(refused({"--pipeline-model-parallel-size", "4"}), "only context and data parallelism");
    expect(refused({"--attention-dropout", "0.1"}), "without dropout");
    BOOST_TEST(parse(with({"--hidden-dropout", "0.0"})).not_applicable.size() == 1U);
}

BOOST_AUTO_TEST_CASE(processor_and_wires_are_chosen_by_name) {
    auto const parsed = [](std::string const& line) { return parse(with(words(line))); };
    Options const o = parsed(
        "--device cuda --transport ipc --precision bf16 --attention-backend cudnn "
        "--allow-gpu-sharing --nccl-max-ctas 4");
    BOOST_TEST((o.device == DeviceKind::cuda && o.transport == Transport::ipc));
    BOOST_TEST((o.precision == Precision::bf16 && o.allow_gpu_sharing && o.nccl_max_ctas == 4));
    BOOST_TEST((o.attention_backend == AttentionBackend::cudnn));
    BOOST_TEST((parsed("--transport nccl").transport == Transport::nccl));
    BOOST_TEST((parsed("--transport mpi").transport == Transport::mpi));
    BOOST_TEST((parsed("--transport auto").transport == Transport::automatic));
    BOOST_TEST((parsed("--precision fp32").precision == Precision::fp32));
    BOOST_TEST(!parsed("--precision auto").precision.has_value());
    BOOST_TEST((parsed("--device cpu --precision fp32").device == DeviceKind::cpu));
    BOOST_TEST(
        (parsed("--attention-backend reference").attention_backend == AttentionBackend::reference));
    // The trainer's own names of its backends are not ours.
    for (auto const* backend : {"flash", "fused", "unfused", "local"}) {
        expect(refused({"--attention-backend", backend}),
               "choose from: auto, cudnn, mma, reference");
    }
    expect(refused({"--transport", "tcp"}), "choose from: auto, nccl, ipc, mpi");
    expect(refused({"--precision", "fp16"}), "choose from: auto, bf16, fp32");
    expect(refused({"--nccl-max-ctas", "-1"}), "--nccl-max-ctas");
}

BOOST_AUTO_TEST_CASE(what_the_host_cannot_do_is_refused_with_the_reason) {
    expect(refused({"--device", "cpu", "--precision", "bf16"}),
           "--precision bf16 needs a GPU (--device cpu): the host computes in fp32 only");
    expect(refused({"--device", "cpu"}, {{"CPSTEP_TRANSPORT", "nccl"}}),
           "--transport (CPSTEP_TRANSPORT) nccl needs a GPU (--device cpu); leave it out");
    expect(refused({"--device", "cpu", "--attention-backend", "cudnn"}),
           "--attention-backend cudnn needs a GPU");
    expect(refused({"--attention-backend", "cudnn", "--precision", "fp32"}),
           "--attention-backend cudnn computes in bf16 only");
    expect(refused({"--attention-backend", "mma", "--precision", "fp32"}),
           "--attention-backend mma computes in bf16 only");
    parse(with({"--device", "cpu", "--transport", "mpi", "--attention-backend", "reference"}));
    Options const open = parse(with({"--precision", "bf16", "--transport", "ipc"}));
    expect(usage_error([&] { require_host_settings(open, "none here: no driver"); }),
           "--precision bf16 needs a GPU (none here: no driver)");
}

BOOST_AUTO_TEST_CASE(processor_settings_take_part_in_the_comparison_of_ranks_and_in_the_dry_run) {
    Options const given = parse(with({"--precision", "fp32", "--allow-gpu-sharing"}));
    std::string const difference =
        options_difference({serialize_options(parse(with())), serialize_options(given)});
    expect(difference, "precision: auto on rank 0; fp32 on rank 1");
    expect(difference, "allow-gpu-sharing: false on rank 0; true on rank 1");
    std::string const table = describe_options(given);
    for (auto const* name : {"device ", "transport ", "precision ", "attention-backend ",
                             "allow-gpu-sharing ", "nccl-max-ctas "}) {
        expect(table, std::string("\n") + name);
    }
}

BOOST_AUTO_TEST_CASE(ini_mistakes_carry_file_and_line) {
    expect(ini_error("lr = 1e-6\nlrr = 2\n"), "a.ini:2: unknown key 'lrr'; did you mean 'lr'?");
    expect(ini_error("seed = 1\n\nlr = 1\nseed = 2\n"), "a.ini:4: 'seed' is already set in line 1");
    expect(ini_error("\nblocks = 1e30\n"), "a.ini:2: blocks: '1e30' is not an");
    expect(ini_error("comm-timeout = 5ms"), "a.ini:1: comm-timeout: '5ms' is not a");
    expect(ini_error("lr = nan"), "a.ini:1: lr: 'nan'");
    expect(ini_error("lr ="), "a.ini:1: lr: ''");
    expect(ini_error("adam-beta1 = 2"), "a.ini:1: adam-beta1: 2 is out of range");
    expect(ini_error("use-tis = maybe"), "a.ini:1: use-tis: 'maybe' is not true");
    expect(ini_error("[run]\nlr = 1"), "a.ini:1: sections are not used");
    expect(ini_error("force"), "a.ini:1: 'force' is not of the form 'key = value'");
    expect(ini_error("config = b.ini"), "a.ini:1: an ini file cannot name another");
    expect(ini_error(""), "a.ini:1: the file holds no settings");
    expect(ini_error("# nothing\n\n"), "a.ini:1: the file holds no settings");
    expect(ini_error(std::string("\0\1\2", 3)), "a.ini:1: ");
    // A wrong value counts even where the command line overrides it.
    IniFolder const folder;
    expect(refused({"--lr", "1e-6", "--config", folder.ini("lr = fast")}), "a.ini:1: lr: 'fast'");
}

BOOST_AUTO_TEST_CASE(an_ini_that_cannot_be_read_is_an_error) {
    IniFolder const folder;
    expect(refused({"--config", (folder.path / "none.ini").string()}), "none.ini'");
    expect(refused({"--config", folder.path.string()}), "is a folder");
    std::string const file = folder.ini("lr = 1e-6\n");
    if (geteuid() != 0) {
        std::filesystem::permissions(file, std::filesystem::perms::none);
        expect(refused({"--config", file}), "cannot read");
    }
}

BOOST_AUTO_TEST_CASE(environment_mistakes_are_named) {
    expect(refused({}, {{"CPSTEP_USE_TISS", "1"}}),
           "unknown environment variable CPSTEP_USE_TISS; did you mean "
           "'CPSTEP_USE_TIS'?");
    expect(refused({}, {{"CPSTEP_lr", "1"}}), "'CPSTEP_LR'");
    expect(refused({}, {{"CPSTEP_LR", ""}}), "CPSTEP_LR: ''");
    expect(refused({}, {{"CPSTEP_FORCE", "2"}}), "CPSTEP_FORCE: '2'");
    BOOST_TEST(parse(with(), {{"HOME", "/"}, {"CPSTEP_USE_KL_LOSS", "TRUE"}}).loss.use_kl_loss);
}

BOOST_AUTO_TEST_CASE(the_process_environment_is_filtered_by_prefix) {
    setenv("CPSTEP_LR", "1e-4=x", 1);
    setenv("OTHER_CPSTEP_LR", "1", 1);
    Environment const environment = cpstep_environment();
    unsetenv("CPSTEP_LR");
    unsetenv("OTHER_CPSTEP_LR");
    BOOST_TEST(environment.at("CPSTEP_LR") == "1e-4=x");
    BOOST_TEST(environment.count("OTHER_CPSTEP_LR") == 0U);
}

BOOST_AUTO_TEST_CASE(contradictions_say_what_to_change) {
    Arguments const model{"--hf-checkpoint", "model"};
    auto const error = [&](Arguments more) {
        more.insert(more.begin(), model.begin(), model.end());
        return error_of(more);
    };
    expect(error_of({}), "--hf-checkpoint is missing");
    expect(error({}), "give one of --rollout-file, --prompt-data");
    expect(error({"--rollout-file", "a", "--prompt-data", "b"}),
           "--rollout-file and --prompt-data exclude each other");
    expect(error({"--rollout-prompt-len", "8", "--prompt-data", "b"}), "exclude each other");
    expect(error({"--rollout-prompt-len", "8"}), "needs --rollout-batch-size");
    expect(error({"--prompt-data", "a", "--global-batch-size", "9", "--n-samples-per-prompt", "2"}),
           "--global-batch-size 9 is not a multiple of --n-samples-per-prompt 2");
    expect(refused({"--use-dynamic-batch-size"}), "--max-tokens-per-gpu");
    expect(refused({"--tis-clip", "1", "--tis-clip-low", "2"}),
           "--tis-clip-low 2 is above --tis-clip 1");
    expect(refused({"--gate-ratio", "1.05", "--blocks", "0"}), "at least 3 blocks");
    expect(refused({}, {{"CPSTEP_USE_DYNAMIC_BATCH_SIZE", "1"}}),
           "--use-dynamic-batch-size (CPSTEP_USE_DYNAMIC_BATCH_SIZE)");
    Options const seeded =
        parse({"--hf-checkpoint", "m", "--rollout-prompt-len", "8", "--rollout-batch-size", "4",
               "--global-batch-size", "8", "--n-samples-per-prompt", "2"});
    BOOST_TEST(seeded.rollout_prompt_len == 8);
}

BOOST_AUTO_TEST_CASE(a_flag_switched_off_is_not_listed_as_not_applicable) {
    BOOST_TEST(parse(with(), {{"CPSTEP_COLOCATE", "0"}}).not_applicable.empty());
    BOOST_TEST(parse(with(), {{"CPSTEP_COLOCATE", "1"}}).not_applicable.size() == 1U);
}

BOOST_AUTO_TEST_CASE(help_fits_a_screen_and_names_every_option) {
    std::string const help = run_help();
    std::vector<std::string> const lines = lines_of(help);
    BOOST_TEST(lines.size() <= 60U);
    for (std::string const& line : lines) {
        BOOST_TEST(line.size() <= 100U, line);
    }
    for (OptionSpec const& spec : option_table()) {
        expect(help + " ", "--" + spec.name);
    }
}

BOOST_AUTO_TEST_CASE(describe_shows_every_value_with_its_origin) {
    Options const options = parse(with({"--lr", "2e-6"}), {{"CPSTEP_SEED", "3"}});
    std::vector<std::string> const lines = lines_of(describe_options(options));
    auto const line_of = [&](std::string const& name) {
        for (std::string const& line : lines) {
            if (line.starts_with(name + " ")) {
                return line;
            }
        }
        return std::string();
    };
    for (OptionSpec const& spec : option_table()) {
        BOOST_TEST(line_of(spec.name).empty() != spec.applicable, spec.name);
    }
    expect(line_of("lr"), " 2e-06 ");
    expect(line_of("lr"), "command line");
    expect(line_of("seed"), "CPSTEP_SEED");
    expect(line_of("blocks"), "default");
    BOOST_TEST(line_of("lr").find("command line") == line_of("seed").find("CPSTEP_SEED"));
}

BOOST_AUTO_TEST_CASE(equal_settings_on_all_ranks_have_no_difference) {
    std::string const a = serialize_options(parse(with({"--lr", "1e-6"})));
    std::string const b = serialize_options(parse(with(), {{"CPSTEP_LR", "0.000001"}}));
    BOOST_TEST(options_difference({a, b, a}).empty());
    BOOST_TEST(options_difference({a}).empty());
    BOOST_TEST(lines_of(a).size() == option_table().size());
}

BOOST_AUTO_TEST_CASE(differing_settings_name_the_ranks) {
    std::string const a = serialize_options(parse(with({"--lr", "1e-6"})));
    std::string const b = serialize_options(parse(with({"--lr", "2e-6"})));
    std::string const c = serialize_options(parse(with({"--lr", "2e-6", "--save", "weights"})));
    BOOST_TEST(options_difference({a, a, b}) == "lr: 1e-06 on ranks 0,1; 2e-06 on rank 2\n");
    BOOST_TEST(options_difference({b, b, b, c, b}) ==
               "save: (unset) on ranks 0-2,4; weights on rank 3\n");
    BOOST_TEST(options_difference({"x=1\ny=2\n", "x=1\n"}) ==
               "y: 2 on rank 0; (absent) on rank 1\n");
}

BOOST_AUTO_TEST_CASE(a_line_break_in_a_value_stays_in_its_line) {
    std::string const text = serialize_options(parse(with({"--output", "a\nlr=5"})));
    BOOST_TEST(lines_of(text).size() == option_table().size());
}

BOOST_AUTO_TEST_CASE(the_nearest_name_is_close_or_none) {
    std::vector<std::string> const names{"lr", "food", "eps-clip", "eps-clip-high"};
    BOOST_TEST(nearest_name("foo", names) == "food");
    BOOST_TEST(nearest_name("ofod", names) == "food");
    BOOST_TEST(nearest_name("rl", names) == "lr");
    BOOST_TEST(nearest_name("epsclip", names) == "eps-clip");
    BOOST_TEST(nearest_name("eps-clip-higher", names) == "eps-clip-high");
    BOOST_TEST(nearest_name("xy", names).empty());
    BOOST_TEST(nearest_name("context", names).empty());
    BOOST_TEST(nearest_name("", names).empty());
    BOOST_TEST(nearest_name("lr", {}).empty());
}

BOOST_AUTO_TEST_CASE(option_names_and_their_variables_are_unique) {
    std::map<std::string, int> count;
    for (OptionSpec const& spec : option_table()) {
        BOOST_TEST(++count[spec.name] == 1, spec.name);
        BOOST_TEST(++count[environment_name(spec.name)] == 1, spec.name);
        BOOST_TEST(find_option(spec.name) == &spec);
    }
    BOOST_TEST(environment_name("eps-clip-high") == "CPSTEP_EPS_CLIP_HIGH");
    BOOST_TEST(find_option("none") == nullptr);
}
