// The processor every machine has: Backend over the typed operations, float, with OpenMP and BLAS.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "cuda/backend.hpp"
#include "cuda/clock.hpp"
#include "cuda/lm_head.hpp"
#include "cuda/shape.hpp"

// Present when the BLAS is OpenBLAS; null with any other BLAS.
extern "C" void openblas_set_num_threads(int) __attribute__((weak));
extern "C" char* openblas_get_config() __attribute__((weak));

namespace cpstep {

Buffer::Buffer(Backend& backend, std::int64_t rows, std::int64_t cols, DType dtype,
               std::string_view name) {
    std::int64_t const most =
        std::numeric_limits<std::int64_t>::max() / static_cast<std::int64_t>(element_bytes(dtype));
    require(rows >= 0 && cols >= 0 && (cols == 0 || rows <= most / cols), ExitCode::internal,
            "{} of {} x {} elements cannot be", name, rows, cols);
    Tensor const wanted{nullptr, dtype, rows, cols, cols};
    tensor_ = wanted;
    tensor_.data = backend.allocate(std::max<std::size_t>(wanted.bytes(), 1), name);
    backend_ = &backend;
}

Buffer::Buffer(Buffer&& other) noexcept
    : backend_(std::exchange(other.backend_, nullptr)),
      tensor_(std::exchange(other.tensor_, Tensor{})) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
    Buffer taken(std::move(other));
    std::swap(backend_, taken.backend_);
    std::swap(tensor_, taken.tensor_);
    return *this;
}

Buffer::~Buffer() {
    if (backend_ != nullptr) {
        backend_->release(tensor_.data);
    }
}

namespace {

/// A cache line; also the width of the widest vector registers.
constexpr std::size_t alignment = 64;

/// No object may be larger (PTRDIFF_MAX), rounding to the alignment included.
constexpr std::size_t largest_block = std::numeric_limits<std::ptrdiff_t>::max() - alignment;

/// Copy `rows` rows of `row_bytes` bytes; strides in bytes.
void copy_rows(void* dst, std::size_t dst_stride, void const* src, std::size_t src_stride,
               std::int64_t rows, std::size_t row_bytes) {
    if (rows == 0 || row_bytes == 0) {
        return;
    }
    if (dst_stride == row_bytes && src_stride == row_bytes) {
        std::memcpy(dst, src, static_cast<std::size_t>(rows) * row_bytes);
        return;
    }
    auto* to = static_cast<std::byte*>(dst);
    auto const* from = static_cast<std::byte const*>(src);
    for (std::int64_t i = 0; i < rows; ++i) {
        std::memcpy(to + static_cast<std::size_t>(i) * dst_stride,
                    from + static_cast<std::size_t>(i) * src_stride, row_bytes);
    }
}

std::size_t row_bytes(Tensor t) {
    return static_cast<std::size_t>(t.cols) * element_bytes(t.dtype);
}

std::size_t stride_bytes(Tensor t) {
    return static_cast<std::size_t>(t.stride) * element_bytes(t.dtype);
}

Matrix<float> f32(Tensor t) {
    return t.as<float>();
}
Matrix<std::int32_t> i32(Tensor t) {
    return t.as<std::int32_t>();
}

PolicyRows<float> policy_rows(PolicyTensors const& rows) {
    return {.log_probs = f32(rows.log_probs),
            .old_log_probs = f32(rows.old_log_probs),
            .ref_log_probs = f32(rows.ref_log_probs),
            .rollout_log_probs = f32(rows.rollout_log_probs),
            .entropy = f32(rows.entropy),
            .advantages = f32(rows.advantages),
            .mask = i32(rows.mask),
            .sample = i32(rows.sample),
            .seq_kl = f32(rows.seq_kl),
            .weight = f32(rows.weight),
            .factor_mean = f32(rows.factor_mean)};
}

/// "OpenBLAS 0.3.21" of "OpenBLAS 0.3.21 DYNAMIC_ARCH ...".
std::string blas_name() {
    if (openblas_get_config == nullptr) {
        return "BLAS";
    }
    std::string_view const config = openblas_get_config();
    return std::string(config.substr(0, config.find(' ', config.find(' ') + 1)));
}

class HostBackend final : public Backend {
  public:
    explicit HostBackend(int threads) : threads_(threads) {
        require(threads >= 1, ExitCode::usage, "threads is {}, at least 1 is needed", threads);
        omp_set_num_threads(threads);
        if (openblas_set_num_threads != nullptr) {
            openblas_set_num_threads(threads);
        }
    }

    std::string description() const override {
        return fmt::format("host CPU, {} thread{}, {}", threads_, threads_ == 1 ? "" : "s",
                           blas_name());
    }

