// cuDNN's scaled dot product attention for one mask: plans by shape, built once. No header of cuDNN
// is needed to include this.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "cuda/attention_segments.hpp"
#include "cuda/device_ops.hpp"

namespace cpstep {

/// Tensors of a graph; forward has the first five.
enum class Operand : std::uint8_t { q, k, v, o, stats, d_o, dq, dk, dv };
inline constexpr std::size_t operands = 9;
inline constexpr std::size_t forward_operands = 5;

/// All that shapes a plan. Elements are bf16, stats f32.
///
/// One sequence: rows are exact, stats lie heads by rows.
/// Several (`sequences` > 0): rows are those of the longest or more; each operand's sequences begin
/// at offsets in device memory and have lengths there, stats lie rows by heads.
struct GraphShape {
    bool backward = false;
    std::int64_t sequences = 0;  ///< 0: one, without offsets and lengths
    Piece::Mask mask = Piece::Mask::full;
    std::int64_t q_rows = 0, kv_rows = 0;
    std::int64_t q_total = 0, kv_total = 0;  ///< several: rows of the operands, at least
    std::int64_t heads = 0, kv_heads = 0, head_dim = 0;
    std::array<std::int64_t, operands> strides = {};  ///< of rows, by Operand

    friend auto operator<=>(GraphShape const&, GraphShape const&) = default;
};

/// Device memory that a plan works on.
struct GraphMemory {
    std::array<void*, operands> data = {};
    std::array<std::int64_t*, operands> offsets = {};  ///< (sequences + 1) elements, several only
    std::int32_t* q_lengths = nullptr;                 ///< (sequences), several only
    std::int32_t* kv_lengths = nullptr;
};

class CudnnGraphs {
  public:
    /// Error(environment) where cuDNN does not start.
    explicit CudnnGraphs(CUstream_st* stream);
    CudnnGraphs(CudnnGraphs const&) = delete;
    CudnnGraphs& operator=(CudnnGraphs const&) = delete;
    ~CudnnGraphs();

    /// 91400 for 9.14.0.
    static std::size_t version();
    /// Builds the plan if it is new, which takes 10 ms to 1 s. Error(environment) for a shape that
    /// cuDNN does not support.
    std::size_t workspace_bytes(GraphShape const& shape);
    void run(GraphShape const& shape, GraphMemory const& memory, void* workspace);

  private:
    class Plans;
    std::unique_ptr<Plans> plans_;
};

}  // namespace cpstep
