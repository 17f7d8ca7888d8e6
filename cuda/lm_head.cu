// Log-probability and entropy of a chunk of fp32 logits by one kernel, their gradient by another;
// the products around them are the library's.
#include <algorithm>
#include <cfloat>
#include <cstdint>

#include "cuda/kernel.cuh"
#include "cuda/lm_head.hpp"
#include "cuda/lm_head_chunks.hpp"

namespace cpstep::device {
namespace {

/// max_v z_v, sum_v e_v and sum_v e_v (z_v - max) with e_v = exp(z_v - max): the terms of the
/// second sum are never positive, so lse - sum p z loses nothing to a large offset of z.
struct Softmax {
    float maximum, sum, weighted;
};

/// Of no logits: an infinite maximum would make NaN, of 0 times it.
__device__ Softmax no_logits() {
    return {-FLT_MAX, 0.0F, 0.0F};
}

/// Brings s to another maximum, at least its own.
__device__ void rescale(Softmax& s, float maximum) {
    float const shift = s.maximum - maximum;
    float const e = expf(shift);
    s.weighted = e * (s.weighted + s.sum * shift);
    s.sum *= e;
    s.maximum = maximum;
}

template <int N>
__device__ void add(Softmax& s, Pack<float, N> const& z) {
    float maximum = s.maximum;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        maximum = fmaxf(maximum, z.value[i]);
    }
    if (maximum > s.maximum) {
        rescale(s, maximum);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        float const below = z.value[i] - maximum;
        float const e = expf(below);
        s.sum += e;
        s.weighted += e * below;
    }
}

__device__ Softmax joined(Softmax a, Softmax b) {
    float const maximum = fmaxf(a.maximum, b.maximum);
    rescale(a, maximum);
    rescale(b, maximum);
    return {maximum, a.sum + b.sum, a.weighted + b.weighted};
}

__device__ Softmax joined_over_warp(Softmax own) {
#pragma unroll
    for (int distance = warp_lanes / 2; distance > 0; distance /= 2) {
        Softmax const other{__shfl_xor_sync(0xffffffffU, own.maximum, distance),
                            __shfl_xor_sync(0xffffffffU, own.sum, distance),
                            __shfl_xor_sync(0xffffffffU, own.weighted, distance)};
        own = joined(own, other);
    }
    return own;
}

/// A row a block, as wide as blocks are: few rows at a time, so that much of a row is still in the
/// L2 cache when it is read again.
constexpr int forward_threads = 1024;
/// Loads of a thread in flight.
constexpr int packs_in_flight = 4;

/// This thread's share of a row.
__device__ Softmax softmax_of_share(float const* z, int vocabulary) {
    constexpr int lanes = wide<float>;
    int const packs = vocabulary / lanes;
    auto const thread = static_cast<int>(threadIdx.x);
    Softmax own = no_logits();
    int p = thread;
    for (; p + (packs_in_flight - 1) * forward_threads < packs;
         p += packs_in_flight * forward_threads) {
        Pack<float, packs_in_flight * lanes> many;
#pragma unroll
        for (int i = 0; i < packs_in_flight; ++i) {
            auto const one = load_pack<lanes>(z + (p + i * forward_threads) * lanes);
#pragma unroll
            for (int e = 0; e < lanes; ++e) {
                many.value[i * lanes + e] = one.value[e];
            }
        }
        add(own, many);
    }
    for (; p < packs; p += forward_threads) {
        add(own, load_pack<lanes>(z + p * lanes));
    }
    if (packs * lanes + thread < vocabulary) {
        add(own, load_pack<1>(z + packs * lanes + thread));
    }
    return own;
}

/// kept_v = z_v - lse rounded to T, backwards: what was read last is still near. p = exp(kept) is
/// most accurate where it is large, which z rounded alone would not make it.
template <class T, int Lanes>
__device__ void keep_logits(T* kept, float const* z, int vocabulary, float lse) {
    int const packs = vocabulary / Lanes;
    auto const thread = static_cast<int>(threadIdx.x);
    if (packs * Lanes + thread < vocabulary) {
        kept[packs * Lanes + thread] = from_float<T>(z[packs * Lanes + thread] - lse);
    }
    for (int last = packs - 1 - thread; last >= 0; last -= packs_in_flight * forward_threads) {
        Pack<float, Lanes> values[packs_in_flight];
#pragma unroll
        for (int i = 0; i < packs_in_flight; ++i) {
            if (int const p = last - i * forward_threads; p >= 0) {
                values[i] = load_pack<Lanes>(z + p * Lanes);
            }
        }
#pragma unroll
        for (int i = 0; i < packs_in_flight; ++i) {
            if (int const p = last - i * forward_threads; p >= 0) {
#pragma unroll
                for (int e = 0; e < Lanes; ++e) {
                    values[i].value[e] -= lse;
                }
                store_pack(kept + p * Lanes, from_float<T>(values[i]));
            }
        }
    }
}

/// What the forward pass makes of a row: (rows, 1) each.
struct RowResults {
    Matrix<float> log_prob, entropy, lse;
    Matrix<std::int32_t> targets;
};

/// z (rows, V), rows 16-byte aligned; kept (rows, V) or empty, its rows aligned for packs of Lanes.
template <class T, int Lanes>
__global__ void __launch_bounds__(forward_threads)
    softmax_kernel(RowResults const results, Matrix<T> const kept, Matrix<float> const logits) {
    __shared__ Softmax room[warp_lanes];
    __shared__ float row_lse;
    std::int64_t const row = blockIdx.x;
    float const* const z = row_of(logits, row);
    auto const vocabulary = static_cast<int>(logits.cols);
    Softmax s = joined_over_warp(softmax_of_share(z, vocabulary));
    auto const thread = static_cast<int>(threadIdx.x);
    if (thread % warp_lanes == 0) {
        room[thread / warp_lanes] = s;
    }
    __syncthreads();
    if (thread < warp_lanes) {
        s = joined_over_warp(thread < forward_threads / warp_lanes ? room[thread] : no_logits());
    }
    if (thread == 0) {
        double const maximum = s.maximum;
        double const log_sum = log(static_cast<double>(s.sum));
        double const z_target = z[*row_of(results.targets, row)];
        *row_of(results.log_prob, row) = static_cast<float>((z_target - maximum) - log_sum);
        *row_of(results.entropy, row) =
            static_cast<float>(log_sum - static_cast<double>(s.weighted) / s.sum);
        row_lse = static_cast<float>(maximum + log_sum);
        *row_of(results.lse, row) = row_lse;
    }
    if (kept.data != nullptr) {
        __syncthreads();
        keep_logits<T, Lanes>(row_of(kept, row), z, vocabulary, row_lse);
    }
}

/// What the backward pass reads of a row: (rows, 1) each.
struct RowGradients {
    Matrix<float> d_log_prob, d_entropy, lse, entropy;
    Matrix<std::int32_t> targets;

