// One way of laying the same samples over the same ranks: a grid, its micro-batches, its wires.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "app/batch_buffers.hpp"
#include "app/cp_attention.hpp"
#include "app/loss_path.hpp"
#include "app/micro_batch.hpp"
#include "app/model.hpp"
#include "app/options.hpp"
#include "app/samples.hpp"
#include "app/schedule.hpp"
#include "app/variant_spec.hpp"
#include "mpi/grid.hpp"
#include "mpi/wires.hpp"

namespace cpstep {

/// What a variant is before any memory or wire exists; pure, the same on every rank.
struct VariantPlan {
    std::string name;  ///< "cp2"
    CpConfig cp;
    GridShape grid;
    Schedule schedule;
    std::optional<TraceDetail> trace_detail = {};  ///< of timed steps; none: the run's
};

/// Forward FLOPs of one sequence: per token 2 x parameters of the matrix products, attention
/// causal-halved.
double forward_flops(ModelConfig const& config, std::int64_t length);

VariantPlan plan_variant(Options const& options, ModelConfig const& config, Rollout const& rollout,
                         int world_size, VariantSpec const& spec);

/// This rank's micro-batches of a plan.
std::vector<MicroBatch> make_micro_batches(VariantPlan const& plan, Rollout const& rollout,
                                           Reduction const& reduction, int rank);

HeadShape heads_of(ModelConfig const& config);

/// Capacity that holds every micro-batch; T: compute type.
ModelCapacity capacity_of(std::vector<MicroBatch> const& batches, HeadShape heads,
                          DType T = DType::f32);
/// Bytes of attention_workspace_bytes() that serve every micro-batch.
std::int64_t workspace_of(std::vector<MicroBatch> const& batches, HeadShape heads,
                          DType T = DType::f32);

/// A plan brought to life on this rank. Collective over the world.
class Variant {
  public:
    Variant(VariantPlan plan, World& world, Wires& wires, Backend& backend, Trace& trace,
            ModelConfig const& config, Rollout const& rollout, Reduction const& reduction);
    Variant(Variant const&) = delete;
    Variant& operator=(Variant const&) = delete;
    /// Wires go first: peers may have this rank's buffers open.
    ~Variant() { grid_.reset(); }

    VariantPlan const& plan() const { return plan_; }
    std::string const& name() const { return plan_.name; }
    Grid& grid() { return *grid_; }
    std::vector<MicroBatch> const& batches() const { return batches_; }
    std::vector<BatchBuffers>& buffers() { return buffers_; }
    CpAttention& attention(std::size_t index) { return *attentions_.at(index); }
    LossPath& loss(std::size_t index) { return *losses_.at(index); }

  private:
    VariantPlan plan_;
    std::unique_ptr<Grid> grid_;
    std::vector<MicroBatch> batches_;
    std::vector<BatchBuffers> buffers_;
    std::vector<std::unique_ptr<LossPath>> losses_;
    Buffer workspace_;
    std::vector<std::unique_ptr<CpAttention>> attentions_;  // of each micro-batch
};

}  // namespace cpstep
