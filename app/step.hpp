// One RL training step: ref, old and train passes, loss, backward, gradient all-reduce, clip,
// AdamW.
#pragma once

#include <array>
#include <span>
#include <string>
#include <vector>

#include "app/model.hpp"
#include "app/options.hpp"
#include "app/parameters.hpp"
#include "app/samples.hpp"
#include "app/variant.hpp"

namespace cpstep {

/// Whole-batch numbers of a step, the same on every rank (trainer's names).
struct StepMetrics {
    double loss = 0, pg_loss = 0, kl_loss = 0, entropy_loss = 0;
    double pg_clipfrac = 0, ppo_kl = 0, opsm_clipfrac = 0, tis_clipfrac = 0;
    double grad_norm = 0;  ///< before clipping, of the gradient all ranks have

    /// Name and value in the order above.
    std::vector<std::pair<std::string, double>> named() const;
};

/// The metrics that the sums policy_loss() adds up make (metric_count of them), without grad_norm.
StepMetrics metrics_of(std::span<double const> sums, PolicyLossOptions const& loss);

/// Which passes and sums the settings call for; pure.
struct StepShape {
    bool ref_pass = false;     ///< --ref-load, or a KL loss without recorded reference values
    bool old_pass = false;     ///< the samples bring no old log-probs
    bool seq_kl = false;       ///< k_j enters the loss (gspo) or OPSM
    bool seq_kl_grad = false;  ///< gradient flows through k_j (gspo)
    bool tis = false;          ///< --use-tis
    bool whiten = false;
    bool has_ref = false;  ///< reference values exist from either source

    /// Forward passes through the layers, and thus K/V rings, a step.
    int forward_passes() const { return 1 + (ref_pass ? 1 : 0) + (old_pass ? 1 : 0); }
};
StepShape step_shape(Options const& options, SampleSet const& samples);

/// Holds the model state all variants share and runs steps on it. Weights and moments are reset
/// before each step, so that every step of every variant computes the same thing.
class TrainStep {
  public:
    /// `policy` and `ref` are layout.size long; ref may be empty (the policy is its own reference).
    TrainStep(Backend& backend, Trace& trace, Options const& options, ParameterLayout const& layout,
              SampleSet const& samples, ModelCapacity capacity, std::vector<float> policy,
              std::vector<float> const& ref, bool recompute_layers = false);

    /// Copy recorded values, noise and advantages into a variant's buffers; once, before its first
    /// step.
    void prepare(Variant& variant);
    /// Initial weights, zero moments: outside timed code.
    void reset();
    StepMetrics run(Variant& variant);
    /// One step from weights (and reference) whose every value is moved to a neighbouring float,
    /// up or down by a seeded draw: what rounding alone may do to the results.
    StepMetrics run_nudged(Variant& variant);

    Tensor gradients() const { return gradients_; }  ///< (N,1), of the last step, before clipping
    Tensor weights() const { return weights_; }      ///< (N,1), after the last step
    std::vector<float> const& initial_weights() const { return initial_; }
    StepShape const& shape() const { return shape_; }
    /// Of timed steps: marks of every layer cost a device too much.
    TraceDetail timed_detail() const {
        return options_.trace_detail.value_or(backend_.queues() != nullptr ? TraceDetail::passes
                                                                           : TraceDetail::layers);
    }
    PolicyLossOptions const& loss_options() const { return options_.loss; }

    /// Bytes of weights, reference, gradients and moments in the backend's memory. With a compute
    /// type below f32: master weights f32, and rounded weights and the reference of that type.
    static std::int64_t state_bytes(std::int64_t parameters, bool ref, DType dtype);

  private:
    void log_prob_pass(Variant& variant, std::string const& pass, Tensor weights,
                       Buffer BatchBuffers::* out);
    void perturb_old(Variant& variant);
    void whiten_advantages(Variant& variant);
    void set_rounded(Tensor to, std::vector<float> const& values);
    Tensor compute_weights() const { return rounded_.tensor().absent() ? weights_ : rounded_; }
    bool rounds() const { return backend_.compute_dtype() != DType::f32; }
    void train_batch(Variant& variant, std::size_t index);
    PolicyTensors loss_inputs(BatchBuffers const& buffers) const;
    StepMetrics finish(Variant& variant);

    Backend& backend_;
    Trace& trace_;
    Options const& options_;
    ParameterLayout const& layout_;
    SampleSet const& samples_;
    StepShape shape_;
    Model model_;
    std::vector<float> initial_;
    std::vector<std::uint16_t> initial_bf16_;         // the same where bf16 holds it, else empty
    Buffer weights_, gradients_, moment1_, moment2_;  // (N,1) f32
    Buffer ref_, rounded_;                            // (N,1) of the compute type
    Buffer metrics_;                                  // (metric_count + 1,1): the norm last
};

}  // namespace cpstep
