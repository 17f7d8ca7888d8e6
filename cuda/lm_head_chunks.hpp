// How the device's LM head shares its rows among chunks: R rows, V words of the vocabulary.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cuda/tensor.hpp"

namespace cpstep {

/// The logits of a chunk, f32, and their gradients, of the compute type, when none are kept: more
/// rows, since each chunk of these reads and writes all of dw.
inline constexpr std::int64_t logit_chunk_bytes = std::int64_t{320} << 20;
inline constexpr std::int64_t gradient_chunk_bytes = std::int64_t{1280} << 20;

struct HeadChunks {
    std::int64_t stride = 0;         ///< elements from row to row: rows start 16-byte aligned
    std::int64_t logit_rows = 0;     ///< most rows of logits held
    std::int64_t gradient_rows = 0;  ///< most rows of gradients held, whole chunks of logits
    std::size_t logit_bytes = 0;
    std::size_t gradient_bytes = 0;
};

/// At least one row; tiles of 128 rows, as products have them, where that many fit.
constexpr HeadChunks head_chunks(std::int64_t rows, std::int64_t vocabulary, DType dtype) {
    constexpr std::int64_t tile = 128;
    auto const element = static_cast<std::int64_t>(element_bytes(dtype));
    HeadChunks chunks;
    chunks.stride = (vocabulary + 7) / 8 * 8;
    std::int64_t const fit =
        std::max<std::int64_t>(1, logit_chunk_bytes / (chunks.stride * std::int64_t{4}));
    std::int64_t const whole = fit < tile ? fit : fit / tile * tile;
    std::int64_t const gradients =
        std::max<std::int64_t>(1, gradient_chunk_bytes / (chunks.stride * element) / whole) * whole;
    chunks.logit_rows = std::min(whole, rows);
    chunks.gradient_rows = std::min(gradients, rows);
    chunks.logit_bytes = static_cast<std::size_t>(chunks.logit_rows * chunks.stride * 4);
    chunks.gradient_bytes =
        static_cast<std::size_t>(chunks.gradient_rows * chunks.stride * element);
    return chunks;
}

}  // namespace cpstep
