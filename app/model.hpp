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
    std::int64_t kept_floats = 0;    ///< attention_kept_floats() of a layer

    /// Grows to hold `other` too.
    void cover(ModelCapacity const& other) {
        rows = std::max(rows, other.rows);
        response_rows = std::max(response_rows, other.response_rows);
        kept_floats = std::max(kept_floats, other.kept_floats);
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

/// Owns every activation buffer; sized once. Memory is linear in S: scores are never kept, logits
/// only when R*V floats are at most logits_limit_bytes.
class Model {
  public:
    static constexpr std::int64_t logits_limit_bytes = std::int64_t{512} << 20;

    Model(Backend& backend, Trace& trace, ModelConfig const& config, ModelCapacity capacity);

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

    /// Floats all buffers together take.
    static std::int64_t buffer_floats(ModelConfig const& config, ModelCapacity capacity);

  private:
    /// What one layer keeps for backward.
    struct Tape {
        Buffer x_in, x_mid;             // (S,h) residual stream before attention, before the MLP
        Buffer rstd_in, rstd_mid, lse;  // (S,1), (S,1), (S,H)
        Buffer q, kv, o;                // (S,H*D), (S,2*G*D), (S,H*D)
        Buffer gate_up;                 // (S,2F)
        Buffer kept;                    // what the CP method keeps
    };
    /// Views of a tape for the rows of the micro-batch at hand.
    struct Rows {
        Tensor x_in, x_mid, rstd_in, rstd_mid, lse, q, kv, o, gate_up, kept;
    };

    Rows rows_of(Tape const& tape) const;
    Tensor part(Buffer const& buffer) const { return buffer.tensor().row_range(0, rows_); }
    void run_layers(ModelViews const& weights, ModelInput const& input, CpAttention& attention,
                    bool keep);
    void attention_block(LayerViews const& w, Rows const& t, ModelInput const& input,
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
    std::int64_t rows_ = 0;  // S of the micro-batch at hand
    std::vector<Tape> tapes_;
    Buffer x_out_, rstd_out_;  // residual stream after the last layer
    Buffer y_, delta_;         // (S,h) normalised rows; a block's output on its way to the stream
    Buffer act_;               // (S,F)
    Buffer hidden_, lse_head_, logits_;  // (R,h), (R,1), (R,V) or absent
    Buffer dx_, dy_;                     // (S,h)
    Buffer d_act_, d_gate_up_, dq_, dkv_, d_o_, d_hidden_;
};

}  // namespace cpstep
