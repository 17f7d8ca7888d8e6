// Backend on a CUDA device: memory, queues and marks, and the operations of device_ops.hpp.
#include <nvtx3/nvToolsExt.h>

#include <exception>
#include <string>

#include "cuda/cuda_queues.hpp"
#include "cuda/device_ops.hpp"
#include "cuda/device_tables.hpp"
#include "cuda/products.hpp"

namespace cpstep {
namespace {

constexpr int least_capability = 80;  // bf16 products and asynchronous copies start here
/// Beside what is planned by size: slabs of small pieces, partial sums, sort keys.
constexpr std::size_t small_scratch_bytes = std::size_t{64} << 20;

CudaDeviceInfo usable_device(int ordinal) {
    CudaDeviceInfo info = cuda_device_info(ordinal);
    require(info.capability >= least_capability, ExitCode::environment,
            "CUDA device {} ({}) has compute capability {}.{}, {}.{} or later is needed", ordinal,
            info.name, info.capability / 10, info.capability % 10, least_capability / 10,
            least_capability % 10);
    return info;
}

int multiprocessors(int ordinal) {
    int count = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, ordinal));
    return count;
}

/// Whatever may wait for the device when it ends.
struct Parts {
    explicit Parts(CudaBackendOptions const& options, DType dtype)
        : queues(options.ordinal, options.deadline),
          scratch(queues.memory()),
          tables(scratch, queues.compute()),
          staging(queues),
          marks(queues) {
        products = make_matrix_products(
            queues.compute(),
            queues.memory().allocate(products_workspace_bytes, "the workspace of products"));
        device = {.stream = queues.compute(),
                  .multiprocessors = multiprocessors(options.ordinal),
                  .scratch = &scratch,
                  .tables = &tables,
                  .products = products.get()};
        attention = make_device_attention(device, options.attention, dtype, attention_reason);
        queues.synchronize();
    }

    DeviceQueues queues;
    NamedScratch scratch;
    DeviceTables tables;
    Staging staging;
    EventMarks marks;
    std::unique_ptr<MatrixProducts> products;
    Device device;
    std::string attention_reason;
    std::unique_ptr<DeviceAttention> attention;
};

class CudaBackend final : public Backend {
  public:
    explicit CudaBackend(CudaBackendOptions const& options)
        : info_(usable_device(options.ordinal)),
          dtype_(options.precision == Precision::bf16 ? DType::bf16 : DType::f32),
          owned_(std::make_unique<Parts>(options, dtype_)),
          parts_(*owned_),
          d_(parts_.device) {}
    CudaBackend(CudaBackend const&) = delete;
    CudaBackend& operator=(CudaBackend const&) = delete;
    /// Memory that queued work may use, and calls that wait for such work, are left to the end of
    /// the process when the device may never answer.
    ~CudaBackend() override {
        if (std::uncaught_exceptions() > 0 || parts_.queues.given_up()) {
            (void)owned_.release();
        }
    }

    std::int64_t peak_bytes() const override {
        return static_cast<std::int64_t>(parts_.queues.memory().peak_bytes());
    }

    std::string description() const override {
        std::string const& reason = parts_.attention_reason;
        return fmt::format("{} (device {}, sm_{}), {}, attention {}{}, {}", info_.name,
                           info_.ordinal, info_.capability, dtype_ == DType::bf16 ? "bf16" : "fp32",
                           parts_.attention->name(), reason.empty() ? "" : " (" + reason + ")",
                           products_version());
    }

    DType compute_dtype() const override { return dtype_; }
    CudaQueues* queues() override { return &parts_.queues; }
    std::int64_t logits_limit_bytes() const override { return info_.memory_bytes / 8; }

    std::int64_t scratch_bytes(StepSizes const& sizes) const override {
        return static_cast<std::int64_t>(
            products_workspace_bytes + small_scratch_bytes +
            device::lm_head_scratch_bytes(sizes.response_rows, sizes.vocabulary, dtype_,
                                          sizes.keeps_logits) +
            parts_.attention->scratch_bytes(sizes.heads, sizes.rows, sizes.key_rows));
    }

    void* allocate(std::size_t bytes, std::string_view name) override {
        return parts_.queues.memory().allocate(bytes, name);
    }
    void release(void* pointer) noexcept override { parts_.queues.memory().release(pointer); }
    void upload(Tensor dst, void const* src) override { parts_.staging.upload(dst, src); }
    void download(void* dst, Tensor src) override { parts_.staging.download(dst, src); }
    void copy(Tensor dst, Tensor src) override { device::copy(d_, dst, src); }
    void zero(Tensor dst) override { device::zero(d_, dst); }
    void add(Tensor dst, Tensor src) override { device::add(d_, dst, src); }
    void synchronize() override {
        parts_.marks.join_aside();
        parts_.queues.synchronize();
    }
    void set_deadline(std::chrono::milliseconds deadline) override {
        parts_.queues.set_deadline(deadline);
    }

