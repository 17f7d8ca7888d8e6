// A processor: memory and every operation of the step. Calls are ordered as on one stream.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/adamw.hpp"
#include "cuda/attention.hpp"
#include "cuda/layers.hpp"
#include "cuda/policy_loss.hpp"
#include "cuda/tensor.hpp"

namespace cpstep {

class Backend;
class CudaQueues;

/// Owns a block of a backend's memory.
class Buffer {
  public:
    Buffer() = default;
    /// `name` is what an out of memory error calls it.
    Buffer(Backend& backend, std::int64_t rows, std::int64_t cols, DType dtype,
           std::string_view name = "a buffer");
    Buffer(Buffer const&) = delete;
    Buffer& operator=(Buffer const&) = delete;
    Buffer(Buffer&& other) noexcept;
    Buffer& operator=(Buffer&& other) noexcept;
    ~Buffer();

    Tensor tensor() const { return tensor_; }
    operator Tensor() const { return tensor_; }  // a Buffer may stand wherever a Tensor is read

  private:
    Backend* backend_ = nullptr;
    Tensor tensor_;
};

/// Per-row inputs of the policy loss; the type-erased form of PolicyRows.
struct PolicyTensors {
    Tensor log_probs, old_log_probs, ref_log_probs, rollout_log_probs, entropy, advantages, mask,
        sample, seq_kl, weight;
    Tensor factor_mean = {};
};

/// Queues of a processor; a host has one, which calls pass through before they return.
enum class Queue : std::uint8_t { compute, wire };

/// Largest sizes of a step, for the scratch memory its operations take.
struct StepSizes {
    std::int64_t rows = 0;           ///< S, query rows
    std::int64_t key_rows = 0;       ///< rows of the longest K/V of an attention call
    std::int64_t response_rows = 0;  ///< R
    std::int64_t vocabulary = 0;
    HeadShape heads;
    bool keeps_logits = true;
};

/// A moment on a queue, for Backend::mark_ns(): a non-negative one is steady-clock nanoseconds.
using Mark = std::int64_t;

/// Shapes, formulas and sources stand at the host operations of the same name
/// (layers.hpp, attention.hpp, lm_head.hpp, policy_loss.hpp, adamw.hpp).
/// Activations, weights and kept logits are of compute_dtype(); log-probs, LSE, rstd, weight
/// gradients and moments are f32 whatever it is.
class Backend {
  public:
    Backend() = default;
    Backend(Backend const&) = delete;
    Backend& operator=(Backend const&) = delete;
    virtual ~Backend() = default;

    /// One line for reports: processor, threads or device, libraries.
    virtual std::string description() const = 0;

    static constexpr std::int64_t host_logits_limit_bytes = std::int64_t{512} << 20;
    /// Logits of a micro-batch up to this size are kept from forward to backward.
    virtual std::int64_t logits_limit_bytes() const { return host_logits_limit_bytes; }
    /// Element type of activations and of the weights that products read.
    virtual DType compute_dtype() const { return DType::f32; }
    /// The device's queues, for wires that work on its memory; null on the host.
    virtual CudaQueues* queues() { return nullptr; }

    /// Bytes of its own that operations of these sizes take, beside the buffers given to them.
    virtual std::int64_t scratch_bytes(StepSizes const& /*sizes*/) const { return 0; }

    /// Throws Error(input_data) that names the block when memory is short.
    virtual void* allocate(std::size_t bytes, std::string_view name) = 0;
    virtual void release(void* pointer) noexcept = 0;
    /// Bytes taken at once, most ever: buffers, and on a device scratch.
    virtual std::int64_t peak_bytes() const = 0;
    virtual void upload(Tensor dst, void const* src) = 0;  ///< src is contiguous host memory
    virtual void download(void* dst, Tensor src) = 0;      ///< waits for all work queued before
    /// dst = src; equal shapes, strides may differ; converts between f32 and bf16 (to nearest
    /// even).
    virtual void copy(Tensor dst, Tensor src) = 0;
    virtual void zero(Tensor dst) = 0;
    /// dst += src, dst f32, src f32 or bf16; equal shapes, strides may differ.
    virtual void add(Tensor dst, Tensor src) = 0;
    virtual void synchronize() = 0;
    /// How long the host waits for a device, from now on.
    virtual void set_deadline(std::chrono::milliseconds /*deadline*/) {}

