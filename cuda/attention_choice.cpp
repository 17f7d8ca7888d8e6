// Which attention backend a device gets.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cuda/attention_device.hpp"
#include "cuda/cuda_backend.hpp"

namespace cpstep {

namespace {

#ifdef CPSTEP_CUDNN

using Segments = std::vector<Segment>;

constexpr HeadShape heads = {.heads = 14, .kv_heads = 2, .head_dim = 64};
constexpr std::int64_t rows = 512;
/// Rows after the last that no segment names. They hold NaN: it must not get into a result.
constexpr std::int64_t rows_beyond = 128;
constexpr double bound = 1e-2;

Segments const causal = {{0, rows, 0, rows, 0}};
Segments const full = {{0, 256, 0, rows, rows}};
Segments const bottom_right = {{0, 384, 0, rows, 128}};
/// Sequences of odd lengths, square and with keys ahead.
Segments const packed = {
    {0, 200, 0, 200, 0}, {200, 105, 200, 105, 0}, {305, 77, 305, 92, 15}, {382, 101, 397, 115, 14}};

/// Tensors in device memory of the self-test, one after the other.
class TestMemory {
  public:
    TestMemory(Device const& device, std::size_t bytes)
        : device_(device),
          next_(static_cast<std::byte*>(device.scratch->at_least(bytes, "attention self-test"))),
          end_(next_ + bytes) {}

    /// All bits set: NaN.
    Tensor take(std::int64_t n, std::int64_t cols, DType dtype) {
        Tensor const tensor{next_, dtype, n, cols, cols};
        next_ += (tensor.bytes() + 255) / 256 * 256;
        require(next_ <= end_, ExitCode::internal, "attention self-test: memory of {} x {}", n,
                cols);
        CUDA_CHECK(cudaMemsetAsync(tensor.data, 0xff, tensor.bytes(), device_.stream));
        return tensor;
    }

    /// Uniform in [-scale, scale), NaN in the rows beyond.
    Tensor random(std::int64_t cols, float scale, std::uint32_t seed) {
        Tensor const tensor = take(rows + rows_beyond, cols, DType::bf16);
        std::vector<std::uint16_t> values(static_cast<std::size_t>(rows * cols));
        for (std::uint16_t& value : values) {
            seed = seed * 1664525U + 1013904223U;
            float const x = scale * (static_cast<float>(seed >> 8U) / 8388608.0F - 1.0F);
            std::uint32_t bits = 0;
            std::memcpy(&bits, &x, sizeof(bits));
            value = static_cast<std::uint16_t>(bits >> 16U);
        }
        CUDA_CHECK(cudaMemcpyAsync(tensor.data, values.data(), values.size() * sizeof(values[0]),
                                   cudaMemcpyHostToDevice, device_.stream));
        CUDA_CHECK(cudaStreamSynchronize(device_.stream));
        return tensor;
    }

    /// The first `rows` rows.
    std::vector<float> values(Tensor tensor) const {
        auto const count = static_cast<std::size_t>(rows * tensor.cols);
        std::vector<std::byte> raw(count * element_bytes(tensor.dtype));
        CUDA_CHECK(cudaMemcpyAsync(raw.data(), tensor.data, raw.size(), cudaMemcpyDeviceToHost,
                                   device_.stream));
        CUDA_CHECK(cudaStreamSynchronize(device_.stream));
        std::vector<float> result(count);
        for (std::size_t i = 0; i < count; ++i) {
            std::uint32_t bits = 0;
            std::memcpy(&bits, &raw[i * element_bytes(tensor.dtype)], element_bytes(tensor.dtype));
            bits = tensor.dtype == DType::bf16 ? bits << 16U : bits;
            std::memcpy(&result[i], &bits, sizeof(bits));
        }
        return result;
    }

