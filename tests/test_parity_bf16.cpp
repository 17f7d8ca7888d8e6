#define BOOST_TEST_MODULE parity_bf16
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <functional>
#include <limits>

#include "app/array_loss.hpp"
#include "app/verdict.hpp"
#include "tests/cases.hpp"
#include "tests/close.hpp"

using namespace cpstep;
using namespace cpstep::test;

namespace {

constexpr double base_error = 0.01;
constexpr std::int64_t samples = 4;
constexpr std::int64_t response = 40;
constexpr char const* k_weight = "model.layers.1.self_attn.k_proj.weight";
constexpr char const* k_bias = "model.layers.1.self_attn.k_proj.bias";

/// Independent normal-like numbers of this standard deviation.
std::vector<double> noise(std::size_t count, unsigned seed, double deviation) {
    std::vector<double> sum(count);
    for (unsigned i = 0; i < 12; ++i) {
        auto const uniform = random_values<double>(count, 100 * seed + i, 0.5);
        std::transform(sum.begin(), sum.end(), uniform.begin(), sum.begin(), std::plus<>());
    }
    for (double& value : sum) {
        value *= deviation;
    }
    return sum;
}

/// A step in fp32 and the same step twice in bf16, with independent errors of equal size.
struct Fixture {
    Fixture() {
        options.adamw.lr = 1e-3;
        options.loss.use_kl_loss = true;
        options.loss.kl_loss_coef = 0.1;
        options.loss.kl_type = KlType::k2;
        options.loss.entropy_coef = 0.01;
        auto const tokens = static_cast<std::size_t>(rollout.response_tokens());
        reference.name = "cp1 in fp32";
        for (double const x : random_values<double>(tokens, 1)) {
            reference.log_probs.push_back(-2 + x);
            reference.entropy.push_back(2 + x);
        }
        reference.advantages = {0.7, -0.7, 1.1, -1.1};
        reference.old_log_probs = shifted(reference.log_probs, 2, 0.05);
        reference.ref_log_probs = shifted(reference.log_probs, 3, 0.05);
        for (double const g : noise(static_cast<std::size_t>(layout.size), 4, 0.02)) {
            reference.gradients.push_back(static_cast<float>(g));
        }
        settle(reference);
        base = in_bf16("cp1", 10, base_error);
        other = in_bf16("cp2", 20, base_error);
    }

    void restart() { *this = Fixture(); }

    static std::vector<double> shifted(std::vector<double> values, unsigned seed,
                                       double deviation) {
        auto const by = noise(values.size(), seed, deviation);
        std::transform(values.begin(), values.end(), by.begin(), values.begin(), std::plus<>());
        return values;
    }

    /// What a right program makes of a result's own arrays.
    void settle(VariantResult& result) const {
        result.seq_kl.assign(samples, 0.0);
        result.seq_kl = loss_of_arrays(result, rollout, options).seq_kl;
        for (double& k : result.seq_kl) {
            k = static_cast<float>(k);
        }
        result.metrics = loss_of_arrays(result, rollout, options).metrics;
        double squares = 0;
        for (float const g : result.gradients) {
            squares += static_cast<double>(g) * g;
        }
        result.metrics.grad_norm = std::sqrt(squares);
        double const clip = clip_factor(options.clip_grad, result.metrics.grad_norm);
        result.updated.clear();
        for (float const g : result.gradients) {
            double const x = g * clip;
            result.updated.push_back(
                static_cast<float>(0.1 - options.adamw.lr * x / (std::abs(x) + options.adamw.eps)));
        }
    }

    VariantResult in_bf16(char const* name, unsigned seed, double error) const {
        VariantResult result = reference;
        result.name = name;
        result.log_probs = shifted(reference.log_probs, seed, error);
        result.entropy = shifted(reference.entropy, seed + 1, error);
        result.ref_log_probs = shifted(reference.ref_log_probs, seed + 2, error);
        auto const by = noise(result.gradients.size(), seed + 3, 0.02 * error);
        for (std::size_t i = 0; i < by.size(); ++i) {
            result.gradients[i] += static_cast<float>(by[i]);
        }
        settle(result);
        return result;
    }

    std::span<float> gradient(VariantResult& result, std::string const& name) const {
        for (Parameter const& parameter : layout.parameters) {
            if (parameter.spec.name == name) {
                return std::span(result.gradients)
                    .subspan(static_cast<std::size_t>(parameter.offset),
                             static_cast<std::size_t>(parameter.elements()));
            }
        }
        BOOST_FAIL("no tensor " << name);
        return {};
    }

