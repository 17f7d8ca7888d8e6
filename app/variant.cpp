#include "app/variant.hpp"

#include <algorithm>
#include <utility>

namespace cpstep {

namespace {

constexpr std::int64_t f32_bytes = 4;

}  // namespace

HeadShape heads_of(ModelConfig const& config) {
    return {config.num_attention_heads, config.num_key_value_heads, config.head_dim};
}

double forward_flops(ModelConfig const& config, std::int64_t length) {
    auto const s = static_cast<double>(length);
    auto const h = static_cast<double>(config.hidden_size);
    auto const q = static_cast<double>(config.num_attention_heads * config.head_dim);
    auto const kv = static_cast<double>(config.num_key_value_heads * config.head_dim);
    auto const F = static_cast<double>(config.intermediate_size);
    double const layer = 2 * s * h * (2 * q + 2 * kv) + 2 * q * s * s + 6 * s * h * F;
    return static_cast<double>(config.num_hidden_layers) * layer +
           2 * s * h * static_cast<double>(config.vocab_size);
}

VariantPlan plan_variant(Options const& options, ModelConfig const& config, Rollout const& rollout,
                         int world_size, VariantSpec const& spec) {
    VariantPlan plan;
    plan.name = spec.name;
    plan.cp = spec.cp;
    plan.trace_detail = spec.trace_detail;
    plan.grid = make_grid_shape(world_size, spec.cp.size, spec.cp.a2a);
    std::vector<std::int64_t> lengths;
    std::vector<double> costs;
    for (std::int64_t j = 0; j < rollout.samples(); ++j) {
        lengths.push_back(rollout.total_length(j));
        costs.push_back(forward_flops(config, lengths.back()));
    }
    plan.schedule = make_schedule(lengths, costs,
                                  {.dp_size = plan.grid.dp(),
                                   .cp_size = spec.cp.size,
                                   .dynamic = options.use_dynamic_batch_size,
                                   .max_tokens_per_gpu = options.max_tokens_per_gpu,
                                   .balance = options.balance_data,
                                   .micro_batch_size = options.micro_batch_size});
    return plan;
}

std::vector<MicroBatch> make_micro_batches(VariantPlan const& plan, Rollout const& rollout,
                                           Reduction const& reduction, int rank) {
    std::vector<MicroBatch> batches;
    for (auto const& samples : plan.schedule.at(plan.grid.dp_rank(rank))) {
        batches.push_back(
            make_micro_batch(rollout, samples, reduction, plan.cp, plan.grid.cp_rank(rank)));
    }
    return batches;
}

ModelCapacity capacity_of(std::vector<MicroBatch> const& batches, HeadShape heads, DType T) {
    ModelCapacity capacity;
    for (MicroBatch const& batch : batches) {
        capacity.cover({.rows = batch.rows(),
                        .response_rows = batch.response_count(),
                        .kept_bytes = attention_kept_bytes(batch.plan, heads, T)});
    }
    return capacity;
}

std::int64_t workspace_of(std::vector<MicroBatch> const& batches, HeadShape heads, DType T) {
    std::int64_t bytes = 0;
    for (MicroBatch const& batch : batches) {
        bytes = std::max(bytes, attention_workspace_bytes(batch.plan, heads, T));
    }
    return bytes;
}

Variant::Variant(VariantPlan plan, World& world, Wires& wires, Backend& backend, Trace& trace,
                 ModelConfig const& config, Rollout const& rollout, Reduction const& reduction)
    : plan_(std::move(plan)),
      grid_(std::make_unique<Grid>(world, plan_.grid, wires)),
      batches_(make_micro_batches(plan_, rollout, reduction, world.rank())),
      workspace_(backend,
                 workspace_of(batches_, heads_of(config), backend.compute_dtype()) / f32_bytes, 1,
                 DType::f32, "the attention workspace") {
    for (MicroBatch const& batch : batches_) {
        buffers_.emplace_back(backend, batch);
        losses_.push_back(make_loss_path(backend, grid_->cp(), batch));
        attentions_.push_back(
            make_cp_attention(backend, *grid_, trace, heads_of(config), batch.plan, workspace_));
    }
    grid_->set_observer(&trace);
}

}  // namespace cpstep
