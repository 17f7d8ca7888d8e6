// Qwen2 decoder over packed rows: forward to log-probabilities of the response rows, and backward.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "app/cp_attention.hpp"
#include "app/parameters.hpp"
#include "cuda/backend.hpp"
#include "io/trace.hpp"

namespace cpstep {

/// Largest sizes any micro-batch of the run has on this rank.
struct ModelCapacity {
    std::int64_t rows = 0;           ///< S
    std::int64_t response_rows = 0;  ///< R
    std::int64_t kept_bytes = 0;     ///< attention_kept_bytes() of a layer

    /// Grows to hold `other` too.
    void cover(ModelCapacity const& other) {
        rows = std::max(rows, other.rows);
        response_rows = std::max(response_rows, other.response_rows);
        kept_bytes = std::max(kept_bytes, other.kept_bytes);
    }
};

/// Index arrays of one micro-batch in the backend's memory.
struct ModelInput {
    Tensor tokens, positions;       ///< (S,1) i32
    Tensor response_rows, targets;  ///< (R,1) i32
};

/// Per response row, (R,1).
struct ModelOutput {
    Tensor log_probs, entropy;
};

/// What decides how large buffers are beside the sizes: the compute type, and the bytes of logits
/// that are kept for backward, above which logits are computed again.
struct MemoryRule {
    DType dtype = DType::f32;
    std::int64_t logits_limit_bytes = Backend::host_logits_limit_bytes;

    bool keeps_logits(ModelConfig const& config, std::int64_t response_rows) const {
        return response_rows * config.vocab_size *
                   static_cast<std::int64_t>(element_bytes(dtype)) <=
               logits_limit_bytes;
    }
};
inline MemoryRule memory_rule(Backend const& backend) {
    return {.dtype = backend.compute_dtype(), .logits_limit_bytes = backend.logits_limit_bytes()};
}

/// Owns every activation buffer; sized once. Memory is linear in S: scores are never kept, logits
/// by the backend's MemoryRule.
class Model {
  public:
    /// recompute_layers: a layer keeps its input only and is computed again in backward (Chen et
    /// al. 2016); for CP groups of one, whose layers send nothing.
    Model(Backend& backend, Trace& trace, ModelConfig const& config, ModelCapacity capacity,
          bool recompute_layers = false);

    /// Forward without a tape (ref and old passes).
    void infer(ModelViews const& weights, ModelInput const& input, CpAttention& attention,
               ModelOutput const& output);
    /// Forward that keeps what backward needs; `output` must live until then.
    void forward(ModelViews const& weights, ModelInput const& input, CpAttention& attention,
                 ModelOutput const& output);
    /// Adds the gradient of sum(d_log_probs . log_probs + d_entropy . entropy) to `gradients`;
    /// follows the forward call of the same micro-batch.
    void backward(ModelViews const& weights, ModelViews const& gradients, ModelInput const& input,
                  CpAttention& attention, ModelOutput const& output, Tensor d_log_probs,
                  Tensor d_entropy);

    /// Bytes all buffers together take where every layer is kept.
    static std::int64_t buffer_bytes(ModelConfig const& config, ModelCapacity capacity,
                                     MemoryRule rule);

  private:
    /// What one layer keeps for backward beside its input.
    struct Tape {
        Buffer x_mid;                   // (S,h) residual stream before the MLP
        Buffer rstd_in, rstd_mid, lse;  // (S,1), (S,1), (S,H)
        Buffer q, kv, o;                // (S,H*D), (S,2*G*D), (S,H*D)
        Buffer gate_up;                 // (S,2F)
        Buffer kept;                    // what the CP method keeps
    };
    /// Views of a tape for the rows of the micro-batch at hand.
    struct Rows {
        Tensor x_in, x_mid, rstd_in, rstd_mid, lse, q, kv, o, gate_up, kept;
    };

    /// Where layer l puts its rows; a pass that keeps nothing uses two tapes in turn.
    Rows rows_of(std::size_t layer, bool keep) const;
    Tensor part(Buffer const& buffer) const { return buffer.tensor().row_range(0, rows_); }
    void run_layers(ModelViews const& weights, ModelInput const& input, CpAttention& attention,
                    bool keep);
    void attention_block(LayerViews const& w, Rows const& t, Tensor from, ModelInput const& input,
                         CpAttention& attention);
    void mlp_block(LayerViews const& w, Rows const& t);
    void head(ModelViews const& weights, ModelInput const& input, ModelOutput const& output,
              bool keep);
    void mlp_backward(LayerViews const& w, LayerViews const& g, Rows const& t);
    void attention_backward(LayerViews const& w, LayerViews const& g, Rows const& t,
                            ModelInput const& input, CpAttention& attention);
    void head_backward(ModelViews const& weights, ModelViews const& gradients,
                       ModelInput const& input, ModelOutput const& output, Tensor d_log_probs,
                       Tensor d_entropy);

    Backend& backend_;
    Trace& trace_;
    ModelConfig config_;
    HeadShape shape_;
    std::int64_t rows_ = 0;     // S of the micro-batch at hand
    std::vector<Buffer> x_in_;  // (S,h) of each layer: residual stream before attention
    std::vector<Tape> tapes_;   // of each layer, or one where layers are computed again
    Buffer x_out_, rstd_out_;   // residual stream after the last layer
    Buffer y_, delta_;          // (S,h) normalised rows; a block's output on its way to the stream
    Buffer act_;                // (S,F)
    Buffer hidden_, lse_head_, logits_;  // (R,h), (R,1), (R,V) or absent
    Buffer dx_, dy_;                     // (S,h)
    Buffer d_act_, d_gate_up_, dq_, dkv_, d_o_, d_hidden_;
};

}  // namespace cpstep
