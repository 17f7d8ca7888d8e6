// Rotary position embedding, half-split pairs (i, i + D/2).   x (S, heads*D) in place; rope.cpp
// A block turns a few rows: its threads first find the cosines and sines of those, one each, then
// share the pairs of all heads.
#include <cmath>
#include <cstdint>
#include <numbers>

#include "cuda/kernel.cuh"

namespace cpstep::device {
namespace {

/// Also the most pairs of a head, and the most angles of a block.
constexpr int rope_threads = 256;
constexpr std::int64_t most_head_dim = 256;

/// theta^(-2i/D) / pi: angles in half turns, so that double reduces them to [-1, 1] by rounding.
struct HalfTurns {
    double per_position[most_head_dim / 2];
};

HalfTurns half_turns(std::int64_t head_dim, double theta) {
    HalfTurns turns{};
    for (std::int64_t i = 0; i < head_dim / 2; ++i) {
        turns.per_position[i] =
            std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim)) /
            std::numbers::pi;
    }
    return turns;
}

struct RopeShape {
    int half = 0;  ///< pairs of a head
    int heads = 0;
    int rows_of_block = 0;  ///< rows_of_block * half <= rope_threads
    float sign = 1.0F;      ///< of the angle
};

/// (a, b) -> (a cos - b sin, b cos + a sin).
template <class T, int Lanes>
__device__ __forceinline__ void rotate(T* first, int half, float const* cosine, float const* sine) {
    Pack<float, Lanes> a = to_float(load_pack<Lanes>(first));
    Pack<float, Lanes> b = to_float(load_pack<Lanes>(first + half));
#pragma unroll
    for (int i = 0; i < Lanes; ++i) {
        float const from_a = a.value[i];
        float const from_b = b.value[i];
        a.value[i] = from_a * cosine[i] - from_b * sine[i];
        b.value[i] = from_b * cosine[i] + from_a * sine[i];
    }
    store_pack(first, from_float<T>(a));
    store_pack(first + half, from_float<T>(b));
}

template <class T, int Lanes>
__global__ void __launch_bounds__(rope_threads)
    rope_kernel(Matrix<T> x, Matrix<std::int32_t> positions, RopeShape const shape,
                __grid_constant__ HalfTurns const turns) {
    __shared__ float cosine[rope_threads];
    __shared__ float sine[rope_threads];
    auto const thread = static_cast<int>(threadIdx.x);
    std::int64_t const first_row = std::int64_t{blockIdx.x} * shape.rows_of_block;
    auto const rows = static_cast<int>(min(std::int64_t{shape.rows_of_block}, x.rows - first_row));
    if (thread < rows * shape.half) {
        int const row = thread / shape.half;
        double const angle =
            *row_of(positions, first_row + row) * turns.per_position[thread - row * shape.half];
        // Whole turns are exact to drop; what is left is rounded once, to 2^-25 half turns.
        sincospif(static_cast<float>(angle - 2.0 * rint(0.5 * angle)), &sine[thread],
                  &cosine[thread]);
        sine[thread] *= shape.sign;
    }
    __syncthreads();
    int const packs = shape.half / Lanes;  // of a half of a head
    for (int item = thread; item < rows * shape.heads * packs; item += rope_threads) {
        int const head = item / packs;  // heads of all rows of the block in one count
        int const row = head / shape.heads;
        int const pair = (item - head * packs) * Lanes;
        T* const first =
            row_of(x, first_row + row) + (head - row * shape.heads) * 2 * shape.half + pair;
        int const angle = row * shape.half + pair;
        rotate<T, Lanes>(first, shape.half, cosine + angle, sine + angle);
    }
}

template <class T, int Lanes>
void launch_rope(Device const& d, Matrix<T> x, Matrix<std::int32_t> positions,
                 std::int64_t head_dim, double theta, Rotation direction) {
    RopeShape const shape{.half = static_cast<int>(head_dim / 2),
                          .heads = static_cast<int>(x.cols / head_dim),
                          .rows_of_block = static_cast<int>(rope_threads / (head_dim / 2)),
                          .sign = direction == Rotation::forward ? 1.0F : -1.0F};
    auto const blocks = static_cast<unsigned>(ceil_div(x.rows, shape.rows_of_block));
    rope_kernel<T, Lanes>
        <<<blocks, rope_threads, 0, d.stream>>>(x, positions, shape, half_turns(head_dim, theta));
    CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void rope(Device const& d, Tensor x, Tensor positions, std::int64_t head_dim, double theta,
          Rotation direction) {
    check_rope(x, positions, head_dim);
    require(head_dim <= most_head_dim, ExitCode::input_data,
            "a head size of {} is more than the {} that rope on a device takes", head_dim,
            most_head_dim);
    if (x.elements() == 0) {
        return;
    }
    with_type(x.dtype, [&](auto type) {
        using T = decltype(type);
        auto const launch = [&](auto lanes) {
            launch_rope<T, lanes.value>(d, x.as<T>(), positions.as<std::int32_t>(), head_dim, theta,
                                        direction);
        };
        if (head_dim / 2 % wide<T> == 0) {
            with_lanes<wide<T>>({x}, launch);
        } else {
            launch(std::integral_constant<int, 1>{});
        }
    });
}

}  // namespace cpstep::device
