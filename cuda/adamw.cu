// AdamW and the norm of a flat arena: one pass over memory each, the formulas of adamw.cpp.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/adamw.hpp"
#include "cuda/kernel.cuh"

namespace cpstep::device {
namespace {

/// Both are bound by memory; four blocks of this size or more fit a multiprocessor.
constexpr int block_threads = 256;
constexpr int vector_width = wide<float>;

/// Partial sums of a norm; a function of nothing but the size, so that any card gives these bits.
constexpr std::int64_t most_partials = 1024;
constexpr std::int64_t elements_of_partial = 4096;  // fewer are not worth another block

__device__ double square(float x) {
    return static_cast<double>(x) * static_cast<double>(x);
}

/// partial_b = the sum of squares of block b's share of x, contiguous and 16-byte aligned.
__global__ void __launch_bounds__(block_threads)
    sum_squares(double* partial, float const* __restrict__ x, std::int64_t count) {
    __shared__ double room[warp_lanes];
    std::int64_t const vectors = count / vector_width;
    std::int64_t const first = std::int64_t{blockIdx.x} * block_threads + threadIdx.x;
    std::int64_t const step = std::int64_t{gridDim.x} * block_threads;
    double sum[vector_width] = {};
#pragma unroll 4
    for (std::int64_t i = first; i < vectors; i += step) {
        auto const pack = load_pack<vector_width>(x + i * vector_width);
#pragma unroll
        for (int e = 0; e < vector_width; ++e) {
            sum[e] += square(pack.value[e]);
        }
    }
    if (first < count - vectors * vector_width) {
        sum[0] += square(x[vectors * vector_width + first]);
    }
    double const total = block_sum((sum[0] + sum[1]) + (sum[2] + sum[3]), room);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = total;
    }
}

/// The same for a view of any stride and alignment.
__global__ void __launch_bounds__(block_threads)
    sum_squares_strided(double* partial, float const* x, std::int64_t rows, std::int64_t cols,
                        std::int64_t stride) {
    __shared__ double room[warp_lanes];
    std::int64_t const first = std::int64_t{blockIdx.x} * block_threads + threadIdx.x;
    std::int64_t const step = std::int64_t{gridDim.x} * block_threads;
    double sum = 0;
    for (std::int64_t i = first; i < rows * cols; i += step) {
        sum += square(x[i / cols * stride + i % cols]);
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
    }
}

/// squared = the sum of the partials, root = its square root; a null one is not wanted.
__global__ void __launch_bounds__(block_threads)
    sum_partials(double* squared, float* root, double const* partial, int partials) {
    __shared__ double room[warp_lanes];
    double sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < partials; i += block_threads) {
        sum += partial[i];
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0 && squared != nullptr) {
        *squared = sum;
    }
    if (threadIdx.x == 0 && root != nullptr) {
        *root = static_cast<float>(sqrt(sum));
    }
}