  private:
    Device const& device_;
    std::byte* next_;
    std::byte* end_;
};

/// |a - b| / |b| over the rows that segments name; NaN where either holds NaN.
double relative_error(std::vector<float> const& a, std::vector<float> const& b) {
    double difference = 0;
    double norm = 0;
    for (std::size_t i = 0; i < b.size(); ++i) {
        double const d = static_cast<double>(a[i]) - b[i];
        difference += d * d;
        norm += static_cast<double>(b[i]) * b[i];
    }
    return std::sqrt(difference / norm);
}

/// Forward and backward of both on one list of segments; "" or what differs.
class SelfTest {
  public:
    SelfTest(Device const& device, DeviceAttention& judge)
        : device_(device), judge_(judge), memory_(device, std::size_t{16} << 20) {
        q_ = memory_.random(q_cols, 2.0F, 1);
        k_ = memory_.random(kv_cols, 2.0F, 2);
        v_ = memory_.random(kv_cols, 1.0F, 3);
        d_o_ = memory_.random(q_cols, 1.0F, 4);
        expected_ = outputs();
        got_ = outputs();
    }

    std::string run(DeviceAttention& candidate, Segments const& segments) {
        for (auto* const each : {&expected_, &got_}) {
            for (Tensor const t : {each->o, each->lse, each->dq, each->dk, each->dv}) {
                CUDA_CHECK(cudaMemsetAsync(t.data, 0xff, t.bytes(), device_.stream));
            }
            DeviceAttention& by = each == &got_ ? candidate : judge_;
            by.forward(each->o, each->lse, q_, k_, v_, heads, segments, Accumulate::overwrite);
            by.backward(each->dq, each->dk, each->dv, q_, k_, v_, expected_.o, d_o_, expected_.lse,
                        heads, segments, Accumulate::overwrite);
        }
        std::int64_t covered = 0;
        for (Segment const& s : segments) {
            covered = std::max(covered, s.q_row + s.q_rows);
        }
        for (auto const& [name, part] :
             {std::pair{"o", &Outputs::o}, std::pair{"lse", &Outputs::lse},
              std::pair{"dq", &Outputs::dq}, std::pair{"dk", &Outputs::dk},
              std::pair{"dv", &Outputs::dv}}) {
            std::vector<float> a = memory_.values(got_.*part);
            std::vector<float> b = memory_.values(expected_.*part);
            bool const forward = part == &Outputs::o || part == &Outputs::lse;
            if (forward) {  // other rows are not written
                auto const size = static_cast<std::size_t>(covered * (got_.*part).cols);
                a.resize(size);
                b.resize(size);
            }
            double const error = relative_error(a, b);
            if (!(error <= bound)) {
                return fmt::format("its {} differs from the reference by {:.2g}", name, error);
            }
        }
        return "";
    }

  private:
    struct Outputs {
        Tensor o, lse, dq, dk, dv;
    };
    static constexpr std::int64_t q_cols = heads.heads * heads.head_dim;
    static constexpr std::int64_t kv_cols = heads.kv_heads * heads.head_dim;

    Outputs outputs() {
        std::int64_t const n = rows + rows_beyond;
        return {memory_.take(n, q_cols, DType::bf16), memory_.take(n, heads.heads, DType::f32),
                memory_.take(n, q_cols, DType::bf16), memory_.take(n, kv_cols, DType::bf16),
                memory_.take(n, kv_cols, DType::bf16)};
    }

