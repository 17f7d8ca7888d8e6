#include "io/model_config.hpp"

#include <cmath>

#include "cuda/error.hpp"
#include "io/json_text.hpp"

namespace cpstep {
namespace {

using nlohmann::json;

constexpr std::int64_t kMaxSize = (std::int64_t{1} << 31) - 1;
constexpr std::int64_t kMaxLayers = 1 << 16;
constexpr double kMaxParameters = 0x1p40;

/// Access to config.json's fields; null counts as absent, as in HF.
class Fields {
  public:
    Fields(json const& object, std::string where) : object_(object), where_(std::move(where)) {}

    json const* find(char const* key) const {
        auto const found = object_.find(key);
        return found == object_.end() || found->is_null() ? nullptr : &*found;
    }
    std::int64_t size(char const* key) const {
        require(find(key) != nullptr, ExitCode::input_data, "{}: {} is missing", where_, key);
        return size_or(key, 0);
    }
    std::int64_t size_or(char const* key, std::int64_t absent) const {
        json const* const value = find(key);
        if (value == nullptr) {
            return absent;
        }
        require(value->is_number_integer() && *value >= 1 && *value <= kMaxSize,
                ExitCode::input_data, "{}: {} = {} must be an integer from 1 to 2^31 - 1", where_,
                key, shown(*value));
        return value->get<std::int64_t>();
    }
    double positive_or(char const* key, double absent) const {
        json const* const value = find(key);
        if (value == nullptr) {
            return absent;
        }
        require(
            value->is_number() && std::isfinite(value->get<double>()) && value->get<double>() > 0,
            ExitCode::input_data, "{}: {} = {} must be a positive number", where_, key,
            shown(*value));
        return value->get<double>();
    }
    bool flag_or(char const* key, bool absent) const {
        json const* const value = find(key);
        require(value == nullptr || value->is_boolean(), ExitCode::input_data,
                "{}: {} must be true or false", where_, key);
        return value == nullptr ? absent : value->get<bool>();
    }
    std::string text_or(char const* key, std::string const& absent) const {
        json const* const value = find(key);
        require(value == nullptr || value->is_string(), ExitCode::input_data,
                "{}: {} must be a string", where_, key);
        return value == nullptr ? absent : value->get<std::string>();
    }
    std::string const& where() const { return where_; }

    static std::string shown(json const& value) { return value.dump().substr(0, 80); }