bool aligned(void const* pointer, std::size_t bytes) {
    return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

void launch_norm(Device const& d, double* squared, float* root, Tensor x) {
    require(x.dtype == DType::f32, ExitCode::internal, "norm: the array is not f32");
    std::int64_t const count = x.elements();
    auto const partials =
        static_cast<int>(std::min(most_partials, ceil_div(count, elements_of_partial)));
    auto* const partial =
        static_cast<double*>(d.scratch->at_least(most_partials * sizeof(double), "norm sums"));
    auto const* const data = static_cast<float const*>(x.data);
    if (partials > 0 && x.contiguous() && aligned(data, access_bytes)) {
        sum_squares<<<partials, block_threads, 0, d.stream>>>(partial, data, count);
        CUDA_CHECK(cudaGetLastError());
    } else if (partials > 0) {
        sum_squares_strided<<<partials, block_threads, 0, d.stream>>>(partial, data, x.rows, x.cols,
                                                                      x.stride);
        CUDA_CHECK(cudaGetLastError());
    }
    sum_partials<<<1, block_threads, 0, d.stream>>>(squared, root, partial, partials);
    CUDA_CHECK(cudaGetLastError());
}

enum class Update : unsigned char { none, plain, decayed };

/// Elements from `begin` on, up to the next section, are updated so.
struct Section {
    std::int64_t begin = 0;
    Update update = Update::none;
};

/// Sections of one launch, in order; the last says where the others end. They are a kernel
/// argument, for which 4096 bytes are safe: about 60 layers. A larger model takes more launches.
constexpr int most_sections = 400;
struct Sections {
    std::int64_t begin[most_sections];
    Update update[most_sections];
    int count;
};

/// Everything that does not depend on the element, as adamw.cpp finds it.
struct UpdateFactors {
    float gradient_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
    float root_correction2;  ///< sqrt(1 - beta2^step)
    float step_size;         ///< lr / (1 - beta1^step)
    float eps;
    float decay;       ///< lr * weight_decay, where decay applies
    double clip_grad;  ///< > 0: the scale comes from the norm on the device
};

/// (N,1) each; rounded may be null.
struct Arena {
    float* w;
    float* m;
    float* v;
    float const* g;
    bf16* rounded;
};

/// Elements of a block: eight vectors a thread, so that one search for their section costs little.
constexpr std::int64_t tile = std::int64_t{8} * block_threads * vector_width;

UpdateFactors update_factors(AdamWOptions const& o) {
    double const step = static_cast<double>(o.step);
    return {static_cast<float>(o.gradient_scale),
            static_cast<float>(o.beta1),
            static_cast<float>(1.0 - o.beta1),
            static_cast<float>(o.beta2),
            static_cast<float>(1.0 - o.beta2),
            static_cast<float>(std::sqrt(1.0 - std::pow(o.beta2, step))),
            static_cast<float>(o.lr / (1.0 - std::pow(o.beta1, step))),
            static_cast<float>(o.eps),
            static_cast<float>(o.lr * o.weight_decay),
            o.clip_grad};
}

/// clip_factor() of the norm on the device, or the scale given.
__device__ float gradient_scale(UpdateFactors const& f, float const* norm) {
    if (!(f.clip_grad > 0)) {
        return f.gradient_scale;
    }
    double const ratio = f.clip_grad / (static_cast<double>(*norm) + 1e-6);
    return static_cast<float>(ratio < 1.0 ? ratio : 1.0);
}

__device__ void update_element(float& w, float& m, float& v, float g, float scale, float decay,
                               UpdateFactors const& f) {
    float const gradient = scale * g;
    m = f.beta1 * m + f.one_minus_beta1 * gradient;
    v = f.beta2 * v + f.one_minus_beta2 * gradient * gradient;
    float const denominator = sqrtf(v) / f.root_correction2 + f.eps;
    w -= f.step_size * m / denominator + decay * w;
}

/// Elements [i, i + vector_width), all of one section.
__device__ void update_vector(Arena const& a, std::int64_t i, float scale, float decay,
                              UpdateFactors const& f) {
    auto w = load_pack<vector_width>(a.w + i);
    auto m = load_pack<vector_width>(a.m + i);
    auto v = load_pack<vector_width>(a.v + i);
    auto const g = load_pack<vector_width>(a.g + i);
#pragma unroll
    for (int e = 0; e < vector_width; ++e) {
        update_element(w.value[e], m.value[e], v.value[e], g.value[e], scale, decay, f);
    }
    store_pack(a.w + i, w);
    store_pack(a.m + i, m);
    store_pack(a.v + i, v);
    if (a.rounded != nullptr) {
        store_pack(a.rounded + i, from_float<bf16>(w));
    }
}

/// The last section that begins at or before i; -1 if none does.
__device__ int section_of(Sections const& sections, std::int64_t i) {
    int low = -1;
    int high = sections.count;
    while (high - low > 1) {
        int const middle = (low + high) / 2;
        (sections.begin[middle] <= i ? low : high) = middle;
    }
    return low;
}

/// Block b updates tile first_tile + b. `vectors`: all arrays are aligned for them.
__global__ void __launch_bounds__(block_threads)
    adamw_kernel(Arena a, float const* norm, __grid_constant__ Sections const sections,
                 UpdateFactors const f, std::int64_t first_tile, bool vectors) {
    std::int64_t const begin = (first_tile + blockIdx.x) * tile;
    std::int64_t const end = begin + tile;
    float const scale = gradient_scale(f, norm);
    int const section = section_of(sections, begin);
    bool const uniform = vectors && section >= 0 && section + 1 < sections.count &&
                         sections.begin[section + 1] >= end;
    if (uniform) {
        if (sections.update[section] == Update::none) {
            return;
        }
        float const decay = sections.update[section] == Update::decayed ? f.decay : 0.0F;
        for (std::int64_t i = begin + threadIdx.x * vector_width; i < end;
             i += block_threads * vector_width) {
            update_vector(a, i, scale, decay, f);
        }
        return;
    }
    for (std::int64_t i = begin + threadIdx.x; i < end; i += block_threads) {
        int const own = section_of(sections, i);
        if (own < 0 || sections.update[own] == Update::none) {
            continue;
        }
        float const decay = sections.update[own] == Update::decayed ? f.decay : 0.0F;
        update_element(a.w[i], a.m[i], a.v[i], a.g[i], scale, decay, f);
        if (a.rounded != nullptr) {
            a.rounded[i] = __float2bfloat16_rn(a.w[i]);
        }
    }
}

/// Neighbours with one rule joined, gaps named, the last one empty.
std::vector<Section> sections_of(std::span<ParameterRange const> ranges, std::int64_t size) {
    std::vector<Section> sections;
    auto const append = [&](std::int64_t begin, Update update) {
        if (!sections.empty() && sections.back().begin == begin) {
            sections.pop_back();  // nothing lies between two ranges
        }
        if (sections.empty() || sections.back().update != update) {
            sections.push_back({begin, update});
        }
    };
    std::int64_t end = 0;
    for (ParameterRange const& range : ranges) {
        require(range.begin >= end && range.begin <= range.end && range.end <= size,
                ExitCode::internal,
                "adamw: range [{}, {}) is out of order or outside the arena of {}", range.begin,
                range.end, size);
        if (range.begin < range.end) {
            append(range.begin, range.decay ? Update::decayed : Update::plain);
            append(range.end, Update::none);
            end = range.end;
        }
    }
    return sections;
}

/// Updates what lies between the first section and the last.
void launch_adamw(Device const& d, Arena const& arena, float const* norm,
                  std::span<Section const> sections, UpdateFactors const& factors) {
    Sections argument{};
    argument.count = static_cast<int>(sections.size());
    for (std::size_t i = 0; i < sections.size(); ++i) {
        argument.begin[i] = sections[i].begin;
        argument.update[i] = i + 1 < sections.size() ? sections[i].update : Update::none;
    }
    std::int64_t const first_tile = sections.front().begin / tile;
    std::int64_t const tiles = ceil_div(sections.back().begin, tile) - first_tile;
    bool const vectors = aligned(arena.w, access_bytes) && aligned(arena.m, access_bytes) &&
                         aligned(arena.v, access_bytes) && aligned(arena.g, access_bytes) &&
                         aligned(arena.rounded, vector_width * sizeof(bf16));
    adamw_kernel<<<static_cast<unsigned>(tiles), block_threads, 0, d.stream>>>(
        arena, norm, argument, factors, first_tile, vectors);
    CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void norm(Device const& d, Tensor norm, Tensor x) {
    require(norm.rows == 1 && norm.cols == 1, ExitCode::internal,
            "norm: the result is {} x {}, expected 1 x 1", norm.rows, norm.cols);
    launch_norm(d, nullptr, norm.as<float>().data, x);
}

void squared_norm(Device const& d, double* result, Tensor x) {
    launch_norm(d, result, nullptr, x);
}

void adamw(Device const& d, Tensor w, Tensor m, Tensor v, Tensor g, Tensor norm, Tensor rounded,
           std::span<ParameterRange const> ranges, AdamWOptions const& options) {
    auto const check = [&](Tensor array) {
        require(array.rows == w.rows && array.cols == 1 && array.contiguous(), ExitCode::internal,
                "adamw: an array is {} x {} with stride {}, expected {} x 1", array.rows,
                array.cols, array.stride, w.rows);
    };
    for (Tensor const& array : {w, m, v, g}) {
        check(array);
    }
    if (!rounded.absent()) {
        check(rounded);
    }
    require(options.step >= 1, ExitCode::internal, "adamw: step is {}, the first is 1",
            options.step);
    require(!(options.clip_grad > 0) || !norm.absent(), ExitCode::internal,
            "adamw: clipping at {} needs the norm of the gradient", options.clip_grad);
    std::vector<Section> const sections = sections_of(ranges, w.rows);
    Arena const arena{w.as<float>().data, m.as<float>().data, v.as<float>().data,
                      g.as<float>().data, rounded.as<bf16>().data};
    std::span<Section const> const all(sections);
    // The last section of a launch is the first of the next.
    for (std::size_t first = 0; first + 1 < all.size(); first += most_sections - 1) {
        std::size_t const count = std::min<std::size_t>(most_sections, all.size() - first);
        launch_adamw(d, arena, norm.as<float>().data, all.subspan(first, count),
                     update_factors(options));
    }
}

}  // namespace cpstep::device
