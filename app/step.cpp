#include "app/step.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "app/advantages.hpp"
#include "cuda/fault.hpp"

namespace cpstep {

namespace {

/// Values of these response rows, picked from an array over the whole rollout.
std::vector<float> picked(std::vector<float> const& rollout, ResponseRows const& rows) {
    std::vector<float> values;
    values.reserve(rows.index.size());
    for (std::int64_t const index : rows.index) {
        values.push_back(rollout.at(index));
    }
    return values;
}

/// The advantage of each row's sample.
std::vector<float> advantages_of(std::vector<float> const& by_sample, MicroBatch const& batch,
                                 ResponseRows const& rows) {
    std::vector<float> values;
    values.reserve(rows.sample_of.size());
    for (std::int32_t const slot : rows.sample_of) {
        values.push_back(by_sample.at(batch.samples.at(slot)));
    }
    return values;
}

/// Each value moved to the float above or below it; 0 stays.
std::vector<float> nudged(std::vector<float> values, std::int64_t seed, std::uint64_t stream) {
    constexpr float up = std::numeric_limits<float>::infinity();
    for (std::size_t i = 0; i < values.size(); ++i) {
        bool const rises = (counter_bits(static_cast<std::uint64_t>(seed), stream, i) & 1U) != 0;
        values[i] = values[i] == 0 ? 0 : std::nextafter(values[i], rises ? up : -up);
    }
    return values;
}

/// bf16 holds the value exactly.
bool is_bf16(float value) {
    return (std::bit_cast<std::uint32_t>(value) & 0xffffU) == 0;
}

/// Bits of values that are all is_bf16().
std::vector<std::uint16_t> bf16_of(std::vector<float> const& values) {
    std::vector<std::uint16_t> bits(values.size());
    std::transform(values.begin(), values.end(), bits.begin(), [](float value) {
        return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16U);
    });
    return bits;
}

}  // namespace

std::vector<std::pair<std::string, double>> StepMetrics::named() const {
    return {{"loss", loss},
            {"pg_loss", pg_loss},
            {"kl_loss", kl_loss},
            {"entropy_loss", entropy_loss},
            {"pg_clipfrac", pg_clipfrac},
            {"ppo_kl", ppo_kl},
            {"opsm_clipfrac", opsm_clipfrac},
            {"tis_clipfrac", tis_clipfrac},
            {"grad_norm", grad_norm}};
}

StepMetrics metrics_of(std::span<double const> sums, PolicyLossOptions const& loss) {
    StepMetrics metrics{.pg_loss = sums[metric_pg_loss],
                        .kl_loss = sums[metric_kl_loss],
                        .entropy_loss = sums[metric_entropy_loss],
                        .pg_clipfrac = sums[metric_pg_clipfrac],
                        .ppo_kl = sums[metric_ppo_kl],
                        .opsm_clipfrac = sums[metric_opsm_clipfrac],
                        .tis_clipfrac = sums[metric_tis_clipfrac]};
    metrics.loss = metrics.pg_loss - loss.entropy_coef * metrics.entropy_loss;
    if (loss.use_kl_loss) {
        metrics.loss += loss.kl_loss_coef * metrics.kl_loss;
    }
    return metrics;
}

StepShape step_shape(Options const& options, SampleSet const& samples) {
    bool const recorded_ref = !samples.rollout.ref_log_probs.empty();
    StepShape shape;
    shape.ref_pass = !options.ref_load.empty() || (options.loss.use_kl_loss && !recorded_ref);
    shape.old_pass = samples.synthetic_old || samples.rollout.old_log_probs.empty();
    shape.seq_kl = needs_sequence_kl(options.loss);
    shape.seq_kl_grad = options.loss.estimator == Estimator::gspo;
    shape.tis = options.loss.use_tis;
    shape.whiten = options.normalize_advantages;
    shape.has_ref = shape.ref_pass || recorded_ref;
    return shape;
}

TrainStep::TrainStep(Backend& backend, Trace& trace, Options const& options,
                     ParameterLayout const& layout, SampleSet const& samples,
                     ModelCapacity capacity, std::vector<float> policy,
                     std::vector<float> const& ref, bool recompute_layers)
    : backend_(backend),
      trace_(trace),
      options_(options),
      layout_(layout),
      samples_(samples),
      shape_(step_shape(options, samples)),
      model_(backend, trace, layout.config, capacity, recompute_layers),
      initial_(std::move(policy)),
      weights_(backend, layout.size, 1, DType::f32, "weights"),
      gradients_(backend, layout.size, 1, DType::f32, "gradients"),
      moment1_(backend, layout.size, 1, DType::f32, "Adam's first moment"),
      moment2_(backend, layout.size, 1, DType::f32, "Adam's second moment"),
      metrics_(backend, metric_count + 1, 1, DType::f32, "metrics") {
    DType const T = backend.compute_dtype();
    if (!ref.empty()) {
        ref_ = Buffer(backend, layout.size, 1, T, "reference weights");
        set_rounded(ref_, ref);
    }
    if (rounds()) {
        rounded_ = Buffer(backend, layout.size, 1, T, "compute weights");
        if (std::all_of(initial_.begin(), initial_.end(), is_bf16)) {
            initial_bf16_ = bf16_of(initial_);
        }
    }
}

