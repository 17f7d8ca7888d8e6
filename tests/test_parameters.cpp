#define BOOST_TEST_MODULE parameters
#include <bit>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "app/parameters.hpp"
#include "tests/cases.hpp"
#include "tests/close.hpp"
#include "tests/scratch.hpp"

using namespace cpstep;
using cpstep::test::small_config;

namespace {

Parameter const& named(ParameterLayout const& layout, std::string const& name) {
    for (Parameter const& parameter : layout.parameters) {
        if (parameter.spec.name == name) {
            return parameter;
        }
    }
    BOOST_FAIL("no parameter " << name);
    return layout.parameters.front();
}

/// An array whose element i is i, and its views.
struct Numbered {
    explicit Numbered(ParameterLayout const& layout)
        : values(static_cast<std::size_t>(layout.size)) {
        std::iota(values.begin(), values.end(), 0.0F);
        views = make_views(layout, {values.data(), DType::f32, layout.size, 1, 1});
    }
    std::vector<float> values;
    ModelViews views;

    std::int64_t offset_of(Tensor view) const {
        return static_cast<float*>(view.data) - values.data();
    }
};

/// `view` is the tensors `names`, stacked by rows or, for vectors, joined to one row.
void check_view(ParameterLayout const& layout, Numbered const& array, Tensor view,
                std::vector<std::string> const& names) {
    BOOST_TEST_CONTEXT(names.front()) {
        Parameter const& first = named(layout, names.front());
        std::int64_t elements = 0;
        std::int64_t offset = first.offset;
        for (std::string const& name : names) {
            Parameter const& parameter = named(layout, name);
            BOOST_TEST(parameter.offset == offset, name << " does not follow the one before it");
            BOOST_TEST(parameter.spec.cols * (first.spec.vector ? 0 : 1) ==
                       first.spec.cols * (first.spec.vector ? 0 : 1));
            offset += parameter.elements();
            elements += parameter.elements();
        }
        BOOST_TEST(array.offset_of(view) == first.offset);
        BOOST_TEST(view.elements() == elements);
        BOOST_TEST(view.cols == (first.spec.vector ? elements : first.spec.cols));
        BOOST_TEST(view.stride == view.cols);
        BOOST_TEST(view.as<float>().row(view.rows - 1)[view.cols - 1] ==
                   static_cast<float>(first.offset + elements - 1));
    }
}

/// A checkpoint of all tensors of `layout` in F32: 0.5 everywhere but for the planted values.
void write_checkpoint(std::filesystem::path const& folder, ParameterLayout const& layout,
                      std::map<std::string, std::vector<float>> const& planted) {
    std::string header = "{";
    std::string data;
    for (Parameter const& parameter : layout.parameters) {
        std::vector<float> values(static_cast<std::size_t>(parameter.elements()), 0.5F);
        if (auto const at = planted.find(parameter.spec.name); at != planted.end()) {
            std::copy(at->second.begin(), at->second.end(), values.begin());
        }
        std::size_t const begin = data.size();
        data.append(reinterpret_cast<char const*>(values.data()), values.size() * sizeof(float));
        std::string const shape =
            parameter.spec.vector
                ? fmt::format("[{}]", parameter.spec.cols)
                : fmt::format("[{},{}]", parameter.spec.rows, parameter.spec.cols);
        header +=
            fmt::format(R"({}"{}":{{"dtype":"F32","shape":{},"data_offsets":[{},{}]}})",
                        begin == 0 ? "" : ",", parameter.spec.name, shape, begin, data.size());
    }
    header += "}";
    auto const length = static_cast<std::uint64_t>(header.size());
    std::string prefix(sizeof length, '\0');
    std::memcpy(prefix.data(), &length, sizeof length);
    test::put(folder / "model.safetensors", prefix + header + data);
}

struct Statistics {
    double mean = 0, deviation = 0, largest = 0;
};

Statistics statistics_of(std::span<float const> values) {
    Statistics s;
    for (float const value : values) {
        s.mean += value;
        s.largest = std::max(s.largest, std::abs(static_cast<double>(value)));
    }
    s.mean /= static_cast<double>(values.size());
    for (float const value : values) {
        s.deviation += (value - s.mean) * (value - s.mean);
    }
    s.deviation = std::sqrt(s.deviation / static_cast<double>(values.size()));
    return s;
}

std::span<float const> part(std::vector<float> const& array, Parameter const& parameter) {
    return std::span(array).subspan(static_cast<std::size_t>(parameter.offset),
                                    static_cast<std::size_t>(parameter.elements()));
}

}  // namespace

