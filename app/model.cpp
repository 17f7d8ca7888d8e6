#include "app/model.hpp"

namespace cpstep {

Model::Model(Backend& backend, Trace& trace, ModelConfig const& config, ModelCapacity capacity,
             bool recompute_layers)
    : backend_(backend),
      trace_(trace),
      config_(config),
      shape_{config.num_attention_heads, config.num_key_value_heads, config.head_dim} {
    DType const T = backend.compute_dtype();
    auto const make = [&](std::int64_t rows, std::int64_t cols, char const* name) {
        return Buffer(backend, rows, cols, T, name);
    };
    auto const floats = [&](std::int64_t rows, std::int64_t cols, char const* name) {
        return Buffer(backend, rows, cols, DType::f32, name);
    };
    std::int64_t const S = capacity.rows;
    std::int64_t const R = capacity.response_rows;
    std::int64_t const h = config.hidden_size;
    std::int64_t const F = config.intermediate_size;
    std::int64_t const q = shape_.heads * shape_.head_dim;
    std::int64_t const kv = 2 * shape_.kv_heads * shape_.head_dim;
    std::int64_t const kept = capacity.kept_bytes / static_cast<std::int64_t>(sizeof(float));
    for (std::int64_t l = 0; l < config.num_hidden_layers; ++l) {
        x_in_.push_back(make(S, h, "a layer's input"));
        if (recompute_layers && l > 0) {
            continue;
        }
        tapes_.push_back({make(S, h, "a layer's residual sum"), floats(S, 1, "a layer's norm"),
                          floats(S, 1, "a layer's norm"), floats(S, shape_.heads, "a layer's LSE"),
                          make(S, q, "a layer's queries"), make(S, kv, "a layer's keys"),
                          make(S, q, "a layer's attention"),
                          make(S, 2 * F, "a layer's gate and up rows"),
                          kept > 0 ? floats(kept, 1, "a layer's gathered rows") : Buffer()});
    }
    x_out_ = make(S, h, "the last residual sum");
    rstd_out_ = floats(S, 1, "the last norm");
    y_ = make(S, h, "normalised rows");
    delta_ = make(S, h, "a block's output");
    act_ = make(S, F, "MLP activations");
    hidden_ = make(R, h, "response rows");
    lse_head_ = floats(R, 1, "the LSE of the logits");
    if (memory_rule(backend).keeps_logits(config, R)) {
        logits_ = make(R, config.vocab_size, "logits");
    }
    dx_ = make(S, h, "the gradient of the residual sum");
    dy_ = make(S, h, "the gradient of normalised rows");
    d_act_ = make(S, F, "the gradient of MLP activations");
    d_gate_up_ = make(S, 2 * F, "the gradient of gate and up rows");
    dq_ = make(S, q, "the gradient of queries");
    dkv_ = make(S, kv, "the gradient of keys");
    d_o_ = make(S, q, "the gradient of attention");
    d_hidden_ = make(R, h, "the gradient of response rows");
}

std::int64_t Model::buffer_bytes(ModelConfig const& config, ModelCapacity capacity,
                                 MemoryRule rule) {
    std::int64_t const h = config.hidden_size;
    std::int64_t const F = config.intermediate_size;
    std::int64_t const q = config.num_attention_heads * config.head_dim;
    std::int64_t const kv = 2 * config.num_key_value_heads * config.head_dim;
    auto const T = static_cast<std::int64_t>(element_bytes(rule.dtype));
    auto const f = static_cast<std::int64_t>(sizeof(float));
    std::int64_t const layers = config.num_hidden_layers;
    std::int64_t const tape =
        T * (2 * h + 2 * q + kv + 2 * F) + f * (2 + config.num_attention_heads);
    std::int64_t const scratch = T * (5 * h + 4 * F + 2 * q + kv) + f;
    bool const keeps = rule.keeps_logits(config, capacity.response_rows);
    std::int64_t const head = T * (2 * h + (keeps ? config.vocab_size : 0)) + f;
    return layers * capacity.kept_bytes + capacity.rows * (layers * tape + scratch) +
           capacity.response_rows * head;
}

Model::Rows Model::rows_of(std::size_t layer, bool keep) const {
    Tape const& tape = tapes_[(keep ? layer : layer % 2) % tapes_.size()];
    return {part(x_in_[layer]), part(tape.x_mid), part(tape.rstd_in), part(tape.rstd_mid),
            part(tape.lse),     part(tape.q),     part(tape.kv),      part(tape.o),
            part(tape.gate_up), tape.kept};
}

void Model::infer(ModelViews const& weights, ModelInput const& input, CpAttention& attention,
                  ModelOutput const& output) {
    run_layers(weights, input, attention, false);
    head(weights, input, output, false);
}

void Model::forward(ModelViews const& weights, ModelInput const& input, CpAttention& attention,
                    ModelOutput const& output) {
    run_layers(weights, input, attention, true);
    head(weights, input, output, true);
}

void Model::run_layers(ModelViews const& weights, ModelInput const& input, CpAttention& attention,
                       bool keep) {
    rows_ = input.tokens.rows;
    Tensor stream;  // the residual sum before the last block's output, delta_
    for (std::size_t l = 0; l < weights.layers.size(); ++l) {
        Rows const t = rows_of(l, keep);
        if (l == 0) {
            Span const span = trace_.span(SpanKind::compute, "embedding");
            backend_.embedding_forward(t.x_in, weights.embedding, input.tokens);
        }
        attention_block(weights.layers[l], t, stream, input, attention);
        mlp_block(weights.layers[l], t);
        stream = t.x_mid;
    }
    Span const span = trace_.span(SpanKind::compute, "final_norm");
    backend_.rmsnorm_forward(part(y_), part(rstd_out_), part(x_out_), stream, part(delta_),
                             weights.final_norm, config_.rms_norm_eps);
}

/// x_in = from + delta_, or x_in as it is in the first layer, where there is no `from`. K and V are
/// projected before Q, so that their exchange starts first.
void Model::attention_block(LayerViews const& w, Rows const& t, Tensor from,
                            ModelInput const& input, CpAttention& attention) {
    std::int64_t const D = shape_.head_dim;
    {
        Span const span = trace_.span(SpanKind::compute, "layer.kv");
        backend_.rmsnorm_forward(part(y_), t.rstd_in, t.x_in, from,
                                 from.absent() ? Tensor{} : part(delta_), w.input_norm,
                                 config_.rms_norm_eps);
        backend_.linear_forward(t.kv, part(y_), w.kv_weight, w.kv_bias);
        backend_.rope(keys_of(t.kv), input.positions, D, config_.rope_theta, Rotation::forward);
    }
    attention.begin_forward(t.kv, t.kept);
    {
        Span const span = trace_.span(SpanKind::compute, "layer.q");
        backend_.linear_forward(t.q, part(y_), w.q_weight, w.q_bias);
        backend_.rope(t.q, input.positions, D, config_.rope_theta, Rotation::forward);
    }
    {
        Span const span = trace_.span(SpanKind::pass, "layer.attention");
        attention.forward(t.o, t.lse, t.q, t.kv, t.kept);
    }
    Span const span = trace_.span(SpanKind::compute, "layer.out");
    backend_.linear_forward(part(delta_), t.o, w.o_weight, {});
}

void Model::mlp_block(LayerViews const& w, Rows const& t) {
    Span const span = trace_.span(SpanKind::compute, "layer.mlp");
    backend_.rmsnorm_forward(part(y_), t.rstd_mid, t.x_mid, t.x_in, part(delta_), w.post_norm,
                             config_.rms_norm_eps);
    backend_.linear_forward(t.gate_up, part(y_), w.gate_up_weight, {});
    backend_.swiglu_forward(part(act_), t.gate_up);
    backend_.linear_forward(part(delta_), part(act_), w.down_weight, {});
}

void Model::head(ModelViews const& weights, ModelInput const& input, ModelOutput const& output,
                 bool keep) {
    Span const span = trace_.span(SpanKind::compute, "lm_head");
    std::int64_t const R = input.targets.rows;
    Tensor const hidden = hidden_.tensor().row_range(0, R);
    Tensor const logits =
        keep && !logits_.tensor().absent() ? logits_.tensor().row_range(0, R) : Tensor{};
    backend_.gather_rows(hidden, part(y_), input.response_rows);
    backend_.lm_head_forward(output.log_probs, output.entropy, lse_head_.tensor().row_range(0, R),
                             logits, hidden, weights.head, input.targets);
}

void Model::backward(ModelViews const& weights, ModelViews const& gradients,
                     ModelInput const& input, CpAttention& attention, ModelOutput const& output,
                     Tensor d_log_probs, Tensor d_entropy) {
    head_backward(weights, gradients, input, output, d_log_probs, d_entropy);
    for (std::size_t l = weights.layers.size(); l-- > 0;) {
        Rows const t = rows_of(l, true);
        if (tapes_.size() < weights.layers.size()) {
            attention_block(weights.layers[l], t, {}, input, attention);
            mlp_block(weights.layers[l], t);
        }
        mlp_backward(weights.layers[l], gradients.layers[l], t);
        attention_backward(weights.layers[l], gradients.layers[l], t, input, attention);
    }
    Span const span = trace_.span(SpanKind::compute, "embedding.backward");
    backend_.embedding_backward(gradients.embedding, part(dx_), input.tokens);
}

void Model::head_backward(ModelViews const& weights, ModelViews const& gradients,
                          ModelInput const& input, ModelOutput const& output, Tensor d_log_probs,
                          Tensor d_entropy) {
    Span const span = trace_.span(SpanKind::compute, "lm_head.backward");
    std::int64_t const R = input.targets.rows;
    Tensor const d_hidden = d_hidden_.tensor().row_range(0, R);
    Tensor const logits = logits_.tensor().absent() ? Tensor{} : logits_.tensor().row_range(0, R);
    backend_.lm_head_backward(d_hidden, gradients.head, d_log_probs, d_entropy, logits,
                              hidden_.tensor().row_range(0, R), weights.head, input.targets,
                              lse_head_.tensor().row_range(0, R), output.entropy);
    backend_.zero(part(dy_));
    backend_.scatter_add_rows(part(dy_), d_hidden, input.response_rows);
    backend_.zero(part(dx_));
    backend_.rmsnorm_backward(part(dx_), gradients.final_norm, part(dy_), part(x_out_),
                              weights.final_norm, part(rstd_out_));
}

/// dx_ holds the gradient after the MLP on entry and before it on return (the stream passes
/// through).
void Model::mlp_backward(LayerViews const& w, LayerViews const& g, Rows const& t) {
    Span const span = trace_.span(SpanKind::compute, "layer.mlp.backward");
    backend_.rmsnorm_forward(part(y_), t.rstd_mid, t.x_mid, {}, {}, w.post_norm,
                             config_.rms_norm_eps);
    backend_.swiglu_forward(part(act_), t.gate_up);
    backend_.linear_backward(part(d_act_), g.down_weight, {}, part(dx_), part(act_), w.down_weight,
                             false);
    backend_.swiglu_backward(part(d_gate_up_), part(d_act_), t.gate_up);
    backend_.linear_backward(part(dy_), g.gate_up_weight, {}, part(d_gate_up_), part(y_),
                             w.gate_up_weight, false);
    backend_.rmsnorm_backward(part(dx_), g.post_norm, part(dy_), t.x_mid, w.post_norm, t.rstd_mid);
}

void Model::attention_backward(LayerViews const& w, LayerViews const& g, Rows const& t,
                               ModelInput const& input, CpAttention& attention) {
    std::int64_t const D = shape_.head_dim;
    {
        Span const span = trace_.span(SpanKind::compute, "layer.out.backward");
        backend_.linear_backward(part(d_o_), g.o_weight, {}, part(dx_), t.o, w.o_weight, false);
    }
    {
        Span const span = trace_.span(SpanKind::pass, "layer.attention.backward");
        attention.backward(part(dq_), part(dkv_), t.q, t.kv, t.o, part(d_o_), t.lse, t.kept);
    }
    Span const span = trace_.span(SpanKind::compute, "layer.qkv.backward");
    backend_.rope(part(dq_), input.positions, D, config_.rope_theta, Rotation::backward);
    backend_.rope(keys_of(part(dkv_)), input.positions, D, config_.rope_theta, Rotation::backward);
    backend_.rmsnorm_forward(part(y_), t.rstd_in, t.x_in, {}, {}, w.input_norm,
                             config_.rms_norm_eps);
    backend_.linear_backward(part(dy_), g.q_weight, g.q_bias, part(dq_), part(y_), w.q_weight,
                             false);
    backend_.linear_backward(part(dy_), g.kv_weight, g.kv_bias, part(dkv_), part(y_), w.kv_weight,
                             true);
    backend_.rmsnorm_backward(part(dx_), g.input_norm, part(dy_), t.x_in, w.input_norm, t.rstd_in);
}

}  // namespace cpstep
