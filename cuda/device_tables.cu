#include <algorithm>
#include <cstddef>
#include <cstring>

#include "cuda/device_tables.hpp"
#include "cuda/kernel.cuh"

namespace cpstep {

namespace {

/// Words that fit the arguments of one launch (4 KiB on every toolkit).
struct WordBlock {
    static constexpr int capacity = 960;
    std::int32_t word[capacity];
};
__global__ void put_words_kernel(std::int32_t* dst, __grid_constant__ WordBlock const block,
                                 int const count) {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
        dst[i] = block.word[i];
    }
}

/// By launches that carry words as arguments: a copy from host memory may wait for the device.
void put_words(std::int32_t* dst, std::span<std::int32_t const> words, CUstream_st* stream) {
    for (std::size_t first = 0; first < words.size(); first += WordBlock::capacity) {
        auto const some =
            words.subspan(first, std::min<std::size_t>(WordBlock::capacity, words.size() - first));
        WordBlock block;
        std::memcpy(block.word, some.data(), some.size_bytes());
        put_words_kernel<<<1, device::pack_threads, 0, stream>>>(dst + first, block,
                                                                 static_cast<int>(some.size()));
        CUDA_CHECK(cudaGetLastError());
    }
}

/// Tables come with this much memory, so that they seldom grow, which waits for the device.
constexpr std::size_t least_bytes = std::size_t{64} << 10;

}  // namespace

std::int32_t* DeviceTables::put(std::span<std::int32_t const> words) {
    auto table = std::find_if(tables_.begin(), tables_.end(), [&](Table const& t) {
        return t.data != nullptr && std::ranges::equal(t.words, words);
    });
    if (table == tables_.end()) {
        table = std::min_element(
            tables_.begin(), tables_.end(),
            [](Table const& a, Table const& b) { return a.last_use < b.last_use; });
        auto* const data = static_cast<std::int32_t*>(
            scratch_.at_least(std::max(words.size_bytes(), least_bytes),
                              fmt::format("table {}", table - tables_.begin())));
        put_words(data, words, stream_);
        table->words.assign(words.begin(), words.end());
        table->data = data;
    }
    table->last_use = ++uses_;
    return table->data;
}

}  // namespace cpstep
