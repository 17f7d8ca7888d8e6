// What the attention backends of a device share: kernels of attention_reference.cu and
// attention_merge.cu, and the makers of both backends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "cuda/attention_segments.hpp"
#include "cuda/device_ops.hpp"

namespace cpstep {

namespace device {

// attention_reference.cu: fp32 arithmetic on f32 or bf16 inputs, no S x K matrix, no atomics: the
// same bits on each run. head_dim is a multiple of 8, at most 256.

/// As Backend::attention_forward.
void reference_attention(Device const& d, AttentionForward const& call,
                         std::span<Segment const> segments, Accumulate mode);
/// Overwrite: rows of dq (by `queries`) and of dk and dv (by `keys`) that a segment covers are
/// replaced, others left alone; merge: added to.
void reference_attention(Device const& d, AttentionBackward const& call,
                         std::span<Segment const> segments, Accumulate queries, Accumulate keys);
/// Scratch bytes of both for at most these rows.
std::size_t reference_scratch_bytes(HeadShape shape, std::int64_t q_rows, std::int64_t kv_rows);

// attention_merge.cu: each works on the rows `ranges` name.

/// Rows of o (f32) and lse become the running softmax that also holds the keys of part_o (f32 or
/// bf16) and part_lse, as Accumulate::merge.
void merge_softmax(Device const& d, Tensor o, Tensor lse, Tensor part_o, Tensor part_lse,
                   std::span<RowRange const> ranges);
/// dst = part (overwrite) or dst += part (merge, dst f32); f32 or bf16.
void put_rows(Device const& d, Tensor dst, Tensor part, std::span<RowRange const> ranges,
              Accumulate mode);
/// What a forward call leaves for queries that see no key: lse = -inf and o = 0; with merge that is
/// where lse was -inf, other rows stay.
void put_no_keys(Device const& d, Tensor o, Tensor lse, std::span<RowRange const> ranges,
                 Accumulate mode);
void zero_rows(Device const& d, Tensor dst, std::span<RowRange const> ranges);
/// dst (cols, rows) = src (rows, cols) transposed, f32.
void transpose(Device const& d, Tensor dst, Tensor src);

/// Words at a named scratch block, there once the stream comes to what is queued next. By
/// launches that carry them as arguments: a copy from host memory may wait for the device.
std::int32_t* put_words(Device const& d, std::span<std::int32_t const> words,
                        std::string_view name);

}  // namespace device

std::unique_ptr<DeviceAttention> make_reference_attention(Device const& device);

#ifdef CPSTEP_CUDNN
/// Whether a cuDNN call may take several packed sequences.
enum class Packing : std::uint8_t { one_by_one, together };

/// Error(environment) with the reason where cuDNN does not do.
std::unique_ptr<DeviceAttention> make_cudnn_attention(Device const& device, Packing packing);
#endif

}  // namespace cpstep
