#define BOOST_TEST_MODULE step
#include <cstring>
#include <numeric>

#include "tests/close.hpp"
#include "tests/step_bench.hpp"

using namespace cpstep;
using namespace cpstep::test;

namespace {

void every_layout_agrees(Case const& c) {
    Bench bench(c);
    auto const first = bench.variant({});
    VariantResult const base = bench.run(*first);
    BOOST_TEST(base.metrics.grad_norm > 0.0);
    for (int const cp : valid_cp_sizes(test_world().size())) {
        for (LossComm const loss : loss_paths) {
            agrees_with(base, bench, {.size = cp, .loss = loss});
        }
    }
}

void gradient_is_the_slope_of_the_loss(Case const& c, LossComm loss) {
    Bench bench(c);
    auto const variant = bench.variant({.size = test_world().size(), .loss = loss});
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
    auto const first = bench.variant({});
    VariantResult const base = bench.run(*first);
    for (LossComm const loss : loss_paths) {
        auto const faulty = bench.variant({.size = world, .loss = loss});
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
        auto const variant = bench.variant({.size = world, .loss = loss});
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
    auto const variant = bench.variant({});
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
