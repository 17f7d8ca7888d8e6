// All parameters of the model in one flat fp32 array: where each HF tensor lies, and matrix views
// of it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cuda/backend.hpp"
#include "io/model_config.hpp"
#include "io/safetensors.hpp"

namespace cpstep {

/// One HF tensor at [offset, offset + rows*cols) of the array.
struct Parameter {
    TensorSpec spec;
    std::int64_t offset = 0;

    std::int64_t elements() const { return spec.rows * spec.cols; }
};

/// The array's table of contents; weights, gradients and Adam moments share it.
struct ParameterLayout {
    explicit ParameterLayout(ModelConfig const& config);

    ModelConfig config;
    std::vector<Parameter> parameters;
    std::int64_t size = 0;
    std::vector<ParameterRange> ranges;  ///< a range a tensor; vectors without weight decay
};

/// Views of one decoder layer; q, k and v stand apart because K/V are projected first.
struct LayerViews {
    Tensor input_norm, q_weight, q_bias, kv_weight, kv_bias, o_weight, post_norm, gate_up_weight,
        down_weight;
};

/// Views of an array that has the layout (weights or gradients); `head` is the embedding when tied.
struct ModelViews {
    Tensor embedding, final_norm, head;
    std::vector<LayerViews> layers;
};
ModelViews make_views(ParameterLayout const& layout, Tensor array);

/// Read the checkpoint into `out` (layout.size long). NaN or Inf is Error(input_data) naming every
/// such tensor with its count, unless allowed; returns the lines to note when allowed.
std::vector<std::string> load_parameters(ParameterLayout const& layout,
                                         Checkpoint const& checkpoint, bool allow_nonfinite,
                                         std::span<float> out);

/// Norm weights 1, biases 0, matrices uniform with standard deviation 0.02 (HF's initializer_range)
/// from `seed`; rounded to bf16 so that the same numbers fit every precision.
void randomize_parameters(ParameterLayout const& layout, std::int64_t seed, std::span<float> out);

}  // namespace cpstep