    /// The moment at which a queue has done all that was queued so far. mark_ns() of it holds after
    /// synchronize() and until the next begin_marks(), which also aligns a device's clock.
    virtual Mark mark(Queue queue) = 0;
    virtual std::int64_t mark_ns(Mark mark) const { return mark; }
    virtual void begin_marks() {}
    /// Marks of the compute queue for a call on the wire: where the wire was last told to come
    /// after it, and where it is now. A device takes them aside, exact to 6 us and on average to
    /// 1.5, since a mark on the queue itself holds it up for 2 to 5.
    virtual Mark mark_posted() { return mark(Queue::compute); }
    virtual Mark mark_waited() { return mark(Queue::compute); }
    /// Named range for profilers; ranges nest.
    virtual void push_range(char const* /*name*/) {}
    virtual void pop_range() {}

    virtual void embedding_forward(Tensor x, Tensor table, Tensor ids) = 0;
    virtual void embedding_backward(Tensor dtable, Tensor dx, Tensor ids) = 0;
    /// The residual sum x = from + delta goes to x, which may be `from` itself; with no delta x is
    /// read only and `from` ignored.
    virtual void rmsnorm_forward(Tensor y, Tensor rstd, Tensor x, Tensor from, Tensor delta,
                                 Tensor w, double eps) = 0;
    virtual void rmsnorm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w,
                                  Tensor rstd) = 0;
    virtual void linear_forward(Tensor y, Tensor x, Tensor w, Tensor b) = 0;
    virtual void linear_backward(Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor w,
                                 bool add_dx) = 0;
    virtual void rope(Tensor x, Tensor positions, std::int64_t head_dim, double theta,
                      Rotation direction) = 0;
    virtual void swiglu_forward(Tensor y, Tensor gate_up) = 0;
    virtual void swiglu_backward(Tensor dgate_up, Tensor dy, Tensor gate_up) = 0;
    virtual void gather_rows(Tensor dst, Tensor src, Tensor index) = 0;
    virtual void scatter_add_rows(Tensor dst, Tensor src, Tensor index) = 0;

    virtual void attention_forward(Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v,
                                   HeadShape shape, std::span<Segment const> segments,
                                   Accumulate mode) = 0;
    virtual void attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor q, Tensor k, Tensor v,
                                    Tensor o, Tensor d_o, Tensor lse, HeadShape shape,
                                    std::span<Segment const> segments, Accumulate mode) = 0;

    virtual void lm_head_forward(Tensor log_prob, Tensor entropy, Tensor lse, Tensor logits,
                                 Tensor x, Tensor w, Tensor targets) = 0;
    virtual void lm_head_backward(Tensor dx, Tensor dw, Tensor d_log_prob, Tensor d_entropy,
                                  Tensor logits, Tensor x, Tensor w, Tensor targets, Tensor lse,
                                  Tensor entropy) = 0;

    virtual void sequence_kl_partial(Tensor partial, Tensor factor_partial, Tensor mask_sum,
                                     PolicyTensors const& rows,
                                     PolicyLossOptions const& options) = 0;
    virtual void policy_loss(Tensor d_log_probs, Tensor d_entropy, Tensor d_seq_kl, Tensor metrics,
                             PolicyTensors const& rows, PolicyLossOptions const& options) = 0;
    virtual void sequence_kl_backward(Tensor d_log_probs, Tensor d_seq_kl, Tensor mask_sum,
                                      Tensor mask, Tensor sample) = 0;

    virtual double squared_norm(Tensor x) = 0;  ///< waits for all work queued before
    /// norm (1,1) f32 = sqrt(sum of squares of x), summed in double.
    virtual void norm(Tensor norm, Tensor x) = 0;
    /// The gradient scale is min(1, clip_grad / (norm + 1e-6)) when options.clip_grad > 0, else 1.
    /// rounded (N,1) becomes the new w in compute_dtype(); empty where that is f32.
    virtual void adamw(Tensor w, Tensor m, Tensor v, Tensor g, Tensor norm, Tensor rounded,
                       std::span<ParameterRange const> ranges, AdamWOptions const& options) = 0;
};

/// A column of these values in the backend's memory.
template <class T>
Buffer uploaded(Backend& backend, std::vector<T> const& values) {
    Buffer buffer(backend, static_cast<std::int64_t>(values.size()), 1, dtype_of<T>::value);
    backend.upload(buffer, values.data());
    return buffer;
}

/// The processor every machine has. threads: for loops and matrix products, at least 1.
std::unique_ptr<Backend> make_host_backend(int threads);

}  // namespace cpstep
