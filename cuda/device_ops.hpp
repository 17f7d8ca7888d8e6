// The operations of Backend on a CUDA device: each enqueues kernels on Device::stream and returns.
// Formulas and sources stand at the host operations of the same name. `T` below is f32 or bf16, the
// compute type; sums are f32 or wider. Tensors may have a row stride larger than their columns
// unless said otherwise; zero rows are allowed and launch nothing. Indices (ids, targets, rows) are
// trusted: inputs were checked when they were read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "cuda/adamw.hpp"
#include "cuda/attention.hpp"
#include "cuda/backend.hpp"
#include "cuda/layers.hpp"
#include "cuda/policy_loss.hpp"
#include "cuda/tensor.hpp"

struct CUstream_st;

namespace cpstep {

/// Device memory that calls on one stream use one after another.
class Scratch {
  public:
    Scratch() = default;
    Scratch(Scratch const&) = delete;
    Scratch& operator=(Scratch const&) = delete;
    virtual ~Scratch() = default;
    /// The block of this name, at least this large, 256-byte aligned; contents are undefined. It
    /// grows when more is asked for (which waits for the device), so sizes are asked for at their
    /// largest first where they are known.
    virtual void* at_least(std::size_t bytes, std::string_view name) = 0;
};

/// Matrix products with fp32 accumulation; float operands are never rounded to TF32.
class MatrixProducts {
  public:
    MatrixProducts() = default;
    MatrixProducts(MatrixProducts const&) = delete;
    MatrixProducts& operator=(MatrixProducts const&) = delete;
    virtual ~MatrixProducts() = default;
    /// c = op(a) op(b) + (add ? c : 0) + (bias present ? bias (1,n) for every row : 0).
    /// op(a) (m,k)  op(b) (k,n)  c (m,n), row-major with strides; a and b of one type, c of that
    /// type or f32.
    virtual void multiply(Tensor c, Tensor a, bool transpose_a, Tensor b, bool transpose_b,
                          bool add, Tensor bias) = 0;
};

/// Small tables in device memory.
class Tables {
  public:
    Tables() = default;
    Tables(Tables const&) = delete;
    Tables& operator=(Tables const&) = delete;
    virtual ~Tables() = default;
    /// Where these words are, to be read only, once the stream comes to what is queued next. They
    /// stay there until 15 other tables have been asked for.
    virtual std::int32_t* put(std::span<std::int32_t const> words) = 0;
};

/// What every launcher works with.
struct Device {
    CUstream_st* stream = nullptr;
    int multiprocessors = 0;
    Scratch* scratch = nullptr;
    Tables* tables = nullptr;
    MatrixProducts* products = nullptr;
};

namespace device {

// rows.cu
void copy(Device const& d, Tensor dst, Tensor src);  ///< any two of f32 and bf16, or equal types
void zero(Device const& d, Tensor dst);
void add(Device const& d, Tensor dst, Tensor src);  ///< dst f32, src f32 or bf16
void gather_rows(Device const& d, Tensor dst, Tensor src, Tensor index);  ///< T, equal types
void scatter_add_rows(Device const& d, Tensor dst, Tensor src,
                      Tensor index);  ///< T, equal types, distinct indices

// embedding.cu: x T (S,h), table T (V,h), dtable f32; backward is deterministic (no float atomics)
void embedding_forward(Device const& d, Tensor x, Tensor table, Tensor ids);
void embedding_backward(Device const& d, Tensor dtable, Tensor dx, Tensor ids);

// norm.cu: y, x, from, delta, w, dy, dx T; rstd f32 (S,1); dw f32. As Backend::rmsnorm_*.
void rmsnorm_forward(Device const& d, Tensor y, Tensor rstd, Tensor x, Tensor from, Tensor delta,
                     Tensor w, double eps);
void rmsnorm_backward(Device const& d, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w,
                      Tensor rstd);

// rope.cu: x T in place; positions i32
void rope(Device const& d, Tensor x, Tensor positions, std::int64_t head_dim, double theta,
          Rotation direction);

// mlp.cu: T
void swiglu_forward(Device const& d, Tensor y, Tensor gate_up);
void swiglu_backward(Device const& d, Tensor dgate_up, Tensor dy, Tensor gate_up);

// linear.cu: y, x, w, b, dx, dy T; dw, db f32
void linear_forward(Device const& d, Tensor y, Tensor x, Tensor w, Tensor b);
void linear_backward(Device const& d, Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x,
                     Tensor w, bool add_dx);

// lm_head.cu: x, w, logits, dx T; dw, log_prob, entropy, lse, d_* f32. Kept logits are z - lse, in
// T.
void lm_head_forward(Device const& d, Tensor log_prob, Tensor entropy, Tensor lse, Tensor logits,
                     Tensor x, Tensor w, Tensor targets);
void lm_head_backward(Device const& d, Tensor dx, Tensor dw, Tensor d_log_prob, Tensor d_entropy,
                      Tensor logits, Tensor x, Tensor w, Tensor targets, Tensor lse,
                      Tensor entropy);
/// Scratch bytes that both take for at most `rows` rows; kept: logits are kept.
std::size_t lm_head_scratch_bytes(std::int64_t rows, std::int64_t vocabulary, DType dtype,
                                  bool kept);

// policy_loss.cu: f32; sums are deterministic
void sequence_kl_partial(Device const& d, Tensor partial, Tensor factor_partial, Tensor mask_sum,
                         PolicyTensors const& rows, PolicyLossOptions const& options);
void policy_loss(Device const& d, Tensor d_log_probs, Tensor d_entropy, Tensor d_seq_kl,
                 Tensor metrics, PolicyTensors const& rows, PolicyLossOptions const& options);
void sequence_kl_backward(Device const& d, Tensor d_log_probs, Tensor d_seq_kl, Tensor mask_sum,
                          Tensor mask, Tensor sample);

// adamw.cu: f32 contiguous arenas; `rounded` bf16 or absent; norm (1,1) on the device
void norm(Device const& d, Tensor norm, Tensor x);
/// The sum of squares, as one double at `result` in device memory; deterministic.
void squared_norm(Device const& d, double* result, Tensor x);
void adamw(Device const& d, Tensor w, Tensor m, Tensor v, Tensor g, Tensor norm, Tensor rounded,
           std::span<ParameterRange const> ranges, AdamWOptions const& options);

}  // namespace device

/// Attention over segments on the device. q, k, v, d_o of one T; lse f32. Forward: o of T or f32
/// for overwrite, f32 for merge. Backward: o of T; dq, dk, dv of T or f32 for overwrite, f32 for
/// merge.
class DeviceAttention {
  public:
    DeviceAttention() = default;
    DeviceAttention(DeviceAttention const&) = delete;
    DeviceAttention& operator=(DeviceAttention const&) = delete;
    virtual ~DeviceAttention() = default;
    /// "reference", "mma", "cudnn 9.14.0": for reports.
    virtual std::string name() const = 0;
    virtual void forward(Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, HeadShape shape,
                         std::span<Segment const> segments, Accumulate mode) = 0;
    virtual void backward(Tensor dq, Tensor dk, Tensor dv, Tensor q, Tensor k, Tensor v, Tensor o,
                          Tensor d_o, Tensor lse, HeadShape shape,
                          std::span<Segment const> segments, Accumulate mode) = 0;
    /// Scratch bytes for at most these rows of queries and keys in a call.
    virtual std::size_t scratch_bytes(HeadShape shape, std::int64_t q_rows,
                                      std::int64_t kv_rows) const = 0;
};

enum class AttentionBackend : std::uint8_t { automatic, cudnn, mma, reference };

/// automatic: for f32 reference; for bf16 by the size of a call reference, mma, or cudnn where it
/// was built in, supports the device and passes its self-test against `reference`. By name:
/// Error(environment) with the reason where it does not do. `reason` becomes why the choice was
/// made, "" where nothing needs saying.
std::unique_ptr<DeviceAttention> make_device_attention(Device const& device,
                                                       AttentionBackend wanted, DType dtype,
                                                       std::string& reason);

}  // namespace cpstep
