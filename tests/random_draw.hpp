// Random steps: samples, settings of the loss and of the batching, and a layout, from a draw's
// number and the number of ranks alone, so that every rank draws alike and one draw can be
// repeated.
#pragma once

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "tests/step_bench.hpp"

namespace cpstep::test {

class Dice {
  public:
    Dice(int number, int ranks)
        : engine_(counter_bits(2026, static_cast<std::uint64_t>(ranks),
                               static_cast<std::uint64_t>(number))) {}

    std::int64_t below(std::int64_t n) {
        return static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(n));
    }
    bool one_in(std::int64_t n) { return below(n) == 0; }
    double between(double low, double high) {
        return low + (high - low) * 0x1.0p-53 * static_cast<double>(engine_() >> 11U);
    }
    template <class T>
    T one_of(std::vector<T> const& values) {
        return values[static_cast<std::size_t>(below(std::ssize(values)))];
    }

  private:
    std::mt19937_64 engine_;
};

struct Draw {
    int number = 0;
    Case test_case;
    CpConfig config;
};

inline std::string described(Draw const& draw) {
    Options const& o = draw.test_case.options;
    PolicyLossOptions const& l = o.loss;
    ModelConfig const& model = draw.test_case.config;
    static constexpr std::array estimators{"grpo", "gspo", "cispo"};
    std::string text = fmt::format(
        "draw {} on {} ranks: {}; {} key heads, {} head; {} eps {}/{} dual {} opsm {} tis {} "
        "kl {} type {}{} entropy {}; {}, {}whitening, {}; {} old log-probs, {} reference; T/R",
        draw.number, test_world().size(), described(draw.config), model.num_key_value_heads,
        model.tie_word_embeddings ? "tied" : "own", estimators[static_cast<int>(l.estimator)],
        l.eps_clip, l.eps_clip_high, l.eps_clip_c.value_or(0), l.use_opsm ? l.opsm_delta : -1,
        l.use_tis ? fmt::format("{}..{}", l.tis_clip_low, l.tis_clip) : "off",
        l.use_kl_loss ? l.kl_loss_coef : 0, static_cast<int>(l.kl_type),
        l.use_unbiased_kl ? " unbiased" : "", l.entropy_coef,
        o.calculate_per_token_loss ? "mean over tokens" : "mean over samples",
        o.normalize_advantages ? "" : "no ",
        o.use_dynamic_batch_size ? fmt::format("packs of {} tokens{}", o.max_tokens_per_gpu,
                                               o.balance_data ? ", balanced" : "")
                                 : fmt::format("micro-batches of {} samples", o.micro_batch_size),
        draw.test_case.samples.synthetic_old ? "computed" : "recorded",
        draw.test_case.samples.rollout.ref_log_probs.empty() ? "computed" : "recorded");
    Rollout const& rollout = draw.test_case.samples.rollout;
    for (std::int64_t j = 0; j < rollout.samples(); ++j) {
        auto const mask = std::span(rollout.loss_mask)
                              .subspan(static_cast<std::size_t>(rollout.response_offsets[j]),
                                       static_cast<std::size_t>(rollout.response_length(j)));
        text += fmt::format(" {}/{}{}", rollout.total_length(j), rollout.response_length(j),
                            std::ranges::count(mask, 1) == 0 ? " all masked" : "");
    }
    return text;
}

/// A group of one, one time in eight, has p2p alone.
inline CpConfig random_config(Dice& dice, int ranks) {
    std::vector<int> sizes = valid_cp_sizes(ranks);
    std::erase(sizes, 1);
    CpConfig config{.size = dice.one_in(8) ? 1 : dice.one_of(sizes),
                    .layout = dice.one_in(2) ? CpLayout::zigzag : CpLayout::contiguous,
                    .loss = dice.one_of(std::vector(loss_paths.begin(), loss_paths.end()))};
    std::vector<CpMethod> methods{CpMethod::p2p};
    if (config.size > 1) {
        methods.insert(methods.end(), {CpMethod::all_gather, CpMethod::a2a});
    }
    if (config.size == 4) {
        methods.push_back(CpMethod::a2a_p2p);
    }
    config.method = dice.one_of(methods);
    config.a2a = config.method == CpMethod::a2a       ? config.size
                 : config.method == CpMethod::a2a_p2p ? 2
                                                      : 1;
    return config;
}