BOOST_AUTO_TEST_CASE(tensors_follow_each_other_without_gaps_and_ranges_cover_them) {
    for (bool const tied : {true, false}) {
        ParameterLayout const layout(small_config(tied));
        std::int64_t next = 0;
        BOOST_REQUIRE(layout.ranges.size() == layout.parameters.size());
        for (std::size_t i = 0; i < layout.parameters.size(); ++i) {
            BOOST_TEST(layout.parameters[i].offset == next);
            BOOST_TEST(layout.ranges[i].begin == next);
            next += layout.parameters[i].elements();
            BOOST_TEST(layout.ranges[i].end == next);
        }
        BOOST_TEST(layout.size == next);
    }
}

BOOST_AUTO_TEST_CASE(the_size_is_the_sum_of_the_decoders_shapes) {
    // V h + L (2 h + h q + q + 2 (h kv + kv) + q h + 3 h F) + h, here q = h = 24 and kv = 8; the
    // head V h when untied.
    std::int64_t const tied =
        61 * 24 + 3 * (2 * 24 + 24 * 24 + 24 + 2 * (24 * 8 + 8) + 24 * 24 + 3 * 24 * 40) + 24;
    BOOST_TEST(ParameterLayout(small_config(true)).size == tied);
    BOOST_TEST(ParameterLayout(small_config(false)).size == tied + 61 * 24);
}

BOOST_AUTO_TEST_CASE(only_matrices_take_part_in_weight_decay) {
    ParameterLayout const layout(small_config());
    for (std::size_t i = 0; i < layout.parameters.size(); ++i) {
        std::string const& name = layout.parameters[i].spec.name;
        bool const vector = name.ends_with(".bias") || name.find("norm") != std::string::npos;
        BOOST_TEST(layout.ranges[i].decay == !vector, name);
    }
}

BOOST_AUTO_TEST_CASE(views_are_the_named_tensors_with_kv_and_gate_up_as_one_matrix) {
    ParameterLayout const layout(small_config(false));
    Numbered const array(layout);
    BOOST_REQUIRE(array.views.layers.size() == 3);
    check_view(layout, array, array.views.embedding, {"model.embed_tokens.weight"});
    for (int l = 0; l < 3; ++l) {
        LayerViews const& layer = array.views.layers[l];
        auto const name = [&](char const* rest) {
            return fmt::format("model.layers.{}.{}", l, rest);
        };
        check_view(layout, array, layer.input_norm, {name("input_layernorm.weight")});
        check_view(layout, array, layer.q_weight, {name("self_attn.q_proj.weight")});
        check_view(layout, array, layer.kv_weight,
                   {name("self_attn.k_proj.weight"), name("self_attn.v_proj.weight")});
        check_view(layout, array, layer.q_bias, {name("self_attn.q_proj.bias")});
        check_view(layout, array, layer.kv_bias,
                   {name("self_attn.k_proj.bias"), name("self_attn.v_proj.bias")});
        check_view(layout, array, layer.o_weight, {name("self_attn.o_proj.weight")});
        check_view(layout, array, layer.post_norm, {name("post_attention_layernorm.weight")});
        check_view(layout, array, layer.gate_up_weight,
                   {name("mlp.gate_proj.weight"), name("mlp.up_proj.weight")});
        check_view(layout, array, layer.down_weight, {name("mlp.down_proj.weight")});
    }
    check_view(layout, array, array.views.final_norm, {"model.norm.weight"});
    check_view(layout, array, array.views.head, {"lm_head.weight"});
}

BOOST_AUTO_TEST_CASE(q_k_and_v_are_adjacent_so_that_they_form_one_matrix) {
    ParameterLayout const layout(small_config());
    for (char const* kind : {"weight", "bias"}) {
        auto const at = [&](char const* head) {
            return named(layout, fmt::format("model.layers.1.self_attn.{}_proj.{}", head, kind));
        };
        BOOST_TEST(at("k").offset == at("q").offset + at("q").elements());
        BOOST_TEST(at("v").offset == at("k").offset + at("k").elements());
    }
}

BOOST_AUTO_TEST_CASE(a_tied_head_is_the_embedding) {
    ParameterLayout const layout(small_config(true));
    Numbered const array(layout);
    BOOST_TEST(array.views.head.data == array.views.embedding.data);
    BOOST_TEST(array.views.head.rows == 61);
    BOOST_TEST(array.views.head.cols == 24);
    BOOST_TEST(layout.parameters.back().spec.name == "model.norm.weight");
}

