// What tests of whole steps share: samples with every awkward shape, cases, and the comparison of a
// layout with the baseline.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "app/parity.hpp"
#include "app/results.hpp"
#include "app/step.hpp"
#include "tests/mpi_test_main.hpp"

namespace cpstep::test {

inline ModelConfig small_config(bool tied_head, std::int64_t heads = 4, std::int64_t kv_heads = 2) {
    ModelConfig config;
    config.vocab_size = 61;
    config.hidden_size = 32;
    config.intermediate_size = 48;
    config.num_hidden_layers = 2;
    config.num_attention_heads = heads;
    config.num_key_value_heads = kv_heads;
    config.head_dim = 8;
    config.rope_theta = 10000;
    config.tie_word_embeddings = tied_head;
    return config;
}

/// (T, R): ordinary, T < 2 CP, one-token responses, a long prompt that leaves ranks without a
/// response row, and (index 4) a sample whose tokens are all masked.
/// More than the 12 shapes: again from the first.
inline SampleSet edge_samples(bool recorded_old, std::size_t count = 12) {
    std::vector<std::pair<std::int64_t, std::int64_t>> const shapes{
        {29, 17}, {2, 1},   {3, 2},  {70, 1}, {24, 20}, {40, 39},
        {11, 4},  {64, 32}, {17, 9}, {5, 1},  {33, 16}, {12, 7}};
    SampleSet set;
    Rollout& rollout = set.rollout;
    std::uint64_t counter = 0;
    for (std::size_t j = 0; j < count; ++j) {
        auto const [T, R] = shapes[j % shapes.size()];
        for (std::int64_t t = 0; t < T; ++t) {
            rollout.tokens.push_back(static_cast<std::int32_t>(counter_bits(5, 1, counter++) % 61));
        }
        for (std::int64_t t = 0; t < R; ++t) {
            std::uint64_t const bits = counter_bits(5, 2, counter++);
            rollout.loss_mask.push_back(j == 4 ? 0 : (R > 2 && bits % 7 == 0 ? 0 : 1));
            float const guess = -4.1F + 0.3F * static_cast<float>(counter_normal(5, 3, counter));
            rollout.ref_log_probs.push_back(guess);
            rollout.rollout_log_probs.push_back(guess + 0.01F);
            if (recorded_old) {
                rollout.old_log_probs.push_back(guess + 0.05F);
            }
        }
        rollout.token_offsets.push_back(rollout.token_offsets.back() + T);
        rollout.response_offsets.push_back(rollout.response_offsets.back() + R);
        rollout.rewards.push_back(0.1F * static_cast<float>(j * j % 7));
        rollout.groups.push_back(static_cast<std::int32_t>(j / 2));
        set.advantages.push_back(j % 2 == 0 ? -0.8F : 0.9F);
    }
    return set;
}

struct Case {
    Options options;
    SampleSet samples = edge_samples(true);
    ModelConfig config = small_config(true);
};

inline Case gspo_case() {
    Case c;
    c.options.loss.estimator = Estimator::gspo;
    c.options.loss.eps_clip = 0.5;
    c.options.loss.eps_clip_high = 0.5;
    c.options.loss.use_opsm = true;
    c.options.loss.opsm_delta = 0.02;
    c.options.loss.use_kl_loss = true;
    c.options.loss.kl_type = KlType::low_var_kl;
    c.options.loss.kl_loss_coef = 0.1;
    c.options.loss.entropy_coef = 0.01;
    c.options.use_dynamic_batch_size = true;
    c.options.max_tokens_per_gpu = 96;
    return c;
}

inline Case grpo_case() {
    Case c;
    c.options.loss.eps_clip_c = 3.0;
    c.options.loss.use_tis = true;
    c.options.calculate_per_token_loss = true;
    c.options.normalize_advantages = true;
    c.options.micro_batch_size = 2;
    c.config = small_config(false);
    return c;
}

/// "cp4 a2a+p2p 2x2 zigzag scalar"
inline std::string described(CpConfig const& config) {
    std::string const sizes = config.method == CpMethod::a2a_p2p
                                  ? fmt::format(" {}x{}", config.a2a, config.size / config.a2a)
                                  : "";
    return fmt::format("cp{} {}{} {} {}", config.size, name_of(config.method), sizes,
                       name_of(config.layout), name_of(config.loss));
}

/// Everything one process needs to run a case on the ranks of the test.
struct Bench {
    explicit Bench(Case const& c)
        : test_case(c),
          reduction(make_reduction(c.samples.rollout, c.options.calculate_per_token_loss)) {
        weights.resize(layout.size);
        randomize_parameters(layout, 3, weights);
        // Matrices of deviation 0.16 give predictions far from uniform, so that errors are visible.
        // The norms stay 1: scores of O(1) are what the parity bounds are derived for.
        for (Parameter const& parameter : layout.parameters) {
            if (!parameter.spec.vector) {
                auto const part =
                    std::span(weights).subspan(static_cast<std::size_t>(parameter.offset),
                                               static_cast<std::size_t>(parameter.elements()));
                std::ranges::transform(part, part.begin(), [](float w) { return 8 * w; });
            }
        }
    }