inline Options random_options(Dice& dice) {
    Options options;
    PolicyLossOptions& loss = options.loss;
    loss.estimator = static_cast<Estimator>(dice.below(3));
    loss.eps_clip = dice.between(0.05, 0.4);
    loss.eps_clip_high = dice.between(0.05, 0.4);
    if (dice.one_in(3)) {
        loss.eps_clip_c = dice.between(1.2, 1.6);
    }
    loss.use_opsm = dice.one_in(2);
    loss.opsm_delta = dice.between(0.01, 0.2);
    loss.use_tis = dice.one_in(2);
    loss.tis_clip_low = dice.one_in(2) ? 0 : dice.between(0.7, 0.95);
    loss.tis_clip = dice.between(1.05, 1.3);
    loss.use_kl_loss = dice.one_in(2);
    loss.kl_type = static_cast<KlType>(dice.below(4));
    loss.kl_loss_coef = dice.between(0.01, 0.2);
    loss.use_unbiased_kl = dice.one_in(3);
    loss.entropy_coef = dice.one_in(2) ? 0.01 : 0;
    options.calculate_per_token_loss = dice.one_in(2);
    options.normalize_advantages = dice.one_in(2);
    options.use_dynamic_batch_size = dice.one_in(2);
    options.max_tokens_per_gpu = 8 + dice.below(80);
    options.balance_data = dice.one_in(3);
    options.micro_batch_size = 1 + dice.below(3);
    return options;
}

/// T from 2 (below 2 CP) and R from 1 to T-1, both ends often; `ordinary`: neither.
inline std::pair<std::int64_t, std::int64_t> random_shape(Dice& dice, int ranks, bool ordinary) {
    if (ordinary) {
        std::int64_t const T = 20 + dice.below(40);
        return {T, T / 2 + dice.below(T / 4)};
    }
    std::int64_t const T = 2 + (dice.one_in(4) ? dice.below(2 * ranks) : dice.below(60));
    std::int64_t const R = dice.one_in(4) ? 1 : dice.one_in(4) ? T - 1 : 1 + dice.below(T - 1);
    return {T, R};
}

/// Samples without log-probs. The first two are ordinary ones whose advantages differ: whitening
/// divides by the deviation, and gradients are compared relative to their size, neither of which
/// may be rounding alone.
inline SampleSet random_samples(Dice& dice, int ranks, std::int64_t vocabulary) {
    SampleSet set;
    Rollout& rollout = set.rollout;
    std::int64_t const count = std::max<std::int64_t>(2, ranks * (1 + dice.below(3)));
    for (std::int64_t j = 0; j < count; ++j) {
        auto const [T, R] = random_shape(dice, ranks, j < 2);
        bool const all_masked = j > 1 && dice.one_in(6);
        for (std::int64_t t = 0; t < T; ++t) {
            rollout.tokens.push_back(static_cast<std::int32_t>(dice.below(vocabulary)));
        }
        for (std::int64_t t = 0; t < R; ++t) {
            bool const counts = !all_masked && (t == 0 || !dice.one_in(5));
            rollout.loss_mask.push_back(counts ? 1 : 0);
        }
        rollout.token_offsets.push_back(rollout.token_offsets.back() + T);
        rollout.response_offsets.push_back(rollout.response_offsets.back() + R);
        rollout.rewards.push_back(static_cast<float>(j % 2));
        rollout.groups.push_back(static_cast<std::int32_t>(j / 2));
        auto const size = static_cast<float>(dice.between(0.3, 1.2));
        set.advantages.push_back(j > 1 && dice.one_in(8) ? 0 : j % 2 == 0 ? -size : size);
    }
    return set;
}

/// Log-ratios new - old and old - rollout at which the loss has a step. Two right layouts may stand
/// on different sides of one when rounding decides, so draws keep a distance from them.
class Steps {
  public:
    explicit Steps(PolicyLossOptions const& options) : options_(options) {}