    RowGradients rows(std::int64_t first) const {
        auto const from = [first](auto column) {
            column.data += first * column.stride;
            return column;
        };
        return {from(d_log_prob), from(d_entropy), from(lse), from(entropy), from(targets)};
    }
};

constexpr int backward_threads = 512;
constexpr int gradient_packs = 2;  // of a thread in flight

/// One row: with k_v = source_v - offset = z_v - lse and p = exp(k),
/// dz_v = d_log_prob (1[v=y] - p_v) + d_entropy p_v (-entropy - k_v).
struct RowGradient {
    float offset, entropy, d_log_prob, d_entropy;
    int target;

    __device__ float of(float source, int v) const {
        float const k = source - offset;
        float const dz = expf(k) * (d_entropy * (-entropy - k) - d_log_prob);
        return v == target ? dz + d_log_prob : dz;
    }
    template <int N>
    __device__ Pack<float, N> of(Pack<float, N> pack, int first) const {
#pragma unroll
        for (int e = 0; e < N; ++e) {
            pack.value[e] = of(pack.value[e], first + e);
        }
        return pack;
    }
};

/// A row a block; dz may be z itself. kept: z holds z - lse already.
template <class To, class From, int Lanes>
__global__ void __launch_bounds__(backward_threads)
    gradient_kernel(Matrix<To> const dz, Matrix<From> const z, RowGradients const rows, bool kept) {
    std::int64_t const row = blockIdx.x;
    RowGradient const gradient{.offset = kept ? 0.0F : *row_of(rows.lse, row),
                               .entropy = *row_of(rows.entropy, row),
                               .d_log_prob = *row_of(rows.d_log_prob, row),
                               .d_entropy = *row_of(rows.d_entropy, row),
                               .target = *row_of(rows.targets, row)};
    bool const none = gradient.d_log_prob == 0.0F && gradient.d_entropy == 0.0F;
    To* const to = row_of(dz, row);
    From const* const from = row_of(z, row);
    auto const vocabulary = static_cast<int>(z.cols);
    int const packs = vocabulary / Lanes;
    auto const thread = static_cast<int>(threadIdx.x);
    for (int first = thread; first < packs; first += gradient_packs * backward_threads) {
        Pack<From, Lanes> loaded[gradient_packs];
#pragma unroll
        for (int i = 0; i < gradient_packs; ++i) {
            if (int const p = first + i * backward_threads; p < packs && !none) {
                loaded[i] = load_pack<Lanes>(from + p * Lanes);
            }
        }
#pragma unroll
        for (int i = 0; i < gradient_packs; ++i) {
            if (int const p = first + i * backward_threads; p < packs) {
                store_pack(to + p * Lanes,
                           from_float<To>(none ? Pack<float, Lanes>{}
                                               : gradient.of(to_float(loaded[i]), p * Lanes)));
            }
        }
    }
    int const rest = packs * Lanes + thread;
    if (rest < vocabulary) {
        to[rest] = from_float<To>(none ? 0.0F : gradient.of(to_float(from[rest]), rest));
    }
}

/// The rows of t start where packs of this many elements may.
bool rows_aligned(Tensor t, std::int64_t elements) {
    t.cols = elements;
    return divides_into(t, elements);
}

template <class To, class From>
void launch_gradient(Device const& d, Tensor dz, Tensor z, RowGradients const& rows, bool kept) {
    constexpr int lanes = wide<To>;
    auto const blocks = static_cast<unsigned>(z.rows);
    if (rows_aligned(dz, lanes) && rows_aligned(z, lanes)) {
        gradient_kernel<To, From, lanes>
            <<<blocks, backward_threads, 0, d.stream>>>(dz.as<To>(), z.as<From>(), rows, kept);
    } else {
        gradient_kernel<To, From, 1>
            <<<blocks, backward_threads, 0, d.stream>>>(dz.as<To>(), z.as<From>(), rows, kept);
    }
    CUDA_CHECK(cudaGetLastError());
}

void launch_softmax(Device const& d, RowResults const& results, Tensor kept, Tensor z) {
    auto const blocks = static_cast<unsigned>(z.rows);
    with_type(kept.absent() ? DType::f32 : kept.dtype, [&](auto type) {
        using T = decltype(type);
        constexpr int lanes = wide<float>;
        if (kept.absent() || rows_aligned(kept, lanes)) {
            softmax_kernel<T, lanes>
                <<<blocks, forward_threads, 0, d.stream>>>(results, kept.as<T>(), z.as<float>());
        } else {
            softmax_kernel<T, 1>
                <<<blocks, forward_threads, 0, d.stream>>>(results, kept.as<T>(), z.as<float>());
        }
    });
    CUDA_CHECK(cudaGetLastError());
}

void check_shapes(Tensor logits, Tensor x, Tensor w, Tensor targets) {
    check_lm_head(logits, x, w, targets);
    require(w.rows <= (std::int64_t{1} << 30), ExitCode::internal,
            "lm_head: a vocabulary of {} words is too large", w.rows);
}

/// Logits of a chunk; the same block for both passes.
Tensor logit_chunk(Device const& d, HeadChunks const& chunks, std::int64_t vocabulary) {
    return {d.scratch->at_least(chunks.logit_bytes, "lm_head logits"), DType::f32,
            chunks.logit_rows, vocabulary, chunks.stride};
}

void project(Device const& d, Tensor z, Tensor x, Tensor w) {
    d.products->multiply(z, x, false, w, true, false, {});
}

/// dx (overwritten) and dw += of these rows.
void multiply_gradient(Device const& d, Tensor dx, Tensor dw, Tensor dz, Tensor x, Tensor w) {
    d.products->multiply(dx, dz, false, w, false, false, {});
    d.products->multiply(dw, dz, true, x, false, true, {});
}

/// Gradients of all rows of dz, from logits computed again a chunk at a time.
void recompute_gradient(Device const& d, Tensor dz, Tensor z, Tensor x, Tensor w,
                        RowGradients const& rows) {
    for (std::int64_t first = 0; first < x.rows; first += z.rows) {
        std::int64_t const count = std::min(z.rows, x.rows - first);
        Tensor const part = z.row_range(0, count);
        project(d, part, x.row_range(first, count), w);
        with_type(dz.dtype, [&](auto type) {
            launch_gradient<decltype(type), float>(d, dz.row_range(first, count), part,
                                                   rows.rows(first), false);
        });
    }
}

}  // namespace

