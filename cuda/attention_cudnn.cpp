// Attention by cuDNN, in bf16. Segments become pieces under masks that cuDNN knows; several pieces
// of one mask are one call over packed sequences where that works.
//
// Which path a piece takes:
// - fewer than 64 queries or keys, heads of neither 64 nor 128 values, or rows that do not suit
//   (rows_suit): mma, our own kernels. cuDNN has wrong gradients for some tiny shapes
//   (cudnn-frontend issues 160 and 1072) and rounds what each piece gives to bf16: with tiny pieces
//   packed too, a golden gradient of a k bias was 1.6 times as far from fp32 as CP=1's.
// - at least 4096 queries: one sequence, exact lengths, up to a fifth faster than packed ones
//   (jobs/bench_attention.cpp, H200, 16k to 64k tokens).
// - else packed: lengths and offsets are data, so that one plan serves all lengths up to a power of
//   two. A plan takes a third of a second to build, and micro-batches rarely repeat a length. No
//   sequence is empty (NaN before cuDNN 9.25).
//
// cuDNN writes where the caller wants it if that is bf16, to be overwritten and, for dk and dv, if
// no two pieces share keys; else to scratch, and rows are merged or added from there in the order
// of the pieces. Gradients of queries are summed by cuDNN in fp32 with atomics: their last bits may
// differ from run to run (its deterministic form takes memory quadratic in the length before 9.25).
#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cuda/attention_device.hpp"
#include "cuda/attention_graph.hpp"
#include "cuda/cuda_backend.hpp"

namespace cpstep {

namespace {

using device::put_rows;

constexpr std::int64_t least_rows = 64;
constexpr std::int64_t lone_rows = 4096;

/// A power of two: only blocks without work come with rows beyond the longest sequence.
std::int64_t longest_of(std::int64_t rows) {
    return static_cast<std::int64_t>(
        std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(rows, 128))));
}
/// Memory comes with these rows: in steps of an eighth of a power of two.
std::int64_t total_of(std::int64_t rows) {
    std::int64_t const step = longest_of(rows) / 8;
    return (rows + step - 1) / step * step;
}

/// 16-byte rows without gaps, or the K or V columns of one matrix. (Packed sequences whose rows lie
/// otherwise gave wrong gradients: cuDNN 9.14.0 on an H100.)
bool rows_suit(Tensor t) {
    return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 && t.stride * 2 % 16 == 0 &&
           (t.stride == t.cols || t.stride == 2 * t.cols);
}

bool fits(HeadShape shape, std::initializer_list<Tensor> tensors) {
    return (shape.head_dim == 64 || shape.head_dim == 128) &&
           std::all_of(tensors.begin(), tensors.end(),
                       [](Tensor t) { return t.dtype != DType::bf16 || rows_suit(t); });
}

/// Tensors of a call by Operand. stats is lse.
using Operands = std::array<Tensor, operands>;
Tensor& at(Operands& all, Operand operand) {
    return all[static_cast<std::size_t>(operand)];
}
bool of_keys(std::size_t operand) {
    auto const which = static_cast<Operand>(operand);
    return which == Operand::k || which == Operand::v || which == Operand::dk ||
           which == Operand::dv;
}
RowRange rows_of(Piece const& piece, std::size_t operand) {
    return of_keys(operand) ? piece.keys : piece.queries;
}

/// Pieces of a call by path.
struct Work {
    std::vector<std::vector<Piece>> groups;  // for cuDNN, each one call of it
    std::vector<Piece> large;                // the same pieces
    std::vector<Segment> small;              // for mma
    std::vector<RowRange> unseeing;
    std::vector<Piece> all;
};

}  // namespace

class CudnnAttention final : public DeviceAttention {
  public:
    CudnnAttention(Device const& device, Packing packing, bool clears_workspace)
        : device_(device),
          packing_(packing),
          clears_workspace_(clears_workspace),
          graphs_(device.stream) {}

    std::string name() const override {
        std::size_t const v = CudnnGraphs::version();
        return fmt::format("cudnn {}.{}.{}", v / 10000, v / 100 % 100, v % 100);
    }

    void forward(Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, HeadShape shape,
                 std::span<Segment const> segments, Accumulate mode) override;
    void backward(Tensor dq, Tensor dk, Tensor dv, Tensor q, Tensor k, Tensor v, Tensor o,
                  Tensor d_o, Tensor lse, HeadShape shape, std::span<Segment const> segments,
                  Accumulate mode) override;
    std::size_t scratch_bytes(HeadShape shape, std::int64_t q_rows,
                              std::int64_t kv_rows) const override;