BOOST_AUTO_TEST_CASE(a_checkpoint_lands_at_its_offsets) {
    ParameterLayout const layout(small_config(false));
    test::Folder const folder;
    write_checkpoint(
        folder.path, layout,
        {{"model.layers.2.self_attn.v_proj.bias", {1.0F, 2.0F}}, {"lm_head.weight", {3.0F}}});
    std::vector<float> got(static_cast<std::size_t>(layout.size));
    BOOST_TEST(load_parameters(layout, Checkpoint(folder.path), false, got).empty());
    std::vector<float> want(got.size(), 0.5F);
    auto const bias =
        static_cast<std::size_t>(named(layout, "model.layers.2.self_attn.v_proj.bias").offset);
    want[bias] = 1.0F;
    want[bias + 1] = 2.0F;
    want[static_cast<std::size_t>(named(layout, "lm_head.weight").offset)] = 3.0F;
    BOOST_TEST(got == want, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(nan_and_inf_weights_are_counted_and_refused_or_noted) {
    ParameterLayout const layout(small_config());
    float const nan = std::numeric_limits<float>::quiet_NaN();
    float const inf = std::numeric_limits<float>::infinity();
    test::Folder const folder;
    write_checkpoint(folder.path, layout,
                     {{"model.layers.0.mlp.up_proj.weight", {nan, 1.0F, -inf, inf}},
                      {"model.norm.weight", {1.0F, nan}}});
    Checkpoint const checkpoint(folder.path);
    std::vector<float> out(static_cast<std::size_t>(layout.size));
    std::vector<std::string> const want{
        "model.layers.0.mlp.up_proj.weight: 3 of 960 values are NaN or Inf",
        "model.norm.weight: 1 of 24 values are NaN or Inf"};
    test::check_fails(ExitCode::input_data, {want[0], want[1], "--allow-nonfinite"},
                      [&] { load_parameters(layout, checkpoint, false, out); });
    BOOST_TEST(load_parameters(layout, checkpoint, true, out) == want,
               boost::test_tools::per_element());
    BOOST_TEST(std::isnan(part(out, named(layout, "model.norm.weight"))[1]));
}

BOOST_AUTO_TEST_CASE(random_weights_depend_on_the_seed_alone) {
    ParameterLayout const layout(small_config());
    auto const made = [&](std::int64_t seed) {
        std::vector<float> values(static_cast<std::size_t>(layout.size), -1.0F);
        randomize_parameters(layout, seed, values);
        return values;
    };
    BOOST_TEST((made(7) == made(7)));
    BOOST_TEST((made(7) != made(8)));
    std::vector<float> const values = made(7);
    auto const gate = part(values, named(layout, "model.layers.0.mlp.gate_proj.weight"));
    auto const up = part(values, named(layout, "model.layers.0.mlp.up_proj.weight"));
    BOOST_TEST(!std::equal(gate.begin(), gate.end(), up.begin()), "two tensors share one stream");
}

BOOST_AUTO_TEST_CASE(random_weights_are_bf16_numbers_of_standard_deviation_0_02) {
    ModelConfig config = small_config(false);
    config.vocab_size = 1024;
    ParameterLayout const layout(config);
    std::vector<float> values(static_cast<std::size_t>(layout.size), -1.0F);
    randomize_parameters(layout, 3, values);
    for (Parameter const& parameter : layout.parameters) {
        BOOST_TEST_CONTEXT(parameter.spec.name) {
            auto const tensor = part(values, parameter);
            if (parameter.spec.vector) {
                float const want = parameter.spec.name.ends_with(".bias") ? 0.0F : 1.0F;
                BOOST_TEST(std::count(tensor.begin(), tensor.end(), want) == std::ssize(tensor));
                continue;
            }
            auto const n = static_cast<double>(tensor.size());
            Statistics const s = statistics_of(tensor);
            // Standard errors of n uniform numbers: mean 0.02/sqrt(n), deviation 0.02
            // sqrt((1.8-1)/(4n)); five of each.
            BOOST_TEST(test::within(s.mean, 0, 0, 5 * 0.02 / std::sqrt(n)), s.mean);
            BOOST_TEST(test::within(s.deviation, 0.02, 5 * std::sqrt(0.2 / n), 0), s.deviation);
            // A bf16 number has 8 bits: rounding moves it by at most 2^-8 of itself.
            BOOST_TEST(s.largest <= 0.02 * std::sqrt(3.0) * (1 + 0x1p-8));
            BOOST_TEST(std::all_of(tensor.begin(), tensor.end(), [](float value) {
                return (std::bit_cast<std::uint32_t>(value) & 0xffffU) == 0;
            }));
        }
    }
}