void lm_head_forward(Device const& d, Tensor log_prob, Tensor entropy, Tensor lse, Tensor logits,
                     Tensor x, Tensor w, Tensor targets) {
    check_shapes(logits, x, w, targets);
    if (x.rows == 0) {
        return;
    }
    HeadChunks const chunks = head_chunks(x.rows, w.rows, x.dtype);
    Tensor const z = logit_chunk(d, chunks, w.rows);
    for (std::int64_t first = 0; first < x.rows; first += z.rows) {
        std::int64_t const count = std::min(z.rows, x.rows - first);
        auto const rows = [&](Tensor t) { return t.row_range(first, count); };
        Tensor const part = z.row_range(0, count);
        project(d, part, rows(x), w);
        launch_softmax(d,
                       {rows(log_prob).as<float>(), rows(entropy).as<float>(),
                        rows(lse).as<float>(), rows(targets).as<std::int32_t>()},
                       logits.absent() ? Tensor{} : rows(logits), part);
    }
}

void lm_head_backward(Device const& d, Tensor dx, Tensor dw, Tensor d_log_prob, Tensor d_entropy,
                      Tensor logits, Tensor x, Tensor w, Tensor targets, Tensor lse,
                      Tensor entropy) {
    check_shapes(logits, x, w, targets);
    check_lm_head_gradients(dx, dw, x, w);
    if (x.rows == 0) {
        return;
    }
    RowGradients const rows{d_log_prob.as<float>(), d_entropy.as<float>(), lse.as<float>(),
                            entropy.as<float>(), targets.as<std::int32_t>()};
    if (!logits.absent()) {
        with_type(logits.dtype, [&](auto type) {
            using T = decltype(type);
            launch_gradient<T, T>(d, logits, logits, rows, true);
        });
        multiply_gradient(d, dx, dw, logits, x, w);
        return;
    }
    HeadChunks const chunks = head_chunks(x.rows, w.rows, x.dtype);
    Tensor const z = logit_chunk(d, chunks, w.rows);
    Tensor const dz{d.scratch->at_least(chunks.gradient_bytes, "lm_head gradient"), x.dtype,
                    chunks.gradient_rows, w.rows, chunks.stride};
    for (std::int64_t first = 0; first < x.rows; first += dz.rows) {
        std::int64_t const count = std::min(dz.rows, x.rows - first);
        Tensor const part = dz.row_range(0, count);
        Tensor const x_part = x.row_range(first, count);
        recompute_gradient(d, part, z, x_part, w, rows.rows(first));
        multiply_gradient(d, dx.row_range(first, count), dw, part, x_part, w);
    }
}

std::size_t lm_head_scratch_bytes(std::int64_t rows, std::int64_t vocabulary, DType dtype,
                                  bool kept) {
    HeadChunks const chunks = head_chunks(rows, vocabulary, dtype);
    return chunks.logit_bytes + (kept ? 0 : chunks.gradient_bytes);
}

}  // namespace cpstep::device