  private:
    Tensor scratch(std::int64_t rows, std::int64_t cols, DType dtype, std::string_view name) const;
    Work divide(std::span<Segment const> segments, bool usable) const;
    bool runs_packed(std::vector<Piece> const& group) const {
        return packing_ == Packing::together && group.front().queries.count < lone_rows;
    }
    GraphShape shape_of(std::vector<Piece> const& group, Operands const& tensors, HeadShape shape,
                        bool backward) const;
    GraphMemory memory_of(std::vector<Piece> const& group, Operands const& tensors,
                          bool backward) const;
    void run(std::vector<Piece> const& group, Operands& tensors, HeadShape shape, bool backward);
    void backward_groups(Work const& work, Operands& tensors, AttentionBackward const& call,
                         AttentionBackward const& to, Accumulate mode, Accumulate keys);

    Device device_;
    Packing packing_;
    bool clears_workspace_;
    CudnnGraphs graphs_;
};

Tensor CudnnAttention::scratch(std::int64_t rows, std::int64_t cols, DType dtype,
                               std::string_view name) const {
    Tensor tensor{nullptr, dtype, rows, cols, cols};
    tensor.data = device_.scratch->at_least(std::max<std::size_t>(tensor.bytes(), 1), name);
    return tensor;
}

Work CudnnAttention::divide(std::span<Segment const> segments, bool usable) const {
    Pieces pieces = pieces_of(segments);
    Work work;
    work.all = std::move(pieces.pieces);
    work.unseeing = std::move(pieces.unseeing);
    std::vector<Piece> together;
    for (Piece const& piece : work.all) {
        if (!usable || piece.queries.count < least_rows || piece.keys.count < least_rows) {
            work.small.push_back(piece.segment());
            continue;
        }
        work.large.push_back(piece);
        if (packing_ == Packing::together && piece.queries.count < lone_rows) {
            together.push_back(piece);
        } else {
            work.groups.push_back({piece});
        }
    }
    for (std::vector<Piece>& group : packed_groups(together)) {
        work.groups.push_back(std::move(group));
    }
    return work;
}

GraphShape CudnnAttention::shape_of(std::vector<Piece> const& group, Operands const& tensors,
                                    HeadShape shape, bool backward) const {
    GraphShape result;
    result.backward = backward;
    result.mask = group.front().mask;
    result.heads = shape.heads;
    result.kv_heads = shape.kv_heads;
    result.head_dim = shape.head_dim;
    for (std::size_t i = 0; i < operands; ++i) {
        result.strides[i] = i == static_cast<std::size_t>(Operand::stats) ? 0 : tensors[i].stride;
    }
    for (Piece const& piece : group) {
        result.q_rows = std::max(result.q_rows, piece.queries.count);
        result.kv_rows = std::max(result.kv_rows, piece.keys.count);
    }
    if (runs_packed(group)) {
        result.sequences = static_cast<std::int64_t>(group.size());
        result.q_rows = longest_of(result.q_rows);
        result.kv_rows = longest_of(result.kv_rows);
        if (backward) {
            result.q_total = total_of(tensors[static_cast<std::size_t>(Operand::q)].rows);
            result.kv_total = total_of(tensors[static_cast<std::size_t>(Operand::k)].rows);
        }
    }
    return result;
}

/// Packed: pointers to whole operands, offsets and lengths in a table on the device.
GraphMemory CudnnAttention::memory_of(std::vector<Piece> const& group, Operands const& tensors,
                                      bool backward) const {
    std::size_t const used = backward ? operands : forward_operands;
    std::vector<std::int64_t> offsets;
    std::vector<std::int32_t> words;
    for (std::size_t i = 0; i < used; ++i) {
        for (Piece const& piece : group) {
            offsets.push_back(rows_of(piece, i).begin * tensors[i].stride);
        }
        offsets.push_back(rows_of(group.back(), i).end() * tensors[i].stride);
    }
    words.resize(2 * offsets.size());
    std::memcpy(words.data(), offsets.data(), offsets.size() * sizeof(std::int64_t));
    for (bool const keys : {false, true}) {
        for (Piece const& piece : group) {
            words.push_back(static_cast<std::int32_t>((keys ? piece.keys : piece.queries).count));
        }
    }
    std::int32_t* const table = device_.tables->put(words);
    GraphMemory memory;
    for (std::size_t i = 0; i < used; ++i) {
        memory.data[i] = tensors[i].data;
        memory.offsets[i] = reinterpret_cast<std::int64_t*>(table) + i * (group.size() + 1);
    }
    memory.q_lengths = table + 2 * offsets.size();
    memory.kv_lengths = memory.q_lengths + group.size();
    return memory;
}

