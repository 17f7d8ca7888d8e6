#include "app/parameters.hpp"

#include <fmt/format.h>

#include <bit>
#include <cmath>

#include "app/samples.hpp"

namespace cpstep {

namespace {

Tensor view_of(Tensor array, std::int64_t offset, std::int64_t rows, std::int64_t cols) {
    Tensor const part = array.row_range(offset, rows * cols);
    return {part.data, part.dtype, rows, cols, cols};
}

/// Round to nearest even bf16.
float bf16_rounded(float value) {
    auto bits = std::bit_cast<std::uint32_t>(value);
    bits += 0x7fffU + ((bits >> 16U) & 1U);
    return std::bit_cast<float>(bits & 0xffff0000U);
}

/// Hands out consecutive parameters as views; several rows of HF tensors may form one matrix.
class Cursor {
  public:
    Cursor(ParameterLayout const& layout, Tensor array) : layout_(layout), array_(array) {}

    /// The next `count` tensors, which have equal column counts, stacked by rows; for vectors,
    /// joined.
    Tensor take(int count) {
        Parameter const& first = layout_.parameters.at(next_);
        std::int64_t rows = 0;
        std::int64_t cols = first.spec.vector ? 0 : first.spec.cols;
        for (int i = 0; i < count; ++i, ++next_) {
            TensorSpec const& spec = layout_.parameters.at(next_).spec;
            (first.spec.vector ? cols : rows) += first.spec.vector ? spec.cols : spec.rows;
        }
        return view_of(array_, first.offset, first.spec.vector ? 1 : rows, cols);
    }

  private:
    ParameterLayout const& layout_;
    Tensor array_;
    std::size_t next_ = 0;
};

}  // namespace

ParameterLayout::ParameterLayout(ModelConfig const& model) : config(model) {
    for (TensorSpec const& spec : model_tensors(model)) {
        parameters.push_back({spec, size});
        std::int64_t const end = size + spec.rows * spec.cols;
        ranges.push_back({size, end, !spec.vector});
        size = end;
    }
}

ModelViews make_views(ParameterLayout const& layout, Tensor array) {
    Cursor cursor(layout, array);
    ModelViews views;
    views.embedding = cursor.take(1);
    for (std::int64_t l = 0; l < layout.config.num_hidden_layers; ++l) {
        LayerViews layer;
        layer.input_norm = cursor.take(1);
        layer.q_weight = cursor.take(1);
        layer.kv_weight = cursor.take(2);
        layer.q_bias = cursor.take(1);
        layer.kv_bias = cursor.take(2);
        layer.o_weight = cursor.take(1);
        layer.post_norm = cursor.take(1);
        layer.gate_up_weight = cursor.take(2);
        layer.down_weight = cursor.take(1);
        views.layers.push_back(layer);
    }
    views.final_norm = cursor.take(1);
    views.head = layout.config.tie_word_embeddings ? views.embedding : cursor.take(1);
    return views;
}

std::vector<std::string> load_parameters(ParameterLayout const& layout,
                                         Checkpoint const& checkpoint, bool allow_nonfinite,
                                         std::span<float> out) {
    std::vector<std::string> bad;
    for (Parameter const& parameter : layout.parameters) {
        auto const part = out.subspan(static_cast<std::size_t>(parameter.offset),
                                      static_cast<std::size_t>(parameter.elements()));
        checkpoint.read(parameter.spec.name, part);
        std::int64_t count = 0;
        for (float const value : part) {
            count += std::isfinite(value) ? 0 : 1;
        }
        if (count > 0) {
            bad.push_back(fmt::format("{}: {} of {} values are NaN or Inf", parameter.spec.name,
                                      count, parameter.elements()));
        }
    }
    require(bad.empty() || allow_nonfinite, ExitCode::input_data,
            "{} holds non-finite weights ({}); --allow-nonfinite goes on with them",
            checkpoint.folder().string(), fmt::join(bad, "; "));
    return bad;
}

void randomize_parameters(ParameterLayout const& layout, std::int64_t seed, std::span<float> out) {
    double const half_width = 0.02 * std::sqrt(3.0);
    std::uint64_t stream = 0;
    for (Parameter const& parameter : layout.parameters) {
        ++stream;
        auto const part = out.subspan(static_cast<std::size_t>(parameter.offset),
                                      static_cast<std::size_t>(parameter.elements()));
        if (parameter.spec.vector) {
            bool const bias = parameter.spec.name.ends_with(".bias");
            std::fill(part.begin(), part.end(), bias ? 0.0F : 1.0F);
            continue;
        }
        for (std::size_t i = 0; i < part.size(); ++i) {
            std::uint64_t const bits = counter_bits(static_cast<std::uint64_t>(seed), stream, i);
            double const uniform = static_cast<double>(bits >> 11U) * 0x1.0p-52 - 1.0;
            part[i] = bf16_rounded(static_cast<float>(uniform * half_width));
        }
    }
}

}  // namespace cpstep