    void* allocate(std::size_t bytes, std::string_view name) override {
        void* pointer = nullptr;
        if (bytes <= largest_block) {
            std::size_t const rounded =
                (std::max<std::size_t>(bytes, 1) + alignment - 1) / alignment * alignment;
            pointer = std::aligned_alloc(alignment, rounded);
#ifndef NDEBUG
            // Whatever is read before it is written shows: NaN as float, no valid index as int32.
            if (pointer != nullptr) {
                std::fill_n(static_cast<float*>(pointer), rounded / sizeof(float),
                            std::numeric_limits<float>::quiet_NaN());
            }
#endif
        }
        require(pointer != nullptr, ExitCode::input_data,
                "host memory is short: {} bytes wanted for {}; use more ranks or fewer tokens",
                bytes, name);
        blocks_[pointer] = static_cast<std::int64_t>(bytes);
        taken_ += static_cast<std::int64_t>(bytes);
        peak_ = std::max(peak_, taken_);
        return pointer;
    }

    void release(void* pointer) noexcept override {
        if (auto const block = blocks_.find(pointer); block != blocks_.end()) {
            taken_ -= block->second;
            blocks_.erase(block);
        }
        std::free(pointer);
    }
    std::int64_t peak_bytes() const override { return peak_; }

    void upload(Tensor dst, void const* src) override {
        copy_rows(dst.data, stride_bytes(dst), src, row_bytes(dst), dst.rows, row_bytes(dst));
    }

    void download(void* dst, Tensor src) override {
        copy_rows(dst, row_bytes(src), src.data, stride_bytes(src), src.rows, row_bytes(src));
    }

    void copy(Tensor dst, Tensor src) override {
        require(dst.dtype == src.dtype && dst.rows == src.rows && dst.cols == src.cols,
                ExitCode::internal, "copy: dst is {} x {}, src {} x {}, or their types differ",
                dst.rows, dst.cols, src.rows, src.cols);
        copy_rows(dst.data, stride_bytes(dst), src.data, stride_bytes(src), src.rows,
                  row_bytes(src));
    }

    void add(Tensor dst, Tensor src) override {
        Matrix<float> const to = f32(dst);
        Matrix<float> const from = f32(src);
        require(same_shape(to, from), ExitCode::internal, "add: dst is {} x {}, src {} x {}",
                to.rows, to.cols, from.rows, from.cols);
        // Contiguous memory, an arena of N x 1 above all, is one long row.
        bool const flat = dst.contiguous() && src.contiguous();
        std::int64_t const rows = flat ? 1 : to.rows;
        std::int64_t const cols = flat ? dst.elements() : to.cols;
        bool const large = rows * cols >= parallel_elements;
#pragma omp parallel for schedule(static) if (rows > 1 && large)
        for (std::int64_t i = 0; i < rows; ++i) {
            float* const sum = to.row(i);
            float const* const term = from.row(i);
#pragma omp parallel for simd schedule(static) if (rows == 1 && large)
            for (std::int64_t c = 0; c < cols; ++c) {
                sum[c] += term[c];
            }
        }
    }

    void zero(Tensor dst) override {
        if (dst.elements() == 0) {
            return;
        }
        if (dst.contiguous()) {
            std::memset(dst.data, 0, dst.bytes());
            return;
        }
        auto* bytes = static_cast<std::byte*>(dst.data);
        for (std::int64_t i = 0; i < dst.rows; ++i) {
            std::memset(bytes + static_cast<std::size_t>(i) * stride_bytes(dst), 0, row_bytes(dst));
        }
    }

    void synchronize() override {}

    Mark mark(Queue /*queue*/) override { return now_ns(); }

    void embedding_forward(Tensor x, Tensor table, Tensor ids) override {
        cpstep::embedding_forward(f32(x), f32(table), i32(ids));
    }

    void embedding_backward(Tensor dtable, Tensor dx, Tensor ids) override {
        cpstep::embedding_backward(f32(dtable), f32(dx), i32(ids));
    }

    void rmsnorm_forward(Tensor y, Tensor rstd, Tensor x, Tensor from, Tensor delta, Tensor w,
                         double eps) override {
        if (!delta.absent() && from.data != x.data) {
            copy(x, from);
        }
        cpstep::rmsnorm_forward(f32(y), f32(rstd), f32(x), f32(delta), f32(w),
                                static_cast<float>(eps));
    }

    void rmsnorm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w,
                          Tensor rstd) override {
        cpstep::rmsnorm_backward(f32(dx), f32(dw), f32(dy), f32(x), f32(w), f32(rstd));
    }

    void linear_forward(Tensor y, Tensor x, Tensor w, Tensor b) override {
        cpstep::linear_forward(f32(y), f32(x), f32(w), f32(b));
    }

    void linear_backward(Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor w,
                         bool add_dx) override {
        cpstep::linear_backward(f32(dx), f32(dw), f32(db), f32(dy), f32(x), f32(w), add_dx);
    }