  private:
    json const& object_;
    std::string where_;
};

void refuse_other_models(Fields const& config) {
    std::string const type = config.text_or("model_type", "");
    require(type == "qwen2", ExitCode::input_data,
            "{}: model_type \"{}\" is not supported; only qwen2 is", config.where(), type);
    if (json const* const names = config.find("architectures")) {
        require(*names == json::array({"Qwen2ForCausalLM"}), ExitCode::input_data,
                "{}: architectures {} is not supported; only [\"Qwen2ForCausalLM\"] is",
                config.where(), Fields::shown(*names));
    }
    std::string const activation = config.text_or("hidden_act", "silu");
    require(activation == "silu", ExitCode::input_data,
            "{}: hidden_act \"{}\" is not supported; only silu is", config.where(), activation);
    require(config.find("quantization_config") == nullptr, ExitCode::input_data,
            "{}: quantization_config is not supported; give the unquantised checkpoint",
            config.where());
    json const* const dropout = config.find("attention_dropout");
    require(dropout == nullptr || (dropout->is_number() && *dropout == 0.0), ExitCode::input_data,
            "{}: attention_dropout is not supported; set it to 0", config.where());
}

void refuse_other_attention(Fields const& config) {
    require(!config.flag_or("use_sliding_window", false), ExitCode::input_data,
            "{}: use_sliding_window = true is not supported", config.where());
    if (json const* const types = config.find("layer_types")) {
        for (json const& type : *types) {
            require(type == "full_attention", ExitCode::input_data,
                    "{}: layer_types holds {}, which is not supported; only \"full_attention\" is",
                    config.where(), Fields::shown(type));
        }
    }
}

/// `rope_scaling` or `rope_parameters`: only the unscaled form, spelled "default", is computed.
/// `untyped` is the type of an object that names none.
void refuse_scaled_rope(Fields const& config, char const* key, std::string const& untyped) {
    json const* const rope = config.find(key);
    if (rope == nullptr) {
        return;
    }
    require(rope->is_object(), ExitCode::input_data, "{}: {} must be an object", config.where(),
            key);
    Fields const fields(*rope, fmt::format("{}: {}", config.where(), key));
    std::string const type = fields.text_or("rope_type", fields.text_or("type", untyped));
    require(type == "default", ExitCode::input_data,
            "{}: rope type \"{}\" is not supported; only unscaled rope (\"default\") is",
            fields.where(), type);
    require(fields.positive_or("partial_rotary_factor", 1.0) == 1.0, ExitCode::input_data,
            "{}: partial_rotary_factor is not supported", fields.where());
}

double read_rope_theta(Fields const& config) {
    refuse_scaled_rope(config, "rope_scaling", "unnamed");
    refuse_scaled_rope(config, "rope_parameters", "default");
    require(config.positive_or("partial_rotary_factor", 1.0) == 1.0, ExitCode::input_data,
            "{}: partial_rotary_factor is not supported", config.where());
    double const theta = config.positive_or("rope_theta", ModelConfig{}.rope_theta);
    json const* const rope = config.find("rope_parameters");
    return rope == nullptr ? theta : Fields(*rope, config.where()).positive_or("rope_theta", theta);
}

void check_sizes(ModelConfig const& config, std::string const& where) {
    require(config.num_attention_heads % config.num_key_value_heads == 0, ExitCode::input_data,
            "{}: num_attention_heads = {} is not a multiple of num_key_value_heads = {}", where,
            config.num_attention_heads, config.num_key_value_heads);
    require(config.head_dim % 2 == 0, ExitCode::input_data,
            "{}: head_dim = {} must be even for rotary embedding", where, config.head_dim);
    require(config.num_attention_heads * config.head_dim <= kMaxSize, ExitCode::input_data,
            "{}: num_attention_heads * head_dim must be below 2^31", where);
    require(config.num_hidden_layers <= kMaxLayers, ExitCode::input_data,
            "{}: num_hidden_layers = {} is over {}", where, config.num_hidden_layers, kMaxLayers);
    double parameters = 0;
    for (TensorSpec const& spec : model_tensors(config)) {
        parameters += static_cast<double>(spec.rows) * static_cast<double>(spec.cols);
    }
    require(parameters < kMaxParameters, ExitCode::input_data,
            "{}: the sizes make {:.3g} parameters, over 2^40", where, parameters);
}

std::int64_t read_head_dim(Fields const& config, ModelConfig const& sizes) {
    if (config.find("head_dim") != nullptr) {
        return config.size("head_dim");
    }
    require(sizes.hidden_size % sizes.num_attention_heads == 0, ExitCode::input_data,
            "{}: hidden_size = {} is not a multiple of num_attention_heads = {} and there is no "
            "head_dim",
            config.where(), sizes.hidden_size, sizes.num_attention_heads);
    return sizes.hidden_size / sizes.num_attention_heads;
}

}  // namespace

ModelConfig read_model_config(std::filesystem::path const& path) {
    auto const file = std::filesystem::is_directory(path) ? path / "config.json" : path;
    json const object = read_json_object(file, {}, std::uint64_t{16} << 20);
    Fields const fields(object, file.string());
    refuse_other_models(fields);
    refuse_other_attention(fields);
    ModelConfig config;
    config.vocab_size = fields.size("vocab_size");
    config.hidden_size = fields.size("hidden_size");
    config.intermediate_size = fields.size("intermediate_size");
    config.num_hidden_layers = fields.size("num_hidden_layers");
    config.num_attention_heads = fields.size("num_attention_heads");
    config.num_key_value_heads = fields.size("num_key_value_heads");
    config.max_position_embeddings = fields.size("max_position_embeddings");
    config.head_dim = read_head_dim(fields, config);
    config.rope_theta = read_rope_theta(fields);
    config.rms_norm_eps = fields.positive_or("rms_norm_eps", config.rms_norm_eps);
    config.tie_word_embeddings = fields.flag_or("tie_word_embeddings", false);
    config.torch_dtype = fields.text_or("torch_dtype", fields.text_or("dtype", ""));
    check_sizes(config, fields.where());
    return config;
}

std::vector<TensorSpec> model_tensors(ModelConfig const& config) {
    std::int64_t const C = config.hidden_size;
    std::int64_t const q = config.num_attention_heads * config.head_dim;
    std::int64_t const kv = config.num_key_value_heads * config.head_dim;
    std::int64_t const ffn = config.intermediate_size;
    std::vector<TensorSpec> specs;
    specs.push_back({"model.embed_tokens.weight", config.vocab_size, C});
    for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
        auto const add = [&](char const* name, std::int64_t rows, std::int64_t cols) {
            specs.push_back({fmt::format("model.layers.{}.{}", layer, name), rows, cols, false});
        };
        auto const add_vector = [&](char const* name, std::int64_t length) {
            specs.push_back({fmt::format("model.layers.{}.{}", layer, name), 1, length, true});
        };
        add_vector("input_layernorm.weight", C);
        add("self_attn.q_proj.weight", q, C);
        add("self_attn.k_proj.weight", kv, C);
        add("self_attn.v_proj.weight", kv, C);
        add_vector("self_attn.q_proj.bias", q);
        add_vector("self_attn.k_proj.bias", kv);
        add_vector("self_attn.v_proj.bias", kv);
        add("self_attn.o_proj.weight", C, q);
        add_vector("post_attention_layernorm.weight", C);
        add("mlp.gate_proj.weight", ffn, C);
        add("mlp.up_proj.weight", ffn, C);
        add("mlp.down_proj.weight", C, ffn);
    }
    specs.push_back({"model.norm.weight", 1, C, true});
    if (!config.tie_word_embeddings) {
        specs.push_back({"lm_head.weight", config.vocab_size, C});
    }
    return specs;
}

}  // namespace cpstep