    /// Adds an error of `share` of the tensor's own norm.
    void disturb(VariantResult& result, std::string const& name, double share) const {
        auto const values = gradient(result, name);
        auto const want = gradient(const_cast<VariantResult&>(reference), name);
        double squares = 0;
        for (float const g : want) {
            squares += static_cast<double>(g) * g;
        }
        auto const size = static_cast<double>(values.size());
        for (std::size_t i = 0; i < values.size(); ++i) {
            float const step = static_cast<float>(share * std::sqrt(squares / size));
            values[i] += i % 2 == 0 ? step : -step;
        }
        settle(result);
    }

    std::vector<Check> checks() const {
        return compare_results_bf16(reference, base, other, layout, rollout, options);
    }
    std::vector<std::string> failed() const {
        std::vector<std::string> names;
        for (Check const& check : checks()) {
            if (!check.pass) {
                names.push_back(check.name);
            }
        }
        return names;
    }
    std::string first_failed() const {
        auto const names = failed();
        return names.empty() ? "" : names.front();
    }
    bool fails(std::string const& name) const {
        auto const names = failed();
        return std::find(names.begin(), names.end(), name) != names.end();
    }

    Report verdict() const {
        Report report;
        report.precision = Precision::bf16;
        report.reference_name = reference.name;
        report.signal = {true, "gradient norm 1"};
        report.results = {base, other};
        compare_all(report, &reference, layout, rollout, options);
        judge(report, 0);
        return report;
    }
    ExitCode code() const { return verdict().code; }

    ParameterLayout layout{small_config()};
    Rollout rollout = make_rollout(std::vector<SampleShape>(samples, {response + 8, response}));
    Options options;
    VariantResult reference, base, other;
};

}  // namespace

BOOST_FIXTURE_TEST_CASE(independent_errors_of_equal_size_pass_every_check, Fixture) {
    BOOST_TEST(failed().empty(), first_failed());
    BOOST_TEST(checks().size() == 6 + 1 + 9 + 1 + 1 + 2 * layout.parameters.size());
    Report const report = verdict();
    BOOST_TEST((report.code == ExitCode::pass), report.reason);
    BOOST_TEST(report.reason == "all variants are as close to cp1 in fp32 as the baseline");
    BOOST_TEST(report.notes.empty());
}

BOOST_FIXTURE_TEST_CASE(other_seeds_pass_as_well, Fixture) {
    for (unsigned seed = 30; seed < 130; seed += 10) {
        base = in_bf16("cp1", seed, base_error);
        other = in_bf16("cp2", seed + 5, base_error);
        BOOST_TEST(failed().empty(), "seed " << seed << ": " << first_failed());
    }
}

BOOST_FIXTURE_TEST_CASE(a_baseline_without_error_leaves_one_rounding, Fixture) {
    base = reference;
    base.name = "cp1";
    other = base;
    other.name = "cp2";
    BOOST_TEST(failed().empty());
    other = in_bf16("cp2", 40, 0x1.0p-11);
    BOOST_TEST(failed().empty(), first_failed());
    other = in_bf16("cp2", 40, 0.005);
    BOOST_TEST(fails("log_probs"));
    BOOST_TEST(fails("whole gradient"));
}

BOOST_FIXTURE_TEST_CASE(measured_and_bound_are_errors_against_fp32, Fixture) {
    for (Check const& check : checks()) {
        if (check.name == "log_probs") {
            BOOST_TEST(check.unit == "rms vs fp32");
            BOOST_TEST(std::abs(check.measured - base_error) < 0.2 * base_error);
            double const scale = 2.1;  // rms of the log-probs, about
            BOOST_TEST(std::abs(check.bound - 1.5 * base_error - 0x1.0p-10 * scale) < 0.003);
        }
    }
}

BOOST_FIXTURE_TEST_CASE(each_planted_difference_fails_its_own_check, Fixture) {
    struct Plant {
        std::string name;
        std::function<void(VariantResult&)> change;
    };
    auto const tensor = [this](auto& r, float factor) {
        for (float& g : gradient(r, k_weight)) {
            g *= factor;
        }
        settle(r);
    };
    std::vector<Plant> const plants{
        {"log_probs",
         [this](auto& r) {  // the halves of a chunk change places
             std::rotate(r.log_probs.begin() + 40, r.log_probs.begin() + 50,
                         r.log_probs.begin() + 60);
             settle(r);
         }},
        {"log_probs max",
         [this](auto& r) {
             r.log_probs[7] += 0.15;
             settle(r);
         }},
        {"entropy max", [](auto& r) { r.entropy[0] -= 1; }},
        {"ref_log_probs",
         [](auto& r) { std::reverse(r.ref_log_probs.begin(), r.ref_log_probs.end()); }},
        {"seq_kl", [](auto& r) { r.seq_kl[1] /= 2; }},
        {"advantages", [](auto& r) { r.advantages[0] *= 1.01; }},
        {"loss", [](auto& r) { r.metrics.loss += 1e-3; }},
        {"pg_loss", [](auto& r) { r.metrics.pg_loss *= 1.5; }},
        {"pg_clipfrac", [](auto& r) { r.metrics.pg_clipfrac += 1.0 / (samples * response); }},
        {"grad_norm", [](auto& r) { r.metrics.grad_norm *= 1.001; }},
        {std::string("gradient ") + k_weight, [&](auto& r) { tensor(r, 2.0F); }},
        {"whole gradient",
         [this](auto& r) {
             std::reverse(r.gradients.begin(), r.gradients.end());
             settle(r);
         }},
        {std::string("updated ") + k_weight,
         [this](auto& r) {
             auto const at = gradient(r, k_weight).data() - r.gradients.data();
             r.updated[static_cast<std::size_t>(at)] += 1e-2F;
         }},
    };
    for (Plant const& plant : plants) {
        other = in_bf16("cp2", 20, base_error);
        plant.change(other);
        BOOST_TEST(fails(plant.name), plant.name);
        BOOST_TEST((code() == ExitCode::parity), plant.name);
    }
}

