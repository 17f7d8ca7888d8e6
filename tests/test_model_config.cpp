#define BOOST_TEST_MODULE model_config
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cuda/error.hpp"
#include "io/model_config.hpp"

using namespace cpstep;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

/// A config.json that is removed at the end.
struct ConfigFile {
    explicit ConfigFile(std::string const& text) {
        static int count = 0;
        folder = fs::temp_directory_path() / fmt::format("cpstep_config_{}_{}", getpid(), count++);
        fs::create_directories(folder);
        std::ofstream(folder / "config.json") << text;
    }
    ConfigFile(ConfigFile const&) = delete;
    ConfigFile& operator=(ConfigFile const&) = delete;
    ~ConfigFile() { fs::remove_all(folder); }
    fs::path folder;
};

json valid() {
    return {{"architectures", {"Qwen2ForCausalLM"}},
            {"model_type", "qwen2"},
            {"hidden_act", "silu"},
            {"vocab_size", 512},
            {"hidden_size", 256},
            {"intermediate_size", 128},
            {"num_hidden_layers", 2},
            {"num_attention_heads", 4},
            {"num_key_value_heads", 2},
            {"max_position_embeddings", 4096},
            {"rope_theta", 1e6},
            {"rms_norm_eps", 1e-5},
            {"tie_word_embeddings", true},
            {"torch_dtype", "bfloat16"},
            {"use_sliding_window", false}};
}

json with(std::string const& key, json const& value) {
    json config = valid();
    config[key] = value;
    return config;
}

json without(std::string const& key) {
    json config = valid();
    config.erase(key);
    return config;
}

ModelConfig read(json const& config) {
    return read_model_config(ConfigFile(config.dump()).folder);
}

void check_refused(std::string const& text, std::string const& cause) {
    ConfigFile const file(text);
    try {
        read_model_config(file.folder);
        BOOST_ERROR("accepted: " << text);
    } catch (Error const& e) {
        std::string const what = e.what();
        BOOST_TEST((e.code() == ExitCode::input_data));
        BOOST_TEST(what.find(cause) != std::string::npos, "wanted " << cause << ", got " << what);
        BOOST_TEST(what.find("config.json: ") != std::string::npos, what);
        BOOST_TEST(what.find('\n') == std::string::npos, what);
    }
}

void check_refused(json const& config, std::string const& cause) {
    check_refused(config.dump(), cause);
}

}  // namespace

BOOST_AUTO_TEST_CASE(every_field_is_read_from_the_folder_or_the_file) {
    ConfigFile const file(valid().dump());
    for (auto const& path : {file.folder, file.folder / "config.json"}) {
        ModelConfig const c = read_model_config(path);
        BOOST_TEST(c.vocab_size == 512);
        BOOST_TEST(c.hidden_size == 256);
        BOOST_TEST(c.intermediate_size == 128);
        BOOST_TEST(c.num_hidden_layers == 2);
        BOOST_TEST(c.num_attention_heads == 4);
        BOOST_TEST(c.num_key_value_heads == 2);
        BOOST_TEST(c.head_dim == 64);
        BOOST_TEST(c.max_position_embeddings == 4096);
        BOOST_TEST(c.rope_theta == 1e6);
        BOOST_TEST(c.rms_norm_eps == 1e-5);
        BOOST_TEST(c.tie_word_embeddings);
        BOOST_TEST(c.torch_dtype == "bfloat16");
    }
}

BOOST_AUTO_TEST_CASE(absent_and_null_fields_take_the_defaults_of_hf) {
    ModelConfig const c = read(without("tie_word_embeddings"));
    BOOST_TEST(!c.tie_word_embeddings);
    BOOST_TEST(read(without("rope_theta")).rope_theta == 10000.0);
    BOOST_TEST(read(with("rope_theta", nullptr)).rope_theta == 10000.0);
    BOOST_TEST(read(without("rms_norm_eps")).rms_norm_eps == 1e-6);
    BOOST_TEST(read(without("architectures")).vocab_size == 512);
    BOOST_TEST(read(with("rope_scaling", nullptr)).rope_theta == 1e6);
    BOOST_TEST(read(with("head_dim", 96)).head_dim == 96);
    json newer = without("torch_dtype");
    newer["dtype"] = "float32";
    BOOST_TEST(read(newer).torch_dtype == "float32");
}

BOOST_AUTO_TEST_CASE(rope_theta_is_found_in_the_newer_place) {
    json newer = without("rope_theta");
    newer["rope_parameters"] = {{"rope_theta", 5e5}, {"rope_type", "default"}};
    BOOST_TEST(read(newer).rope_theta == 5e5);
    BOOST_TEST(read(with("rope_scaling", {{"type", "default"}})).rope_theta == 1e6);
    newer["rope_parameters"]["rope_type"] = "yarn";
    check_refused(newer, "rope_parameters: rope type \"yarn\" is not supported");
}

