// The HF config.json of a Qwen2-class decoder.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace cpstep {

/// Sizes of a Qwen2 decoder; names follow config.json.
struct ModelConfig {
    std::int64_t vocab_size = 0;
    std::int64_t hidden_size = 0;
    std::int64_t intermediate_size = 0;
    std::int64_t num_hidden_layers = 0;
    std::int64_t num_attention_heads = 0;
    std::int64_t num_key_value_heads = 0;
    std::int64_t head_dim = 0;
    std::int64_t max_position_embeddings = 0;
    double rope_theta = 10000.0;
    double rms_norm_eps = 1e-6;
    bool tie_word_embeddings = false;
    std::string torch_dtype;
};

/// One tensor the model needs, by its HF name. A bias or norm weight has rows == 1 and `vector`
/// set.
struct TensorSpec {
    std::string name;
    std::int64_t rows = 0;
    std::int64_t cols = 0;
    bool vector = false;
};

/// Read DIR/config.json (or the file itself). Refuses by name what the program does not compute:
/// other model types, sliding windows in use, rope scaling, other activations, sizes that do not
/// fit together. Errors: Error(input_data).
ModelConfig read_model_config(std::filesystem::path const& path);

/// Every tensor of the model in arena order: embedding; per layer input norm, q/k/v weights, q/k/v
/// biases, o, post norm, gate, up, down; final norm; lm_head unless tied. q,k,v (and gate,up) are
/// adjacent, so that they form one matrix each.
std::vector<TensorSpec> model_tensors(ModelConfig const& config);

}  // namespace cpstep