/// One call of cuDNN. The tensor of stats is rows by heads; of bf16 ones all but outputs are read.
void CudnnAttention::run(std::vector<Piece> const& group, Operands& tensors, HeadShape shape,
                         bool backward) {
    GraphShape const plan = shape_of(group, tensors, shape, backward);
    std::size_t const bytes = graphs_.workspace_bytes(plan);
    Tensor const workspace =
        scratch(1, static_cast<std::int64_t>((bytes + 3) / 4), DType::f32, "cudnn workspace");
    if (plan.sequences > 0) {
        if (backward && clears_workspace_) {
            device::zero(device_, workspace);
        }
        graphs_.run(plan, memory_of(group, tensors, backward), workspace.data);
        return;
    }
    Piece const& piece = group.front();
    RowRange const queries = piece.queries;
    Tensor const lse = at(tensors, Operand::stats).row_range(queries.begin, queries.count);
    Tensor const stats = scratch(shape.heads, queries.count, DType::f32, "attention statistics");
    GraphMemory memory;
    for (std::size_t i = 0; i < (backward ? operands : forward_operands); ++i) {
        RowRange const rows = rows_of(piece, i);
        memory.data[i] = tensors[i].row_range(rows.begin, rows.count).data;
    }
    memory.data[static_cast<std::size_t>(Operand::stats)] = stats.data;
    if (backward) {
        device::transpose(device_, stats, lse);
    }
    graphs_.run(plan, memory, workspace.data);
    if (!backward) {
        device::transpose(device_, lse, stats);
    }
}

void CudnnAttention::forward(Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, HeadShape shape,
                             std::span<Segment const> segments, Accumulate mode) {
    AttentionForward const call{o, lse, q, k, v, shape};
    check_attention(call, segments, mode);
    bool const usable = q.dtype == DType::bf16 && fits(shape, {o, q, k, v});
    Work const work = divide(segments, usable);
    bool const replaces = mode == Accumulate::overwrite;
    bool const o_here = replaces && o.dtype == DType::bf16;
    bool const lse_here = replaces && lse.contiguous();
    if (!work.large.empty()) {
        Tensor const to_o =
            o_here ? o : scratch(o.rows, o.cols, DType::bf16, "attention partial rows");
        Tensor const to_lse =
            lse_here ? lse : scratch(lse.rows, lse.cols, DType::f32, "attention partial lse");
        Operands tensors{q, k, v, to_o, to_lse};
        for (std::vector<Piece> const& group : work.groups) {
            run(group, tensors, shape, false);
        }
        std::vector<RowRange> const rows = query_rows(work.large);
        if (!replaces) {
            device::merge_softmax(device_, o, lse, to_o, to_lse, rows);
        } else {
            if (!o_here) {
                put_rows(device_, o, to_o, rows, mode);
            }
            if (!lse_here) {
                put_rows(device_, lse, to_lse, rows, mode);
            }
        }
    }
    device::mma_attention(device_, call, work.small, mode);
    device::put_no_keys(device_, o, lse, work.unseeing, mode);
}

/// Calls of cuDNN for the gradients: straight into `to` where its tensors are bf16 and `keys` says
/// overwrite, else by way of scratch.
void CudnnAttention::backward_groups(Work const& work, Operands& tensors,
                                     AttentionBackward const& call, AttentionBackward const& to,
                                     Accumulate mode, Accumulate keys) {
    bool const dq_here = mode == Accumulate::overwrite && to.dq.dtype == DType::bf16;
    bool const dkv_here = keys == Accumulate::overwrite && to.dk.dtype == DType::bf16;
    std::int64_t const kv_cols = call.k.cols;
    Tensor dkv;
    if (!dkv_here) {
        dkv = scratch(call.k.rows, 2 * kv_cols, DType::bf16, "attention partial keys");
    }
    at(tensors, Operand::dq) =
        dq_here ? to.dq : scratch(to.dq.rows, to.dq.cols, DType::bf16, "attention partial rows");
    at(tensors, Operand::dk) = dkv_here ? to.dk : dkv.columns(0, kv_cols);
    at(tensors, Operand::dv) = dkv_here ? to.dv : dkv.columns(kv_cols, kv_cols);
    for (std::vector<Piece> const& group : work.groups) {
        run(group, tensors, call.shape, true);
        if (!dkv_here) {
            std::vector<RowRange> const rows = key_rows(group);
            put_rows(device_, to.dk, at(tensors, Operand::dk), rows, keys);
            put_rows(device_, to.dv, at(tensors, Operand::dv), rows, keys);
        }
    }
    if (!dq_here) {
        put_rows(device_, to.dq, at(tensors, Operand::dq), query_rows(work.large), mode);
    }
}