    Device const& device_;
    DeviceAttention& judge_;
    TestMemory memory_;
    Tensor q_, k_, v_, d_o_;
    Outputs expected_, got_;
};

struct Candidate {
    std::unique_ptr<DeviceAttention> attention;  // null where it does not do
    std::string reason;
};

Candidate tested_cudnn(Device const& device, SelfTest& test, Packing packing) {
    try {
        auto attention = make_cudnn_attention(device, packing);
        std::vector<Segments> const cases = packing == Packing::together
                                                ? std::vector<Segments>{packed}
                                                : std::vector<Segments>{causal, full, bottom_right};
        for (Segments const& segments : cases) {
            std::string const difference = test.run(*attention, segments);
            if (!difference.empty()) {
                return {nullptr,
                        fmt::format("{} failed the self-test: {}", attention->name(), difference)};
            }
        }
        return {std::move(attention), ""};
    } catch (std::exception const& e) {
        return {nullptr, e.what()};
    }
}

Candidate choose_cudnn(Device const& device, DeviceAttention& judge) {
    SelfTest test(device, judge);
    Candidate apart = tested_cudnn(device, test, Packing::one_by_one);
    if (apart.attention == nullptr) {
        return apart;
    }
    Candidate together = tested_cudnn(device, test, Packing::together);
    if (together.attention == nullptr) {
        apart.reason = "packed sequences one by one: " + together.reason;
        return apart;
    }
    return together;
}

#endif

/// Each call by what suits its size.
class AutomaticAttention final : public DeviceAttention {
  public:
    /// `cudnn` may be null.
    AutomaticAttention(std::unique_ptr<DeviceAttention> reference,
                       std::unique_ptr<DeviceAttention> mma, std::unique_ptr<DeviceAttention> cudnn)
        : reference_(std::move(reference)), mma_(std::move(mma)), cudnn_(std::move(cudnn)) {}

    std::string name() const override {
        return cudnn_ ? cudnn_->name() + " + " + mma_->name() : mma_->name();
    }
    void forward(Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, HeadShape shape,
                 std::span<Segment const> segments, Accumulate mode) override {
        by_size(segments, shape).forward(o, lse, q, k, v, shape, segments, mode);
    }
    void backward(Tensor dq, Tensor dk, Tensor dv, Tensor q, Tensor k, Tensor v, Tensor o,
                  Tensor d_o, Tensor lse, HeadShape shape, std::span<Segment const> segments,
                  Accumulate mode) override {
        by_size(segments, shape).backward(dq, dk, dv, q, k, v, o, d_o, lse, shape, segments, mode);
    }
    std::size_t scratch_bytes(HeadShape shape, std::int64_t q_rows,
                              std::int64_t kv_rows) const override {
        return (cudnn_ ? *cudnn_ : *mma_).scratch_bytes(shape, q_rows, kv_rows);
    }

  private:
    /// Below, some 240 tokens of Qwen2.5-0.5B, speed is not at stake, and with fp32 arithmetic a
    /// cut of the keys changes far less than the rounding of results.
    static constexpr double mma_flop = 1e8;
    /// From here on cuDNN is faster (jobs/bench_attention.cpp, H100): one sequence of some 2048.
    static constexpr double cudnn_flop = 1e10;

    DeviceAttention& by_size(std::span<Segment const> segments, HeadShape shape) {
        double const flop = forward_flop(segments, shape);
        if (flop < mma_flop) {
            return *reference_;
        }
        return cudnn_ && flop >= cudnn_flop ? *cudnn_ : *mma_;
    }

    std::unique_ptr<DeviceAttention> reference_, mma_, cudnn_;
};

}  // namespace

std::unique_ptr<DeviceAttention> make_device_attention(Device const& device,
                                                       AttentionBackend wanted, DType dtype,
                                                       std::string& reason) {
    reason.clear();
    auto reference = make_reference_attention(device);
    if (wanted == AttentionBackend::reference) {
        return reference;
    }
    if (dtype != DType::bf16) {
        reason = "cuDNN and mma attention compute in bf16 only";
        require(wanted == AttentionBackend::automatic, ExitCode::environment,
                "--attention-backend: {}", reason);
        return reference;
    }
    if (wanted == AttentionBackend::mma) {
        return make_mma_attention(device);
    }
    std::unique_ptr<DeviceAttention> cudnn;
#ifdef CPSTEP_CUDNN
    Candidate chosen = choose_cudnn(device, *reference);
    reason = chosen.reason;
    cudnn = std::move(chosen.attention);
#else
    reason = "this build has no cuDNN";
#endif
    if (wanted == AttentionBackend::cudnn) {
        require(cudnn != nullptr, ExitCode::environment, "--attention-backend cudnn: {}", reason);
        return cudnn;
    }
    return std::make_unique<AutomaticAttention>(std::move(reference), make_mma_attention(device),
                                                std::move(cudnn));
}

}  // namespace cpstep