BOOST_FIXTURE_TEST_CASE(a_missing_share_of_one_gradient_shows_beside_a_baseline_error_of_1_percent,
                        Fixture) {
    std::string const check = std::string("gradient ") + k_weight;
    disturb(other, k_weight, 0.05);
    BOOST_TEST(failed() == std::vector<std::string>{check}, boost::test_tools::per_element());
    other = in_bf16("cp2", 20, base_error);
    disturb(other, k_weight, 0.02);
    BOOST_TEST(fails(check));
    other = in_bf16("cp2", 20, base_error);
    disturb(other, k_weight, 0.005);
    BOOST_TEST(failed().empty());
}

BOOST_FIXTURE_TEST_CASE(nan_empty_and_unequal_sizes_never_pass, Fixture) {
    double const nan = std::numeric_limits<double>::quiet_NaN();
    VariantResult const whole = other;
    other.log_probs[3] = nan;
    BOOST_TEST(fails("log_probs"));
    BOOST_TEST((code() == ExitCode::nonfinite));
    base.log_probs[3] = reference.log_probs[3] = nan;
    BOOST_TEST(fails("log_probs"));
    restart();
    other.entropy.pop_back();
    for (auto const* name : {"entropy", "entropy max", "loss"}) {
        BOOST_TEST(fails(name), name);
    }
    restart();
    base.ref_log_probs.clear();
    BOOST_TEST(fails("ref_log_probs"));
    restart();
    for (VariantResult* result : {&reference, &base, &other}) {
        result->log_probs.clear();
    }
    BOOST_TEST(fails("log_probs"));
    BOOST_TEST(fails("seq_kl"));
    restart();
    gradient(other, k_bias)[0] = std::numeric_limits<float>::infinity();
    BOOST_TEST(fails(std::string("gradient ") + k_bias));
    BOOST_TEST(fails("whole gradient"));
}

BOOST_FIXTURE_TEST_CASE(a_baseline_that_is_garbage_passes_nothing, Fixture) {
    base = in_bf16("cp1", 50, 0.8);  // wide bounds: another garbage is within them
    other = in_bf16("cp2", 60, 0.8);
    Report const report = verdict();
    BOOST_TEST((report.code == ExitCode::inconclusive), report.reason);
    BOOST_TEST(report.reason.find("bf16 cannot tell") != std::string::npos, report.reason);
    BOOST_TEST(report.reason.find("--precision fp32") != std::string::npos);

    other = base;
    other.name = "cp2";
    BOOST_TEST((code() == ExitCode::inconclusive));
    other = in_bf16("cp2", 60, 3.0);  // outside of them: may be rounding too
    BOOST_TEST((code() == ExitCode::inconclusive));
    other.metrics.loss += 1e-2;  // no rounding explains a sum that is not that of its terms
    BOOST_TEST((code() == ExitCode::parity));
    other = base;
    other.ledger_faults = {"[rank 1] cp.kv: 3 calls, budget 2 calls"};
    BOOST_TEST((code() == ExitCode::parity));

    base = in_bf16("cp1", 70, base_error);
    other = in_bf16("cp2", 60, 0.8);
    BOOST_TEST((code() == ExitCode::parity));
}

BOOST_FIXTURE_TEST_CASE(each_resolution_limit_alone_is_inconclusive, Fixture) {
    VariantResult const good = base;
    base.log_probs = shifted(reference.log_probs, 5, 0.6);
    settle(base);
    BOOST_TEST((code() == ExitCode::inconclusive));
    base = good;
    base.entropy = shifted(reference.entropy, 6, 0.6);
    settle(base);
    BOOST_TEST((code() == ExitCode::inconclusive));
}