std::int64_t TrainStep::state_bytes(std::int64_t parameters, bool ref, DType dtype) {
    auto const T = static_cast<std::int64_t>(element_bytes(dtype));
    std::int64_t const floats = std::int64_t{4} * 4;  // weights, gradients, two moments
    return parameters * (floats + (ref ? T : 0) + (dtype == DType::f32 ? 0 : T));
}

/// `values` in the type of `to`; the gradients serve as the way there.
void TrainStep::set_rounded(Tensor to, std::vector<float> const& values) {
    Tensor const way = to.dtype == DType::f32 ? to : gradients_.tensor();
    backend_.upload(way, values.data());
    if (to.data != way.data) {
        backend_.copy(to, way);
    }
}

void TrainStep::prepare(Variant& variant) {
    Rollout const& rollout = samples_.rollout;
    for (std::size_t i = 0; i < variant.batches().size(); ++i) {
        ResponseRows const& rows = variant.batches()[i].loss_rows();
        BatchBuffers& buffers = variant.buffers()[i];
        auto const upload = [&](Tensor to, std::vector<float> const& recorded) {
            if (!recorded.empty()) {
                backend_.upload(to, picked(recorded, rows).data());
            }
        };
        upload(buffers.old_log_probs, rollout.old_log_probs);
        upload(buffers.ref_log_probs, rollout.ref_log_probs);
        upload(buffers.rollout_log_probs, rollout.rollout_log_probs);
        upload(buffers.old_noise, samples_.old_noise);
        upload(buffers.rollout_noise, samples_.rollout_noise);
        backend_.upload(buffers.advantages,
                        advantages_of(samples_.advantages, variant.batches()[i], rows).data());
    }
}

void TrainStep::reset() {
    if (!initial_bf16_.empty()) {
        backend_.upload(rounded_, initial_bf16_.data());
        backend_.copy(weights_, rounded_);
    } else {
        backend_.upload(weights_, initial_.data());
        if (rounds()) {
            backend_.copy(rounded_, weights_);
        }
    }
    backend_.zero(moment1_);
    backend_.zero(moment2_);
    backend_.synchronize();
}

StepMetrics TrainStep::run(Variant& variant) {
    if (shape_.ref_pass) {
        Tensor const ref = ref_.tensor().absent() ? compute_weights() : ref_.tensor();
        log_prob_pass(variant, "ref", ref, &BatchBuffers::ref_log_probs);
    }
    if (shape_.old_pass) {
        log_prob_pass(variant, "old", compute_weights(), &BatchBuffers::old_log_probs);
        perturb_old(variant);
    }
    if (shape_.whiten) {
        whiten_advantages(variant);
    }
    backend_.zero(gradients_);
    backend_.zero(metrics_);
    for (std::size_t i = 0; i < variant.batches().size(); ++i) {
        train_batch(variant, i);
    }
    return finish(variant);
}

StepMetrics TrainStep::run_nudged(Variant& variant) {
    require(!rounds(), ExitCode::internal, "a nudge of one ulp takes float weights");
    Tensor const ref = ref_;
    std::vector<float> kept(static_cast<std::size_t>(ref.elements()));
    reset();
    backend_.upload(weights_, nudged(initial_, options_.seed, 1).data());
    if (!ref.absent()) {
        backend_.download(kept.data(), ref);
        backend_.upload(ref, nudged(kept, options_.seed, 2).data());
    }
    StepMetrics const metrics = run(variant);
    if (!ref.absent()) {
        backend_.upload(ref, kept.data());
    }
    return metrics;
}

/// `pass` is "ref" or "old"; its log-probs go to `out` of every micro-batch, on loss rows.
void TrainStep::log_prob_pass(Variant& variant, std::string const& pass, Tensor weights,
                              Buffer BatchBuffers::* out) {
    Span const span = trace_.span(SpanKind::pass, pass + "_forward");
    ModelViews const views = make_views(layout_, weights);
    for (std::size_t i = 0; i < variant.batches().size(); ++i) {
        BatchBuffers& buffers = variant.buffers()[i];
        model_.infer(views, buffers.input(), variant.attention(i),
                     {buffers.pass_log_probs, buffers.entropy});
        variant.loss(i).share(pass, buffers.pass_log_probs, buffers.entropy, buffers.*out);
    }
}