    std::unique_ptr<Variant> variant(CpConfig const& config) {
        VariantPlan const plan =
            plan_variant(test_case.options, layout.config, test_case.samples.rollout,
                         test_world().size(), {described(config), config});
        return std::make_unique<Variant>(plan, test_world(), *wires, *backend, trace, layout.config,
                                         test_case.samples.rollout, reduction);
    }

    VariantResult run(Variant& variant) { return run(variant, test_case.samples.rollout); }

    /// `reported` is the rollout the results are gathered for.
    VariantResult run(Variant& variant, Rollout const& reported) {
        TrainStep step(*backend, trace, test_case.options, layout, test_case.samples,
                       capacity_of(variant.batches(), heads_of(layout.config)), weights, {});
        step.prepare(variant);
        step.reset();
        StepMetrics const metrics = step.run(variant);
        return collect_result(test_world(), *backend, step, variant, layout, reported, metrics);
    }

    /// compare_results() of the baseline and itself with every weight moved by one ulp; root only.
    std::vector<Check> noise(Variant& baseline, VariantResult const& base) {
        TrainStep step(*backend, trace, test_case.options, layout, test_case.samples,
                       capacity_of(baseline.batches(), heads_of(layout.config)), weights, {});
        step.prepare(baseline);
        StepMetrics const metrics = step.run_nudged(baseline);
        VariantResult const noisy = collect_result(test_world(), *backend, step, baseline, layout,
                                                   test_case.samples.rollout, metrics);
        return test_world().root()
                   ? compare_results(base, noisy, layout, test_case.samples.rollout,
                                     test_case.options.adamw, test_case.options.clip_grad)
                   : std::vector<Check>{};
    }

    std::vector<Check> compare(VariantResult const& base, VariantResult const& other) {
        auto checks = compare_results(base, other, layout, test_case.samples.rollout,
                                      test_case.options.adamw, test_case.options.clip_grad);
        for (Check const& check : check_result(other)) {
            checks.push_back(check);
        }
        return checks;
    }

    Case test_case;
    Reduction reduction;
    ParameterLayout layout{test_case.config};
    std::vector<float> weights;
    std::unique_ptr<Backend> backend = make_host_backend(1);
    std::unique_ptr<Wires> wires = make_wires(test_world(), *backend, {});
    Trace trace;
};

inline constexpr std::array loss_paths{LossComm::scalar, LossComm::padded, LossComm::gather};

inline void expect_pass(std::vector<Check> const& checks) {
    for (Check const& check : checks) {
        BOOST_TEST(check.pass, check.variant << " " << check.name << ": " << check.measured
                                             << ", bound " << check.bound << " " << check.where);
    }
}

/// Every check of a layout against the baseline, and of its result alone; root only.
inline std::vector<Check> checks_of(VariantResult const& base, Bench& bench,
                                    CpConfig const& config) {
    auto const variant = bench.variant(config);
    VariantResult const other = bench.run(*variant);
    if (!test_world().root()) {
        return {};
    }
    BOOST_TEST(first_nonfinite(other, bench.layout, bench.test_case.samples.rollout).empty());
    auto checks = bench.compare(base, other);
    // Values, metrics and the result alone; a gradient and an update of each tensor.
    BOOST_TEST(checks.size() > 2 * bench.layout.parameters.size());
    return checks;
}

inline void agrees_with(VariantResult const& base, Bench& bench, CpConfig const& config) {
    expect_pass(checks_of(base, bench, config));
}

}  // namespace cpstep::test
