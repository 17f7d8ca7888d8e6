// The CUDA backends beside the host's, for tests that hold one against the other. Without a device
// such a test says so and passes; ctest shows it as skipped.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/cuda_device.hpp"

namespace cpstep {

/// False, with a line that ctest takes for a skip, where no CUDA device can be used.
inline bool gpu_present() {
    static bool const present = [] {
        std::string why;
        if (cuda_device_count(why) > 0) {
            return true;
        }
        std::printf("SKIPPED: no CUDA device: %s\n", why.c_str());
        return false;
    }();
    return present;
}

inline std::uint16_t to_bf16(float value) {
    if (std::isnan(value)) {
        return 0x7fc0;
    }
    auto bits = std::bit_cast<std::uint32_t>(value);
    bits += 0x7fffU + ((bits >> 16U) & 1U);
    return static_cast<std::uint16_t>(bits >> 16U);
}
inline float from_bf16(std::uint16_t bits) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16U);
}

/// The nearest values that dtype holds.
inline std::vector<float> rounded(std::vector<float> values, DType dtype) {
    if (dtype == DType::bf16) {
        for (float& value : values) {
            value = from_bf16(to_bf16(value));
        }
    }
    return values;
}

/// Uniform in [-scale, scale), seeded, values that dtype holds.
inline std::vector<float> random_values(std::int64_t count, unsigned seed, DType dtype = DType::f32,
                                        float scale = 1.0F) {
    std::mt19937 engine(seed);
    std::uniform_real_distribution<float> draw(-scale, scale);
    std::vector<float> values(static_cast<std::size_t>(count));
    std::generate(values.begin(), values.end(), [&] { return draw(engine); });
    return rounded(std::move(values), dtype);
}

/// A matrix in a backend's memory whose rows lie `stride` elements apart; what lies between is NaN
/// and stays so.
class DeviceMatrix {
  public:
    /// Filled with NaN: an output that is not written shows.
    DeviceMatrix(Backend& backend, std::int64_t rows, std::int64_t cols, DType dtype,
                 std::int64_t stride = 0)
        : backend_(backend),
          rows_(rows),
          cols_(cols),
          stride_(std::max(stride, cols)),
          memory_(backend, std::max<std::int64_t>(rows, 1), stride_, dtype, "a test matrix") {
        put(std::vector<float>(static_cast<std::size_t>(memory_.tensor().elements()),
                               std::numeric_limits<float>::quiet_NaN()),
            memory_);
    }
    DeviceMatrix(Backend& backend, std::vector<float> const& values, std::int64_t rows,
                 std::int64_t cols, DType dtype, std::int64_t stride = 0)
        : DeviceMatrix(backend, rows, cols, dtype, stride) {
        put(values, tensor());
    }

    Tensor tensor() const { return memory_.tensor().row_range(0, rows_).columns(0, cols_); }
    operator Tensor() const { return tensor(); }
    /// The values as float, in rows; waits for the device.
    std::vector<float> values() const { return get(tensor()); }
    /// Nothing between the rows was written.
    bool gaps_untouched() const {
        std::vector<float> const all = get(memory_);
        for (std::int64_t i = 0; i < rows_; ++i) {
            for (std::int64_t c = cols_; c < stride_; ++c) {
                if (!std::isnan(all[static_cast<std::size_t>(i * stride_ + c)])) {
                    return false;
                }
            }
        }
        return true;
    }

  private:
    void put(std::vector<float> const& values, Tensor to) {
        if (to.dtype == DType::f32) {
            backend_.upload(to, values.data());
            return;
        }
        std::vector<std::uint16_t> bits(values.size());
        std::transform(values.begin(), values.end(), bits.begin(), to_bf16);
        backend_.upload(to, bits.data());
    }
    std::vector<float> get(Tensor from) const {
        std::vector<float> values(static_cast<std::size_t>(from.elements()));
        if (from.dtype == DType::f32) {
            backend_.download(values.data(), from);
            return values;
        }
        std::vector<std::uint16_t> bits(values.size());
        backend_.download(bits.data(), from);
        std::transform(bits.begin(), bits.end(), values.begin(), from_bf16);
        return values;
    }

    Backend& backend_;
    std::int64_t rows_, cols_, stride_;
    Buffer memory_;
};

/// |a - b| / |b| in double; NaN for unequal or zero sizes and for values that are not finite, which
/// no bound holds.
inline double relative_error(std::vector<float> const& a, std::vector<float> const& b) {
    double difference = 0;
    double norm = 0;
    for (std::size_t i = 0; i < a.size() && a.size() == b.size(); ++i) {
        double const d = static_cast<double>(a[i]) - b[i];
        difference += d * d;
        norm += static_cast<double>(b[i]) * b[i];
    }
    if (a.size() != b.size() || a.empty() || !std::isfinite(difference) || !std::isfinite(norm)) {
        return std::numeric_limits<double>::quiet_NaN();
    }
    return difference == 0 ? 0 : std::sqrt(difference / norm);
}

/// Backends of one process, with our own attention; made once. Call only where gpu_present().
inline Backend& host() {
    static std::unique_ptr<Backend> const backend = make_host_backend(2);
    return *backend;
}
inline Backend& gpu(Precision precision) {
    static std::unique_ptr<Backend> const fp32 =
        make_cuda_backend({.precision = Precision::fp32, .attention = AttentionBackend::reference});
    static std::unique_ptr<Backend> const bf16 =
        make_cuda_backend({.precision = Precision::bf16, .attention = AttentionBackend::reference});
    return precision == Precision::fp32 ? *fp32 : *bf16;
}
inline DType dtype_of_precision(Precision precision) {
    return precision == Precision::fp32 ? DType::f32 : DType::bf16;
}

}  // namespace cpstep
