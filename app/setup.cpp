#include "app/setup.hpp"

#include <algorithm>
#include <utility>

#include "app/run_file.hpp"
#include "app/timing.hpp"
#include "app/variant_spec.hpp"

namespace cpstep {

namespace {

/// A dry run without mpirun plans for the ranks that the largest group asks for.
int planned_world(Options const& options, int world_size) {
    if (!options.dry_run || world_size > 1) {
        return world_size;
    }
    int world = world_size;
    for (int const size : options.context_parallel_size) {
        world = std::max(world, size);
    }
    for (NamedVariant const& variant : options.variants) {
        world = std::max(world, variant.size.value_or(1));
    }
    return world;
}

std::vector<VariantPlan> plan_variants(Options const& options, ModelConfig const& config,
                                       Rollout const& rollout, int world_size) {
    std::vector<VariantPlan> plans;
    int const world = planned_world(options, world_size);
    for (VariantSpec const& spec : variant_specs(options, heads_of(config), world)) {
        plans.push_back(plan_variant(options, config, rollout, world, spec));
    }
    return plans;
}

void require_inputs_fit(Options const& options, SampleSet const& samples) {
    bool const has_rollout = samples.synthetic_old || !samples.rollout.rollout_log_probs.empty();
    require(!options.loss.use_tis || has_rollout, ExitCode::input_data,
            "--use-tis needs rollout_log_probs, which {} does not hold",
            options.rollout_file.string());
}

}  // namespace

Setup::Setup(Options chosen, int world_size)
    : options(std::move(chosen)),
      layout(read_model_config(options.hf_checkpoint)),
      samples(load_samples(options, layout.config)),
      reduction(make_reduction(samples.rollout, options.calculate_per_token_loss)),
      shape(step_shape(options, samples)),
      plans(plan_variants(options, layout.config, samples.rollout, world_size)),
      notes(samples.notes) {
    require_inputs_fit(options, samples);
    if (plans.size() == 1) {
        notes.emplace_back("one variant only: nothing is compared");
    }
    if (samples.synthetic_old) {
        notes.emplace_back("responses, rewards and off-policy noise are synthetic (seeded)");
    }
    for (std::string const& option : options.not_applicable) {
        notes.push_back("not applicable: " + option);
    }
}

int Setup::total_steps() const {
    return static_cast<int>(plans.size()) + timing_steps(options, static_cast<int>(plans.size()));
}

std::int64_t Setup::disk_bytes() const {
    std::int64_t micro_batches = 0;
    std::int64_t ring_steps = 0;
    for (VariantPlan const& plan : plans) {
        micro_batches = std::max<std::int64_t>(micro_batches, plan.schedule.front().size());
        ring_steps = std::max<std::int64_t>(ring_steps, plan.grid.cp);
    }
    std::int64_t const layer_spans = 12 + 3 * ring_steps;
    std::int64_t const loss_spans = 8 * samples.rollout.samples();  // padded: four calls a sample
    std::int64_t const events = std::int64_t{plans.front().grid.world} * total_steps() *
                                (micro_batches * (shape.forward_passes() + 2) *
                                     layout.config.num_hidden_layers * layer_spans +
                                 loss_spans + 32);
    return estimate_run_bytes(options, layout.size, static_cast<int>(plans.size()),
                              samples.rollout.response_tokens(), events);
}

MemoryEstimate Setup::memory(Backend const* backend) const {
    return estimate_memory(layout, plans, samples.rollout, reduction, has_ref_weights(), backend);
}

std::string Setup::description() const {
    return describe_options(options) +
           fmt::format(
               "\nmodel: {} parameters; batch: {} samples, {} tokens, {} of responses; {} steps\n",
               layout.size, samples.rollout.samples(), samples.rollout.token_offsets.back(),
               samples.rollout.response_tokens(), total_steps()) +
           describe_plans(plans, samples.rollout, memory(), {}, disk_bytes(),
                          options.output.string());
}

namespace {

std::vector<float> load_folder(Setup& setup, std::filesystem::path const& folder) {
    Checkpoint const checkpoint(folder);
    checkpoint.require_matches(model_tensors(setup.layout.config));
    std::vector<float> weights(static_cast<std::size_t>(setup.layout.size));
    for (std::string const& line :
         load_parameters(setup.layout, checkpoint, setup.options.allow_nonfinite, weights)) {
        setup.notes.push_back(fmt::format("{}: {}", folder.string(), line));
    }
    return weights;
}

}  // namespace

std::vector<float> load_policy(Setup& setup) {
    if (!setup.options.init_random) {
        return load_folder(setup, setup.options.hf_checkpoint);
    }
    std::vector<float> weights(static_cast<std::size_t>(setup.layout.size));
    randomize_parameters(setup.layout, setup.options.seed, weights);
    return weights;
}

std::vector<float> load_reference(Setup& setup) {
    return setup.has_ref_weights() ? load_folder(setup, setup.options.ref_load)
                                   : std::vector<float>{};
}

}  // namespace cpstep