BOOST_AUTO_TEST_CASE(what_is_not_computed_is_refused_by_name) {
    check_refused(with("model_type", "llama"), "model_type \"llama\" is not supported");
    check_refused(without("model_type"), "model_type \"\" is not supported");
    check_refused(with("architectures", {"Qwen2ForSequenceClassification"}),
                  "SequenceClassification");
    check_refused(with("hidden_act", "gelu"), "hidden_act \"gelu\"");
    check_refused(with("use_sliding_window", true), "use_sliding_window");
    check_refused(with("rope_scaling", {{"type", "yarn"}, {"factor", 4.0}}), "rope type \"yarn\"");
    check_refused(with("rope_scaling", {{"rope_type", "linear"}}), "rope type \"linear\"");
    check_refused(with("rope_scaling", {{"factor", 4.0}}), "rope type \"unnamed\"");
    check_refused(with("rope_scaling", 2), "rope_scaling must be an object");
    check_refused(with("layer_types", {"full_attention", "sliding_attention"}),
                  "sliding_attention");
    check_refused(with("attention_dropout", 0.1), "attention_dropout");
    check_refused(with("quantization_config", json::object()), "quantization_config");
    check_refused(with("partial_rotary_factor", 0.5), "partial_rotary_factor");
}

BOOST_AUTO_TEST_CASE(sizes_of_the_wrong_type_or_range_are_refused) {
    for (char const* const key :
         {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
          "num_attention_heads", "num_key_value_heads", "max_position_embeddings"}) {
        check_refused(without(key), std::string(key) + " is missing");
        for (json const& bad :
             {json(0), json(-1), json(1.5), json("8"), json(2147483648), json(true)}) {
            check_refused(with(key, bad), std::string(key) + " = ");
        }
    }
    check_refused(with("rope_theta", 0), "rope_theta = 0");
    check_refused(with("rms_norm_eps", -1e-6), "rms_norm_eps");
    check_refused(with("tie_word_embeddings", 1), "tie_word_embeddings must be true or false");
}

BOOST_AUTO_TEST_CASE(sizes_that_do_not_fit_together_are_refused) {
    check_refused(with("num_key_value_heads", 3), "not a multiple of num_key_value_heads = 3");
    check_refused(with("hidden_size", 258), "not a multiple of num_attention_heads");
    check_refused(with("head_dim", 63), "head_dim = 63 must be even");
    check_refused(with("head_dim", 1 << 30), "num_attention_heads * head_dim");
    json huge = with("vocab_size", 2147483647);
    huge["hidden_size"] = 4096;
    check_refused(huge, "over 2^40");
    check_refused(with("num_hidden_layers", 100'000'000), "num_hidden_layers = 100000000");
}

BOOST_AUTO_TEST_CASE(files_that_are_not_a_json_object_are_refused) {
    check_refused(std::string("[1]"), "must hold a JSON object");
    check_refused(std::string("{\"a\":1,\"a\":2}"), "duplicate key \"a\"");
    check_refused(std::string("{\"a\":"), "byte 5: ");
    check_refused(std::string(""), "byte 0: ");
    BOOST_CHECK_THROW(read_model_config(fs::temp_directory_path() / "cpstep_no_such_file"), Error);
}

BOOST_AUTO_TEST_CASE(tensors_come_in_arena_order_with_their_shapes) {
    ModelConfig config = read(with("tie_word_embeddings", false));
    auto const specs = model_tensors(config);
    BOOST_REQUIRE(specs.size() == 1U + 2 * 12 + 2);
    std::vector<std::string> const layer{
        "input_layernorm.weight",  "self_attn.q_proj.weight", "self_attn.k_proj.weight",
        "self_attn.v_proj.weight", "self_attn.q_proj.bias",   "self_attn.k_proj.bias",
        "self_attn.v_proj.bias",   "self_attn.o_proj.weight", "post_attention_layernorm.weight",
        "mlp.gate_proj.weight",    "mlp.up_proj.weight",      "mlp.down_proj.weight"};
    for (std::size_t i = 0; i < layer.size(); ++i) {
        BOOST_TEST(specs[1 + i].name == "model.layers.0." + layer[i]);
        BOOST_TEST(specs[13 + i].name == "model.layers.1." + layer[i]);
        bool const vector = layer[i].ends_with("bias") || layer[i].ends_with("norm.weight");
        BOOST_TEST(specs[1 + i].vector == vector);
        BOOST_TEST((!vector || specs[1 + i].rows == 1));
    }
    BOOST_TEST(specs.front().name == "model.embed_tokens.weight");
    BOOST_TEST(specs[25].name == "model.norm.weight");
    BOOST_TEST(specs[25].vector);
    BOOST_TEST(specs.back().name == "lm_head.weight");
    BOOST_TEST((specs[3].rows == 128 && specs[3].cols == 256));    // k: 2 heads of 64
    BOOST_TEST((specs[8].rows == 256 && specs[8].cols == 256));    // o
    BOOST_TEST((specs[10].rows == 128 && specs[10].cols == 256));  // gate
    BOOST_TEST((specs[12].rows == 256 && specs[12].cols == 128));  // down
    config.tie_word_embeddings = true;
    BOOST_TEST(model_tensors(config).back().name == "model.norm.weight");
    config.intermediate_size = 1;
    BOOST_TEST(!model_tensors(config)[10].vector);
}
