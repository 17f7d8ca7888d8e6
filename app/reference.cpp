#include "app/reference.hpp"

#include <memory>

namespace cpstep {

VariantResult reference_result(World& world, Backend& backend, Wires& wires, Setup const& setup,
                               std::vector<float> const& policy,
                               std::vector<float> const& reference) {
    Trace trace;
    ModelConfig const& config = setup.layout.config;
    Rollout const& rollout = setup.samples.rollout;
    std::unique_ptr<TrainStep> step;  // goes after the wires that peers see its memory through
    Variant variant(setup.plans.front(), world, wires, backend, trace, config, rollout,
                    setup.reduction);
    world.collectively([&] {
        step =
            std::make_unique<TrainStep>(backend, trace, setup.options, setup.layout, setup.samples,
                                        capacity_of(variant.batches(), heads_of(config)), policy,
                                        reference, /*recompute_layers=*/true);
    });
    step->prepare(variant);
    step->reset();
    StepMetrics const metrics = step->run(variant);
    VariantResult result =
        collect_result(world, backend, *step, variant, setup.layout, rollout, metrics);
    result.name = variant.name() + " in fp32";
    return result;
}

}  // namespace cpstep
