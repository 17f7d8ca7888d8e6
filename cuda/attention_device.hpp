// What the attention backends of a device share: our kernels, what is done to rows between those of
// cuDNN, and the makers of all backends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>

#include "cuda/attention_segments.hpp"
#include "cuda/device_ops.hpp"

namespace cpstep {

namespace device {

// attention_reference*.cu: fp32 arithmetic on f32 or bf16 inputs. attention_mma*.cu: bf16
// products on tensor cores; what does not suit goes to the reference. Both: no S x K matrix, no
// atomics, so that each run gives the same bits. head_dim is a multiple of 8, at most 256.

/// As Backend::attention_forward.
void reference_attention(Device const& d, AttentionForward const& call,
                         std::span<Segment const> segments, Accumulate mode);
void mma_attention(Device const& d, AttentionForward const& call, std::span<Segment const> segments,
                   Accumulate mode);
/// Overwrite: rows of dq (by `queries`) and of dk and dv (by `keys`) that a segment covers are
/// replaced, others left alone; merge: added to.
void reference_attention(Device const& d, AttentionBackward const& call,
                         std::span<Segment const> segments, Accumulate queries, Accumulate keys);
void mma_attention(Device const& d, AttentionBackward const& call,
                   std::span<Segment const> segments, Accumulate queries, Accumulate keys);
/// Heads of a multiple of 8 values up to 128, bf16 rows of aligned 16-byte chunks.
bool mma_suits(HeadShape shape, std::initializer_list<Tensor> inputs);
/// Scratch bytes of all four for at most these rows.
std::size_t own_scratch_bytes(HeadShape shape, std::int64_t q_rows, std::int64_t kv_rows);

/// Tables and buffers of a backward call of our kernels, in device memory.
struct BackwardWork {
    std::size_t query_tiles = 0, key_tiles = 0;
    Tile const* queries = nullptr;  ///< tiles of 64 queries
    KeyTile const* keys = nullptr;  ///< tiles of 64 keys
    Tile const* parts = nullptr;
    Matrix<float> delta;            ///< (S, H): do_i . o_i
    Tensor dk_by_head, dv_by_head;  ///< (64 rows a key tile, H*D) f32
};
/// Makes them and queues what computes delta.
BackwardWork begin_backward(Device const& d, AttentionBackward const& call,
                            std::span<Segment const> segments);
/// dk and dv of keys that a segment names: the sums over the query heads of each group.
void sum_heads(Device const& d, AttentionBackward const& call, BackwardWork const& work,
               Accumulate mode);

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

}  // namespace device

std::unique_ptr<DeviceAttention> make_reference_attention(Device const& device);
std::unique_ptr<DeviceAttention> make_mma_attention(Device const& device);

#ifdef CPSTEP_CUDNN
/// Whether a cuDNN call may take several packed sequences.
enum class Packing : std::uint8_t { one_by_one, together };

/// Error(environment) with the reason where cuDNN does not do.
std::unique_ptr<DeviceAttention> make_cudnn_attention(Device const& device, Packing packing);
#endif

}  // namespace cpstep