    bool near_ratio(double new_minus_old) const {
        return near(new_minus_old, std::log1p(-options_.eps_clip)) ||
               near(new_minus_old, std::log1p(options_.eps_clip_high)) ||
               (options_.eps_clip_c && near(new_minus_old, std::log(*options_.eps_clip_c)));
    }
    bool near_sequence(double seq_kl) const {
        return near_ratio(-seq_kl) || near(seq_kl, options_.opsm_delta);
    }
    bool near_tis(double old_minus_rollout) const {
        return near(old_minus_rollout, std::log(options_.tis_clip)) ||
               (options_.tis_clip_low > 0 &&
                near(old_minus_rollout, std::log(options_.tis_clip_low)));
    }

  private:
    /// Ten times the largest bound of a log-prob in these draws.
    static bool near(double value, double step) { return std::abs(value - step) < 1e-3; }

    PolicyLossOptions const& options_;
};

/// Old log-probs off the policy by a sample's own shift and a token's noise, clear of all steps;
/// false: drawn too near to one.
inline bool perturb_sample(Dice& dice, SampleSet& set, Steps const& steps, std::int64_t sample) {
    Rollout const& rollout = set.rollout;
    double const shift = dice.between(-0.3, 0.3);
    double sum = 0;
    double count = 0;
    bool clear = true;
    for (std::int64_t i = rollout.response_offsets[sample];
         i < rollout.response_offsets[sample + 1]; ++i) {
        auto const at = static_cast<std::size_t>(i);
        set.old_noise[at] = static_cast<float>(shift + dice.between(-0.3, 0.3));
        set.rollout_noise[at] = set.old_noise[at] + static_cast<float>(dice.between(-0.4, 0.4));
        double const k = set.old_noise[at];
        clear = clear && !steps.near_ratio(-k) && !steps.near_tis(k - set.rollout_noise[at]);
        sum += rollout.loss_mask[at] * k;
        count += rollout.loss_mask[at];
    }
    return clear && !steps.near_sequence(sum / std::max(count, 1.0));
}

/// The log-probs of samples whose policy gives `now`: recorded, or left to the step's old pass.
inline void add_log_probs(Dice& dice, SampleSet& set, PolicyLossOptions const& options,
                          std::vector<double> const& now) {
    Rollout& rollout = set.rollout;
    set.old_noise.resize(now.size());
    set.rollout_noise.resize(now.size());
    Steps const steps(options);
    for (std::int64_t j = 0; j < rollout.samples(); ++j) {
        while (!perturb_sample(dice, set, steps, j)) {
        }
    }
    set.synthetic_old = dice.one_in(4);
    bool const recorded_ref = !dice.one_in(4);
    rollout.old_log_probs.clear();
    for (std::size_t i = 0; i < now.size(); ++i) {
        if (recorded_ref) {
            rollout.ref_log_probs.push_back(static_cast<float>(now[i] + dice.between(-0.5, 0.5)));
        }
        if (!set.synthetic_old) {
            rollout.old_log_probs.push_back(static_cast<float>(now[i] + set.old_noise[i]));
            rollout.rollout_log_probs.push_back(static_cast<float>(now[i] + set.rollout_noise[i]));
        }
    }
}

/// What the model gives the samples, for log-probs that are near it. Collective.
inline std::vector<double> log_probs_of(Case const& drawn) {
    Case plain{.options = {}, .samples = drawn.samples, .config = drawn.config};
    plain.samples.rollout.old_log_probs.assign(
        static_cast<std::size_t>(drawn.samples.rollout.response_tokens()), -1.0F);
    Bench bench(plain);
    auto const variant = bench.variant({});
    return bench.run(*variant).log_probs;
}

/// Collective.
inline Draw make_draw(int number) {
    int const ranks = test_world().size();
    Dice dice(number, ranks);
    Draw draw{.number = number,

              .test_case = {},
              .config = random_config(dice, ranks)};
    Case& c = draw.test_case;
    c.config =
        small_config(dice.one_in(2), 12, dice.one_of(std::vector<std::int64_t>{1, 2, 3, 4, 6, 12}));
    c.options = random_options(dice);
    c.samples = random_samples(dice, ranks, c.config.vocab_size);
    add_log_probs(dice, c.samples, c.options.loss, log_probs_of(c));
    return draw;
}

}  // namespace cpstep::test
