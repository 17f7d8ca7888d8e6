#define BOOST_TEST_MODULE step
#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "app/parity.hpp"
#include "app/results.hpp"
#include "app/step.hpp"
#include "tests/close.hpp"
#include "tests/mpi_test_main.hpp"

using namespace cpstep;
using cpstep::test::test_world;

namespace {

ModelConfig small_config(bool tied_head) {
    ModelConfig config;
    config.vocab_size = 61;
    config.hidden_size = 32;
    config.intermediate_size = 48;
    config.num_hidden_layers = 2;
    config.num_attention_heads = 4;
    config.num_key_value_heads = 2;
    config.head_dim = 8;
    config.rope_theta = 10000;
    config.tie_word_embeddings = tied_head;
    return config;
}

/// (T, R): ordinary, T < 2 CP, one-token responses, a long prompt that leaves ranks without a
/// response row, and (index 4) a sample whose tokens are all masked.
SampleSet edge_samples(bool recorded_old) {
    std::vector<std::pair<std::int64_t, std::int64_t>> const shapes{
        {29, 17}, {2, 1},   {3, 2},  {70, 1}, {24, 20}, {40, 39},
        {11, 4},  {64, 32}, {17, 9}, {5, 1},  {33, 16}, {12, 7}};
    SampleSet set;
    Rollout& rollout = set.rollout;
    std::uint64_t counter = 0;
    for (std::size_t j = 0; j < shapes.size(); ++j) {
        auto const [T, R] = shapes[j];
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
    bool tied_head = true;
};

Case gspo_case() {
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

Case grpo_case() {
    Case c;
    c.options.loss.eps_clip_c = 3.0;
    c.options.loss.use_tis = true;
    c.options.calculate_per_token_loss = true;
    c.options.normalize_advantages = true;
    c.options.micro_batch_size = 2;
    c.tied_head = false;
    return c;
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

    std::unique_ptr<Variant> variant(int cp, LossComm loss = LossComm::scalar) {
        VariantPlan const plan = plan_variant(
            test_case.options, layout.config, test_case.samples.rollout, test_world().size(),
            {fmt::format("cp{} {}", cp, name_of(loss)), {.size = cp, .loss = loss}});
        return std::make_unique<Variant>(plan, test_world(), *backend, trace, layout.config,
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
    ParameterLayout layout{small_config(test_case.tied_head)};
    std::vector<float> weights;
    std::unique_ptr<Backend> backend = make_host_backend(1);
    Trace trace;
};

constexpr std::array loss_paths{LossComm::scalar, LossComm::padded, LossComm::gather};

void agrees_with(VariantResult const& base, Bench& bench, Variant& variant) {
    VariantResult const other = bench.run(variant);
    if (!test_world().root()) {
        return;
    }
    BOOST_TEST(first_nonfinite(other, bench.layout, bench.test_case.samples.rollout).empty());
    for (Check const& check : bench.compare(base, other)) {
        BOOST_TEST(check.pass, check.variant << " " << check.name << ": " << check.measured
                                             << ", bound " << check.bound << " " << check.where);
    }
}

void every_layout_agrees(Case const& c) {
    Bench bench(c);
    auto const first = bench.variant(1);
    VariantResult const base = bench.run(*first);
    BOOST_TEST(base.metrics.grad_norm > 0.0);
    for (int const cp : valid_cp_sizes(test_world().size())) {
        for (LossComm const loss : loss_paths) {
            agrees_with(base, bench, *bench.variant(cp, loss));
        }
    }
}

void gradient_is_the_slope_of_the_loss(Case const& c, LossComm loss) {
    Bench bench(c);
    auto const variant = bench.variant(test_world().size(), loss);
    VariantResult const at = bench.run(*variant);
    std::vector<float> direction = at.gradients;
    direction.resize(bench.layout.size);
    std::string text(reinterpret_cast<char const*>(direction.data()),
                     direction.size() * sizeof(float));
    text = test_world().broadcast(text);
    std::memcpy(direction.data(), text.data(), text.size());
    double const norm = at.metrics.grad_norm;
    double const step = 2e-3;
    auto const loss_at = [&](double distance) {
        std::vector<float> const kept = bench.weights;
        for (std::size_t i = 0; i < direction.size(); ++i) {
            bench.weights[i] += static_cast<float>(distance * direction[i] / norm);
        }
        double const loss = bench.run(*variant).metrics.loss;
        bench.weights = kept;
        return loss;
    };
    double const slope = (loss_at(step) - loss_at(-step)) / (2 * step);
    // Truncation is O(step^2), float rounding of the loss about 1e-7 / step.
    BOOST_TEST(test::within(slope, norm, 5e-3, 0));
}

}  // namespace

BOOST_AUTO_TEST_CASE(gspo_with_opsm_kl_and_entropy_agrees_in_every_layout) {
    every_layout_agrees(gspo_case());
}

BOOST_AUTO_TEST_CASE(grpo_per_token_with_tis_and_whitening_agrees_in_every_layout) {
    every_layout_agrees(grpo_case());
}

BOOST_AUTO_TEST_CASE(gspo_with_tis_agrees_in_every_layout) {
    Case c = gspo_case();
    c.options.loss.use_tis = true;
    c.options.loss.use_opsm = false;
    every_layout_agrees(c);
}

BOOST_AUTO_TEST_CASE(cispo_agrees_in_every_layout) {
    Case c = grpo_case();
    c.options.loss.estimator = Estimator::cispo;
    every_layout_agrees(c);
}

BOOST_AUTO_TEST_CASE(old_and_reference_passes_agree_in_every_layout) {
    Case c = gspo_case();
    c.samples = edge_samples(false);
    c.samples.rollout.ref_log_probs.clear();
    c.samples.synthetic_old = true;
    for (std::int64_t i = 0; i < c.samples.rollout.response_tokens(); ++i) {
        c.samples.old_noise.push_back(0.05F * static_cast<float>(counter_normal(9, 1, i)));
        c.samples.rollout_noise.push_back(0.01F * static_cast<float>(counter_normal(9, 2, i)));
    }
    every_layout_agrees(c);
}

BOOST_AUTO_TEST_CASE(local_positions_in_rope_are_caught) {
    int const world = test_world().size();
    if (world == 1) {
        return;
    }
    Bench bench(gspo_case());
    auto const first = bench.variant(1);
    VariantResult const base = bench.run(*first);
    for (LossComm const loss : loss_paths) {
        auto const faulty = bench.variant(world, loss);
        for (std::size_t i = 0; i < faulty->batches().size(); ++i) {
            std::vector<std::int32_t> positions(faulty->batches()[i].positions.size());
            std::iota(positions.begin(), positions.end(), 0);
            bench.backend->upload(faulty->buffers()[i].positions, positions.data());
        }
        VariantResult const other = bench.run(*faulty);
        if (test_world().root()) {
            auto const checks = bench.compare(base, other);
            BOOST_TEST(std::ranges::count(checks, false, &Check::pass) > 10);
        }
    }
}

BOOST_AUTO_TEST_CASE(an_extra_collective_is_off_budget) {
    int const world = test_world().size();
    if (world == 1) {
        return;
    }
    Bench bench(gspo_case());
    Buffer const extra(*bench.backend, 1, 1, DType::f32);
    bench.backend->zero(extra);
    for (LossComm const loss : loss_paths) {
        auto const variant = bench.variant(world, loss);
        variant->grid().cp().all_reduce_sum("loss.entropy", extra);
        VariantResult const result = bench.run(*variant);
        BOOST_TEST(result.ledger_faults.size() == static_cast<std::size_t>(world));
        BOOST_TEST(result.ledger_faults.front().find("loss.entropy") != std::string::npos);
        BOOST_TEST(!check_result(result).back().pass);
    }
}

BOOST_AUTO_TEST_CASE(a_response_token_that_no_rank_computed_is_named) {
    Bench bench(gspo_case());
    Rollout longer = bench.test_case.samples.rollout;
    std::int64_t const samples = longer.samples();
    longer.tokens.insert(longer.tokens.end(), 3, 1);
    longer.loss_mask.insert(longer.loss_mask.end(), 2, 1);
    longer.token_offsets.push_back(longer.token_offsets.back() + 3);
    longer.response_offsets.push_back(longer.response_offsets.back() + 2);
    auto const variant = bench.variant(1);
    VariantResult const result = bench.run(*variant, longer);
    BOOST_TEST(result.coverage_error == 1.0);
    BOOST_TEST(result.coverage_place == fmt::format("sample {} token 0", samples));
    BOOST_TEST(check_result(result).front().name == "coverage");
    BOOST_TEST(!check_result(result).front().pass);
}

BOOST_AUTO_TEST_CASE(the_gradient_is_the_slope_of_the_loss) {
    for (LossComm const loss : loss_paths) {
        gradient_is_the_slope_of_the_loss(gspo_case(), loss);
    }
}

BOOST_AUTO_TEST_CASE(the_gradient_is_the_slope_of_the_loss_of_gspo_with_tis) {
    Case c = gspo_case();
    c.options.loss.use_tis = true;
    for (LossComm const loss : loss_paths) {
        gradient_is_the_slope_of_the_loss(c, loss);
    }
}

BOOST_AUTO_TEST_CASE(the_gradient_is_the_slope_of_the_loss_of_an_untied_head) {
    Case c = grpo_case();
    c.options.loss.entropy_coef = 0.01;
    for (LossComm const loss : loss_paths) {
        gradient_is_the_slope_of_the_loss(c, loss);
    }
}