BOOST_FIXTURE_TEST_CASE(a_small_tensor_that_bf16_gets_wrong_is_noted_a_large_one_is_inconclusive,
                        Fixture) {
    for (float& g : gradient(reference, k_bias)) {
        g *= 1e-3F;
    }
    settle(reference);
    base = in_bf16("cp1", 10, base_error);
    other = in_bf16("cp2", 20, base_error);
    Report report = verdict();
    BOOST_TEST((report.code == ExitCode::pass), report.reason);
    BOOST_REQUIRE(report.notes.size() == 1U);
    BOOST_TEST(report.notes.front().find(k_bias) != std::string::npos, report.notes.front());

    restart();
    disturb(base, "model.embed_tokens.weight", 0.6);
    report = verdict();
    BOOST_TEST((report.code == ExitCode::inconclusive), report.reason);
}

BOOST_FIXTURE_TEST_CASE(clip_fractions_may_differ_by_tokens_on_a_border_only, Fixture) {
    double const weight = 1.0 / (samples * response);
    auto const at_ratio = [this](double ratio) {  // token 0, of a positive advantage
        other.log_probs[0] = reference.log_probs[0];
        other.old_log_probs[0] = other.log_probs[0] - std::log(ratio);
        settle(other);
    };
    at_ratio(1.2 + 0x1.0p-22);
    other.metrics.pg_clipfrac -= weight;
    BOOST_TEST(!fails("pg_clipfrac"));
    at_ratio(1.2 - 0x1.0p-22);
    other.metrics.pg_clipfrac += weight;
    BOOST_TEST(!fails("pg_clipfrac"));
    at_ratio(1.2 + 0x1.0p-16);
    other.metrics.pg_clipfrac -= weight;
    BOOST_TEST(fails("pg_clipfrac"));
}

BOOST_FIXTURE_TEST_CASE(gradients_are_held_against_fp32_of_the_same_ratios, Fixture) {
    // A sample of `other` alone is clipped: its gradient is another, and rightly so.
    auto const jump = noise(other.gradients.size(), 7, 0.01);
    for (std::size_t i = 0; i < jump.size(); ++i) {
        other.gradients[i] += static_cast<float>(jump[i]);
    }
    settle(other);
    BOOST_TEST(fails("whole gradient"));
    other.fp32_gradients = reference.gradients;
    for (std::size_t i = 0; i < jump.size(); ++i) {
        other.fp32_gradients[i] += static_cast<float>(jump[i]);
    }
    BOOST_TEST(failed().empty(), first_failed());
    disturb(other, k_weight, 0.05);
    BOOST_TEST(fails(std::string("gradient ") + k_weight));
}

BOOST_AUTO_TEST_CASE(the_loss_of_arrays_is_that_of_a_sum_by_hand) {
    Rollout const rollout =
        make_rollout({{4, 2}, {5, 3}}, [](auto j, auto i) { return j == 0 || i != 1; });
    Options options;
    options.loss.entropy_coef = 0.5;
    options.loss.use_kl_loss = true;
    options.loss.kl_loss_coef = 2;
    VariantResult result;
    result.log_probs = {-1, -2, -1, -9, -3};
    result.old_log_probs = {-1, -2.5, -1, -4, -3};
    result.ref_log_probs = {-2, -2, -1, -1, -1};
    result.entropy = {1, 2, 3, 40, 5};
    result.advantages = {2, -1};
    result.seq_kl = {0, 0};
    ArrayLoss const loss = loss_of_arrays(result, rollout, options);
    auto const close = [](double got, double want) { return std::abs(got - want) < 1e-12; };
    BOOST_TEST(close(loss.seq_kl[0], -0.25));
    BOOST_TEST(close(loss.seq_kl[1], 0));
    double const pg = 0.5 * (-2 - 1.2 * 2) / 2 + 0.5 * 1;  // the second token clips at 1.2
    BOOST_TEST(close(loss.metrics.pg_loss, pg));
    BOOST_TEST(close(loss.metrics.pg_clipfrac, 0.25));
    BOOST_TEST(close(loss.metrics.entropy_loss, 0.5 * 1.5 + 0.5 * 4));
    BOOST_TEST(close(loss.metrics.kl_loss, 0.5 * 0.5 + 0.5 * -1));
    BOOST_TEST(
        close(loss.metrics.loss, pg - 0.5 * loss.metrics.entropy_loss + 2 * loss.metrics.kl_loss));
    BOOST_TEST(close(loss.d_log_probs[0], 0.25 * (-2 + 2)));
    BOOST_TEST(close(loss.d_log_probs[1], 0.25 * 2));
    BOOST_TEST(loss.d_log_probs[3] == 0);
}
