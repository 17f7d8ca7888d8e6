#include "app/anchor.hpp"

#include <cmath>
#include <cstdio>
#include <memory>

#include "app/reference.hpp"

namespace cpstep {

namespace {

/// fp32 log-probs of two programs differ by less; a log-ratio off by this moves no gradient that
/// bf16 could show.
constexpr double ratio_rounding = 0x1.0p-14;

}  // namespace

bool has_ratios_of(VariantResult const& reference, VariantResult const& result) {
    for (std::size_t i = 0; i < reference.log_probs.size(); ++i) {
        double const moved = result.log_probs.at(i) - reference.log_probs[i];
        double const old = result.old_log_probs.at(i) - reference.old_log_probs.at(i);
        if (!(std::abs(moved - old) <= ratio_rounding)) {
            return false;
        }
    }
    return true;
}

Setup anchored_setup(Setup setup, VariantResult const& reference, VariantResult const& result) {
    auto const anchored = [&](std::vector<double> const& values) {
        std::vector<float> moved;
        for (std::size_t i = 0; i < values.size(); ++i) {
            moved.push_back(
                static_cast<float>(values[i] + reference.log_probs.at(i) - result.log_probs.at(i)));
        }
        return moved;
    };
    Rollout& rollout = setup.samples.rollout;
    rollout.old_log_probs = anchored(result.old_log_probs);
    rollout.rollout_log_probs = anchored(result.rollout_log_probs);
    rollout.ref_log_probs.assign(reference.ref_log_probs.begin(), reference.ref_log_probs.end());
    setup.samples.synthetic_old = false;
    setup.options.ref_load.clear();
    setup.shape = step_shape(setup.options, setup.samples);
    setup.plans.resize(1);
    return setup;
}

void anchor_gradients(World& world, Processor const& processor, Setup const& setup,
                      std::vector<float> const& policy, VariantResult const& reference,
                      std::vector<VariantResult>& results) {
    std::unique_ptr<Backend> backend;
    std::unique_ptr<Wires> wires;
    for (VariantResult& result : results) {
        bool const wanted = world.root() && !has_ratios_of(reference, result);
        if (world.broadcast(wanted ? "anchor" : "skip") != "anchor") {
            continue;
        }
        if (world.root() && !setup.options.quiet) {
            fmt::print(stderr, "cpstep: computing the gradients of {} in fp32 by its own ratios\n",
                       result.name);
        }
        if (!backend) {
            backend = make_reference_backend(world, processor, setup.options);
            wires = make_wires(world, *backend, wire_options(setup.options));
        }
        Setup const anchored = anchored_setup(setup, reference, result);
        result.fp32_gradients =
            reference_result(world, *backend, *wires, anchored, policy, {}).gradients;
    }
}

}  // namespace cpstep
