// Small models and rollouts that several tests share.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "app/cp_config.hpp"
#include "io/model_config.hpp"
#include "io/rollout.hpp"

namespace cpstep::test {

/// Every size differs from every other, so that swapped dimensions show.
inline ModelConfig small_config(bool tied = true) {
    ModelConfig config;
    config.vocab_size = 61;
    config.hidden_size = 24;
    config.intermediate_size = 40;
    config.num_hidden_layers = 3;
    config.num_attention_heads = 6;
    config.num_key_value_heads = 2;
    config.head_dim = 4;
    config.tie_word_embeddings = tied;
    return config;
}

/// Every way of sharing sequences among `size` ranks, a2a whatever the heads.
inline std::vector<CpConfig> cp_configs(int size) {
    std::vector<CpConfig> all;
    for (CpLayout const layout : {CpLayout::zigzag, CpLayout::contiguous}) {
        all.push_back({.size = size, .layout = layout});
        if (size > 1) {
            all.push_back({.size = size, .method = CpMethod::all_gather, .layout = layout});
            all.push_back({.size = size, .method = CpMethod::a2a, .layout = layout, .a2a = size});
        }
        for (int a2a = 2; a2a < size; ++a2a) {
            if (size % a2a == 0) {
                all.push_back(
                    {.size = size, .method = CpMethod::a2a_p2p, .layout = layout, .a2a = a2a});
            }
        }
    }
    return all;
}

/// Tokens and response tokens of a sample.
struct SampleShape {
    std::int64_t total = 0;
    std::int64_t response = 0;
};

/// Token t of sample j is 100 j + t; response token i of sample j counts when mask(j, i).
inline Rollout make_rollout(
    std::vector<SampleShape> const& shapes,
    std::function<bool(std::int64_t, std::int64_t)> const& mask = [](auto, auto) { return true; }) {
    Rollout rollout;
    for (std::size_t j = 0; j < shapes.size(); ++j) {
        auto const sample = static_cast<std::int64_t>(j);
        for (std::int64_t t = 0; t < shapes[j].total; ++t) {
            rollout.tokens.push_back(static_cast<std::int32_t>(100 * sample + t));
        }
        for (std::int64_t i = 0; i < shapes[j].response; ++i) {
            rollout.loss_mask.push_back(mask(sample, i) ? 1 : 0);
        }
        rollout.token_offsets.push_back(rollout.token_offsets.back() + shapes[j].total);
        rollout.response_offsets.push_back(rollout.response_offsets.back() + shapes[j].response);
    }
    return rollout;
}

}  // namespace cpstep::test