    void rope(Tensor x, Tensor positions, std::int64_t head_dim, double theta,
              Rotation direction) override {
        cpstep::rope(f32(x), i32(positions), head_dim, theta, direction);
    }

    void swiglu_forward(Tensor y, Tensor gate_up) override {
        cpstep::swiglu_forward(f32(y), f32(gate_up));
    }

    void swiglu_backward(Tensor dgate_up, Tensor dy, Tensor gate_up) override {
        cpstep::swiglu_backward(f32(dgate_up), f32(dy), f32(gate_up));
    }

    void gather_rows(Tensor dst, Tensor src, Tensor index) override {
        cpstep::gather_rows(f32(dst), f32(src), i32(index));
    }

    void scatter_add_rows(Tensor dst, Tensor src, Tensor index) override {
        cpstep::scatter_add_rows(f32(dst), f32(src), i32(index));
    }

    void attention_forward(Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, HeadShape shape,
                           std::span<Segment const> segments, Accumulate mode) override {
        cpstep::attention_forward(f32(o), f32(lse), f32(q), f32(k), f32(v), shape, segments, mode);
    }

    void attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor q, Tensor k, Tensor v, Tensor o,
                            Tensor d_o, Tensor lse, HeadShape shape,
                            std::span<Segment const> segments, Accumulate mode) override {
        if (mode == Accumulate::overwrite) {
            zero(dq);
        }
        zero(dk);
        zero(dv);
        cpstep::attention_backward(f32(dq), f32(dk), f32(dv), f32(q), f32(k), f32(v), f32(o),
                                   f32(d_o), f32(lse), shape, segments);
    }

    void lm_head_forward(Tensor log_prob, Tensor entropy, Tensor lse, Tensor logits, Tensor x,
                         Tensor w, Tensor targets) override {
        cpstep::lm_head_forward(f32(log_prob), f32(entropy), f32(lse), f32(logits), f32(x), f32(w),
                                i32(targets));
    }

    void lm_head_backward(Tensor dx, Tensor dw, Tensor d_log_prob, Tensor d_entropy, Tensor logits,
                          Tensor x, Tensor w, Tensor targets, Tensor lse, Tensor entropy) override {
        cpstep::lm_head_backward(f32(dx), f32(dw), f32(d_log_prob), f32(d_entropy), f32(logits),
                                 f32(x), f32(w), i32(targets), f32(lse), f32(entropy));
    }

    void sequence_kl_partial(Tensor partial, Tensor factor_partial, Tensor mask_sum,
                             PolicyTensors const& rows, PolicyLossOptions const& options) override {
        cpstep::sequence_kl_partial(f32(partial), f32(factor_partial), f32(mask_sum),
                                    policy_rows(rows), options);
    }

    void policy_loss(Tensor d_log_probs, Tensor d_entropy, Tensor d_seq_kl, Tensor metrics,
                     PolicyTensors const& rows, PolicyLossOptions const& options) override {
        cpstep::policy_loss(f32(d_log_probs), f32(d_entropy), f32(d_seq_kl), f32(metrics),
                            policy_rows(rows), options);
    }

    void sequence_kl_backward(Tensor d_log_probs, Tensor d_seq_kl, Tensor mask_sum, Tensor mask,
                              Tensor sample) override {
        cpstep::sequence_kl_backward(f32(d_log_probs), f32(d_seq_kl), f32(mask_sum), i32(mask),
                                     i32(sample));
    }

    double squared_norm(Tensor x) override { return cpstep::squared_norm(f32(x)); }

    void norm(Tensor norm, Tensor x) override {
        float* const result = f32(norm).data;
        require(result != nullptr, ExitCode::internal, "norm: no place for the result");
        *result = static_cast<float>(std::sqrt(cpstep::squared_norm(f32(x))));
    }

    void adamw(Tensor w, Tensor m, Tensor v, Tensor g, Tensor norm, Tensor /*rounded*/,
               std::span<ParameterRange const> ranges, AdamWOptions const& options) override {
        AdamWOptions scaled = options;
        if (options.clip_grad > 0) {
            float const* const size = f32(norm).data;
            require(size != nullptr, ExitCode::internal, "adamw: clipping needs the norm");
            scaled.gradient_scale = clip_factor(options.clip_grad, *size);
        }
        cpstep::adamw(f32(w), f32(m), f32(v), f32(g), ranges, scaled);
    }

  private:
    int threads_;
    std::unordered_map<void*, std::int64_t> blocks_;
    std::int64_t taken_ = 0;
    std::int64_t peak_ = 0;
};

}  // namespace

std::unique_ptr<Backend> make_host_backend(int threads) {
    return std::make_unique<HostBackend>(threads);
}

}  // namespace cpstep