void CudnnAttention::backward(Tensor dq, Tensor dk, Tensor dv, Tensor q, Tensor k, Tensor v,
                              Tensor o, Tensor d_o, Tensor lse, HeadShape shape,
                              std::span<Segment const> segments, Accumulate mode) {
    AttentionBackward const call{dq, dk, dv, q, k, v, o, d_o, lse, shape};
    check_attention(call, segments, mode);
    bool const usable = q.dtype == DType::bf16 && fits(shape, {dq, dk, dv, q, k, v, o, d_o});
    Work const work = divide(segments, usable);
    if (mode == Accumulate::overwrite) {
        device::zero_rows(device_, dq, rows_outside(query_rows(work.all), q.rows));
    }
    AttentionBackward to = call;
    bool const shared = any_overlap(key_rows(work.all));
    bool const sums_apart = shared && dk.dtype != DType::f32;
    if (sums_apart) {
        Tensor const sums = scratch(k.rows, 2 * k.cols, DType::f32, "attention sums of keys");
        to.dk = sums.columns(0, k.cols);
        to.dv = sums.columns(k.cols, k.cols);
    }
    if (shared) {
        device::zero(device_, to.dk);
        device::zero(device_, to.dv);
    } else {
        std::vector<RowRange> const unseen = rows_outside(key_rows(work.all), k.rows);
        device::zero_rows(device_, dk, unseen);
        device::zero_rows(device_, dv, unseen);
    }
    Accumulate const keys = shared ? Accumulate::merge : Accumulate::overwrite;
    if (!work.large.empty()) {
        Tensor stats = lse;
        if (!lse.contiguous()) {
            stats = scratch(lse.rows, lse.cols, DType::f32, "attention partial lse");
            device::copy(device_, stats, lse);
        }
        Operands tensors{q, k, v, o, stats, d_o, {}, {}, {}};
        backward_groups(work, tensors, call, to, mode, keys);
    }
    device::mma_attention(device_, to, work.small, mode, keys);
    if (sums_apart) {
        device::copy(device_, dk, to.dk);
        device::copy(device_, dv, to.dv);
    }
}

std::size_t CudnnAttention::scratch_bytes(HeadShape shape, std::int64_t q_rows,
                                          std::int64_t kv_rows) const {
    // cuDNN: dq in f32 and row sums; dk and dv of every query head. For packed sequences those last
    // take the row stride of dk (both lie in one matrix) in four bytes an element, else two bytes
    // without gaps.
    bool const packed = packing_ == Packing::together;
    std::int64_t const width = shape.heads * shape.head_dim;
    std::int64_t const queries = packed ? total_of(q_rows) : q_rows;
    std::int64_t const keys = packed ? total_of(kv_rows) : kv_rows;
    std::int64_t const workspace =
        4 * queries * (width + shape.heads) + keys * width * (packed ? 16 : 4);
    std::int64_t const lse = 2 * 4 * q_rows * shape.heads;
    std::int64_t const partial =
        2 * q_rows * width + 2 * 2 * kv_rows * shape.kv_heads * shape.head_dim;
    return static_cast<std::size_t>(workspace + lse + partial) +
           device::own_scratch_bytes(shape, q_rows, kv_rows);
}

std::unique_ptr<DeviceAttention> make_cudnn_attention(Device const& device, Packing packing) {
    std::size_t const version = CudnnGraphs::version();
    std::string const text =
        fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
    require(version >= 90600, ExitCode::environment,
            "cuDNN {} is too old for bottom-right masks of any length; it takes 9.6 or later",
            text);
    require(version != 91000 && version != 91001, ExitCode::environment,
            "cuDNN {} has known bugs in attention; it takes 9.10.2 or later", text);
    int ordinal = 0;
    int major = 0;
    CUDA_CHECK(cudaGetDevice(&ordinal));
    CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal));
    require(packing == Packing::one_by_one || major == 9 || major == 10, ExitCode::environment,
            "cuDNN packs sequences on sm_90 and sm_100 only");
    // On Hopper before 9.18 gradients of packed sequences read workspace that nothing has written,
    // NaN included (TransformerEngine issue 2186).
    bool const clears = major == 9 && version < 91800;
    return std::make_unique<CudnnAttention>(device, packing, clears);
}

}  // namespace cpstep