/// Synthetic samples are off-policy by seeded noise on the old log-probs, which the rollout engine
/// saw as well.
void TrainStep::perturb_old(Variant& variant) {
    if (!samples_.synthetic_old) {
        return;
    }
    Span const span = trace_.span(SpanKind::compute, "old_noise");
    for (BatchBuffers& buffers : variant.buffers()) {
        backend_.copy(buffers.rollout_log_probs, buffers.old_log_probs);
        backend_.add(buffers.old_log_probs, buffers.old_noise);
        backend_.add(buffers.rollout_log_probs, buffers.rollout_noise);
    }
}

/// Whitening sums three numbers over DP x CP (every rank joins, with or without rows), each rank
/// those of its own rows.
void TrainStep::whiten_advantages(Variant& variant) {
    Span const span = trace_.span(SpanKind::pass, "advantages");
    Moments moments;
    for (MicroBatch const& batch : variant.batches()) {
        Moments const local =
            masked_moments(advantages_of(samples_.advantages, batch, batch.own), batch.own.mask);
        moments.sum += local.sum;
        moments.sum_squares += local.sum_squares;
        moments.count += local.count;
    }
    std::array<float, 3> sums{static_cast<float>(moments.sum),
                              static_cast<float>(moments.sum_squares),
                              static_cast<float>(moments.count)};
    Buffer wire(backend_, 3, 1, DType::f32, "the moments of the advantages");
    backend_.upload(wire, sums.data());
    if (!planted(Fault::whitening_over_dp_only)) {
        variant.grid().dp_cp().all_reduce_sum("advantages.whiten", wire);
    }
    backend_.download(sums.data(), wire);
    for (std::size_t i = 0; i < variant.batches().size(); ++i) {
        MicroBatch const& batch = variant.batches()[i];
        std::vector<float> values = advantages_of(samples_.advantages, batch, batch.loss_rows());
        whiten(values, {sums[0], sums[1], sums[2]});
        backend_.upload(variant.buffers()[i].advantages, values.data());
    }
}

void TrainStep::train_batch(Variant& variant, std::size_t index) {
    BatchBuffers& b = variant.buffers()[index];
    CpAttention& attention = variant.attention(index);
    ModelOutput const output{b.log_probs, b.entropy};
    ModelViews const weights = make_views(layout_, compute_weights());
    {
        Span const span = trace_.span(SpanKind::pass, "train_forward");
        model_.forward(weights, b.input(), attention, output);
    }
    {
        Span const span = trace_.span(SpanKind::pass, "loss");
        variant.loss(index).apply(b, loss_inputs(b), options_.loss,
                                  metrics_.tensor().row_range(0, metric_count));
    }
    Span const span = trace_.span(SpanKind::pass, "backward");
    model_.backward(weights, make_views(layout_, gradients_), b.input(), attention, output,
                    b.d_log_probs, b.d_entropy);
}

PolicyTensors TrainStep::loss_inputs(BatchBuffers const& b) const {
    return {.log_probs = b.log_probs,
            .old_log_probs = b.old_log_probs,
            .ref_log_probs = shape_.has_ref ? b.ref_log_probs.tensor() : Tensor{},
            .rollout_log_probs = shape_.tis ? b.rollout_log_probs.tensor() : Tensor{},
            .entropy = b.entropy,
            .advantages = b.advantages,
            .mask = b.mask,
            .sample = b.sample_of,
            .seq_kl = b.seq_kl,
            .weight = b.weight};
}

StepMetrics TrainStep::finish(Variant& variant) {
    Span const span = trace_.span(SpanKind::pass, "optimizer");
    if (!planted(Fault::gradient_over_dp_only)) {  // --self-test's DP group is of one rank
        variant.grid().dp_cp().all_reduce_sum("grad", gradients_);
    }
    Tensor const sums = metrics_.tensor().row_range(0, metric_count);
    Tensor const norm = metrics_.tensor().row_range(metric_count, 1);
    variant.grid().dp_cp().all_reduce_sum("metrics", sums);
    {
        Span const update = trace_.span(SpanKind::compute, "adamw");
        AdamWOptions adamw = options_.adamw;
        adamw.step = 1;
        adamw.clip_grad = options_.clip_grad;
        backend_.norm(norm, gradients_);
        backend_.adamw(weights_, moment1_, moment2_, gradients_, norm, rounded_, layout_.ranges,
                       adamw);
    }
    std::array<float, metric_count + 1> values{};
    backend_.download(values.data(), metrics_);
    backend_.synchronize();
    StepMetrics metrics =
        metrics_of(std::vector<double>(values.begin(), values.end()), options_.loss);
    metrics.grad_norm = values[metric_count];
    return metrics;
}

}  // namespace cpstep
