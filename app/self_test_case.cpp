#include "app/self_test_case.hpp"

#include <array>
#include <utility>

#include "app/setup.hpp"

namespace cpstep {

namespace {

ModelConfig small_model(int ranks) {
    ModelConfig config;
    config.vocab_size = 61;
    config.hidden_size = 32;
    config.intermediate_size = 48;
    config.num_hidden_layers = 2;
    config.num_key_value_heads = 2;
    config.num_attention_heads = 2 * std::int64_t{ranks};  // any CP size may scatter them
    config.head_dim = 8;
    config.rope_theta = 10000;
    config.tie_word_embeddings = true;
    return config;
}

/// Matrices of deviation 0.16 give predictions far from uniform, so that errors are visible; norms
/// stay 1, for which the parity bounds are derived.
std::vector<float> lively_weights(ParameterLayout const& layout, std::int64_t seed) {
    std::vector<float> weights(static_cast<std::size_t>(layout.size));
    randomize_parameters(layout, seed, weights);
    for (Parameter const& parameter : layout.parameters) {
        for (std::int64_t i = 0; i < (parameter.spec.vector ? 0 : parameter.elements()); ++i) {
            weights[static_cast<std::size_t>(parameter.offset + i)] *= 8;
        }
    }
    return weights;
}

SampleSet small_samples(std::int64_t vocabulary, int ranks) {
    // (T, R) by micro-batches of two. Of the second pair only the owner of position T-2 has
    // response rows.
    static constexpr std::array<std::pair<int, int>, 14> shapes{{{29, 17},
                                                                 {24, 20},
                                                                 {70, 1},
                                                                 {66, 1},
                                                                 {2, 1},
                                                                 {40, 39},
                                                                 {3, 2},
                                                                 {64, 32},
                                                                 {11, 4},
                                                                 {33, 16},
                                                                 {17, 9},
                                                                 {5, 1},
                                                                 {12, 7},
                                                                 {96, 60}}};
    SampleSet set;
    Rollout& rollout = set.rollout;
    constexpr std::uint64_t seed = 62;
    std::uint64_t counter = 0;
    // The baseline deals them to `ranks` data-parallel ranks.
    int const samples = (static_cast<int>(shapes.size()) + ranks - 1) / ranks * ranks;
    for (int j = 0; j < samples; ++j) {
        auto const [total, response] = shapes[static_cast<std::size_t>(j) % shapes.size()];
        for (int t = 0; t < total; ++t) {
            auto const bits = counter_bits(seed, 1, counter++);
            rollout.tokens.push_back(
                static_cast<std::int32_t>(bits % static_cast<std::uint64_t>(vocabulary)));
        }
        for (int t = 0; t < response; ++t) {
            bool const masked = response > 2 && counter_bits(seed, 2, counter++) % 7 == 0;
            rollout.loss_mask.push_back(masked ? 0 : 1);
            auto const guess = -4.1F + 0.3F * static_cast<float>(counter_normal(seed, 3, counter));
            rollout.ref_log_probs.push_back(guess);
            rollout.rollout_log_probs.push_back(guess + 0.01F);
            rollout.old_log_probs.push_back(guess + 0.05F);
        }
        rollout.token_offsets.push_back(rollout.token_offsets.back() + total);
        rollout.response_offsets.push_back(rollout.response_offsets.back() + response);
        rollout.rewards.push_back(j % 2 == 0 ? 0.0F : 1.0F);
        rollout.groups.push_back(j / 2);
        set.advantages.push_back(j % 2 == 0 ? -0.8F : 0.9F);
    }
    return set;
}

}  // namespace

SelfTestCase built_in_case(Options const& options, int ranks) {
    ParameterLayout layout(small_model(ranks));
    SampleSet samples = small_samples(layout.config.vocab_size, ranks);
    SelfTestCase result{.about = fmt::format("a built-in model of {} parameters and {} samples",
                                             layout.size, samples.rollout.samples()),
                        .layout = std::move(layout),
                        .samples = std::move(samples),
                        .options = options,
                        .policy = {},
                        .reference = {}};
    result.options.use_dynamic_batch_size = false;
    result.options.micro_batch_size = 2;
    result.policy = lively_weights(result.layout, 3);
    return result;
}

SelfTestCase users_case(Options const& options, int ranks) {
    Setup setup(options, ranks);
    std::vector<float> policy = load_policy(setup);
    std::vector<float> reference = load_reference(setup);
    return {.about = fmt::format("{}: {} parameters, {} samples", options.hf_checkpoint.string(),
                                 setup.layout.size, setup.samples.rollout.samples()),
            .layout = std::move(setup.layout),
            .samples = std::move(setup.samples),
            .options = options,
            .policy = std::move(policy),
            .reference = std::move(reference)};
}

Options probe_options(Options const& options, ProbeLoss probe) {
    Options result = options;
    result.loss = {.estimator = probe == ProbeLoss::gspo ? Estimator::gspo : Estimator::grpo,
                   .eps_clip = 0.5,
                   .eps_clip_high = 0.5,
                   .eps_clip_c = std::nullopt,
                   .use_opsm = true,
                   .opsm_delta = options.loss.opsm_delta,
                   .use_tis = false,
                   .use_kl_loss = true,
                   .kl_type = KlType::low_var_kl,
                   .kl_loss_coef = 0.1,
                   .use_unbiased_kl = false,
                   .entropy_coef = 0.01};
    result.normalize_advantages = true;
    result.calculate_per_token_loss = false;
    return result;
}

}  // namespace cpstep
