// Heads are scattered and rows gathered among a2a ranks, which then attend over their common rows
// with a share of the heads each.
#pragma once

#include <memory>
#include <vector>

#include "app/cp_attention.hpp"

namespace cpstep {

/// Ulysses (Jacobs et al. 2023), inside a ring of such groups for a2a+p2p (USP: Fang & Zhao 2024).
/// Two all-to-alls each way: Q, K and V together and O; dO and dQ, dK, dV together. Scattered Q, K,
/// V, O and LSE are kept for backward. Key heads that several ranks use are sent to each of them,
/// and their gradients summed at home.
/// Ledger labels: cp.qkv.a2a, cp.o.a2a, cp.do.a2a, cp.dqkv.a2a.
class HeadAttention final : public CpAttention {
  public:
    /// `rows`: attention over the group's rows with scattered_heads().
    HeadAttention(Backend& backend, Comm& comm, Trace& trace, HeadShape shape, CpPlan const& plan,
                  Tensor workspace, std::unique_ptr<CpAttention> rows);

    /// Queries and keys travel together, in forward().
    void begin_forward(Tensor /*kv*/, Tensor /*kept*/) override {}
    void forward(Tensor o, Tensor lse, Tensor q, Tensor kv, Tensor kept) override;
    void backward(Tensor dq, Tensor dkv, Tensor q, Tensor kv, Tensor o, Tensor d_o, Tensor lse,
                  Tensor kept) override;

    static std::int64_t kept_bytes(CpPlan const& plan, HeadShape shape, DType T);
    /// Of this class alone, without that of the attention over rows.
    static std::int64_t workspace_bytes(CpPlan const& plan, HeadShape shape, DType T);

  private:
    /// What a layer keeps: all rows of the group in position order.
    struct Kept {
        Tensor q, kv, o, lse;
    };
    Kept kept_of(Tensor kept) const;
    std::int64_t q_width() const { return local_.heads * local_.head_dim; }
    std::int64_t kv_width() const { return 2 * local_.kv_heads * local_.head_dim; }
    /// Own rows of what goes to or comes from a rank, (S, width).
    Tensor piece(int rank, std::int64_t width) const;
    /// f(columns of local key head g in a piece's 2*G'*D columns, columns in the 2*G*D of kv).
    template <class F>
    void for_each_kv_head(int rank, Tensor piece, Tensor kv, F const& f) const;
    /// Pieces of `width` columns in own_ -> rows of the group in rank order in group_, and back.
    void to_ranks(char const* label, std::int64_t width);
    void from_ranks(char const* label, std::int64_t width);
    Tensor own(std::int64_t width) const;
    Tensor group(std::int64_t width) const;

    Backend& backend_;
    Comm& comm_;
    Trace& trace_;
    HeadShape shape_, local_;
    CpPlan const& plan_;
    DType dtype_;
    std::unique_ptr<CpAttention> over_rows_;
    Buffer ordered_, joined_;  // i32 row indices of JoinPlan
    Tensor own_, group_;       // workspace, flat: own rows by rank; group rows in rank order
    Tensor dq_, dkv_, d_o_;    // workspace: group rows in position order
    Tensor dkv_sum_;           // workspace, f32: own rows, where they are rounded
};

}  // namespace cpstep