    Mark mark(Queue queue) override {
        return parts_.marks.mark(queue == Queue::wire ? parts_.queues.wire()
                                                      : parts_.queues.compute());
    }
    std::int64_t mark_ns(Mark mark) const override { return parts_.marks.ns(mark); }
    void begin_marks() override { parts_.marks.begin(); }
    Mark mark_posted() override { return parts_.marks.mark_aside(); }
    Mark mark_waited() override {
        parts_.queues.record_compute();
        return parts_.marks.mark_aside();
    }
    void push_range(char const* name) override { (void)nvtxRangePushA(name); }
    void pop_range() override { (void)nvtxRangePop(); }

    void embedding_forward(Tensor x, Tensor table, Tensor ids) override {
        device::embedding_forward(d_, x, table, ids);
    }
    void embedding_backward(Tensor dtable, Tensor dx, Tensor ids) override {
        device::embedding_backward(d_, dtable, dx, ids);
    }
    void rmsnorm_forward(Tensor y, Tensor rstd, Tensor x, Tensor from, Tensor delta, Tensor w,
                         double eps) override {
        device::rmsnorm_forward(d_, y, rstd, x, from, delta, w, eps);
    }
    void rmsnorm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w,
                          Tensor rstd) override {
        device::rmsnorm_backward(d_, dx, dw, dy, x, w, rstd);
    }
    void linear_forward(Tensor y, Tensor x, Tensor w, Tensor b) override {
        device::linear_forward(d_, y, x, w, b);
    }
    void linear_backward(Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor w,
                         bool add_dx) override {
        device::linear_backward(d_, dx, dw, db, dy, x, w, add_dx);
    }
    void rope(Tensor x, Tensor positions, std::int64_t head_dim, double theta,
              Rotation direction) override {
        device::rope(d_, x, positions, head_dim, theta, direction);
    }
    void swiglu_forward(Tensor y, Tensor gate_up) override {
        device::swiglu_forward(d_, y, gate_up);
    }
    void swiglu_backward(Tensor dgate_up, Tensor dy, Tensor gate_up) override {
        device::swiglu_backward(d_, dgate_up, dy, gate_up);
    }
    void gather_rows(Tensor dst, Tensor src, Tensor index) override {
        device::gather_rows(d_, dst, src, index);
    }
    void scatter_add_rows(Tensor dst, Tensor src, Tensor index) override {
        device::scatter_add_rows(d_, dst, src, index);
    }

    void attention_forward(Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, HeadShape shape,
                           std::span<Segment const> segments, Accumulate mode) override {
        parts_.attention->forward(o, lse, q, k, v, shape, segments, mode);
    }
    void attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor q, Tensor k, Tensor v, Tensor o,
                            Tensor d_o, Tensor lse, HeadShape shape,
                            std::span<Segment const> segments, Accumulate mode) override {
        parts_.attention->backward(dq, dk, dv, q, k, v, o, d_o, lse, shape, segments, mode);
    }

    void lm_head_forward(Tensor log_prob, Tensor entropy, Tensor lse, Tensor logits, Tensor x,
                         Tensor w, Tensor targets) override {
        device::lm_head_forward(d_, log_prob, entropy, lse, logits, x, w, targets);
    }
    void lm_head_backward(Tensor dx, Tensor dw, Tensor d_log_prob, Tensor d_entropy, Tensor logits,
                          Tensor x, Tensor w, Tensor targets, Tensor lse, Tensor entropy) override {
        device::lm_head_backward(d_, dx, dw, d_log_prob, d_entropy, logits, x, w, targets, lse,
                                 entropy);
    }

    void sequence_kl_partial(Tensor partial, Tensor factor_partial, Tensor mask_sum,
                             PolicyTensors const& rows, PolicyLossOptions const& options) override {
        device::sequence_kl_partial(d_, partial, factor_partial, mask_sum, rows, options);
    }
    void policy_loss(Tensor d_log_probs, Tensor d_entropy, Tensor d_seq_kl, Tensor metrics,
                     PolicyTensors const& rows, PolicyLossOptions const& options) override {
        device::policy_loss(d_, d_log_probs, d_entropy, d_seq_kl, metrics, rows, options);
    }
    void sequence_kl_backward(Tensor d_log_probs, Tensor d_seq_kl, Tensor mask_sum, Tensor mask,
                              Tensor sample) override {
        device::sequence_kl_backward(d_, d_log_probs, d_seq_kl, mask_sum, mask, sample);
    }

    double squared_norm(Tensor x) override {
        auto* const sum = static_cast<double*>(parts_.scratch.at_least(sizeof(double), "a norm"));
        device::squared_norm(d_, sum, x);
        double value = 0;
        download(&value, {sum, DType::f32, 1, 2, 2});  // two words of 4 bytes
        return value;
    }
    void norm(Tensor norm, Tensor x) override { device::norm(d_, norm, x); }
    void adamw(Tensor w, Tensor m, Tensor v, Tensor g, Tensor norm, Tensor rounded,
               std::span<ParameterRange const> ranges, AdamWOptions const& options) override {
        device::adamw(d_, w, m, v, g, norm, rounded, ranges, options);
    }

  private:
    CudaDeviceInfo info_;
    DType dtype_;
    std::unique_ptr<Parts> owned_;
    Parts& parts_;
    Device const& d_;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(CudaBackendOptions const& options) {
    return std::make_unique<CudaBackend>(options);
}

}  // namespace cpstep
