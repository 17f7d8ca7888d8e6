// y = silu(gate) * up and its gradient, in float, one pass over memory.   gate_up (S,2F): gate
// first Formulas: mlp.cpp. exp(-a) may overflow to infinity for very negative a; s = 0 is then the
// right limit.
#include <cstdint>

#include "cuda/kernel.cuh"

namespace cpstep::device {
namespace {

template <class T, int Lanes>
struct SwigluForward {
    static constexpr int lanes = Lanes;
    static constexpr int unroll = 2;
    struct Loaded {
        Pack<T, lanes> gate, up;
    };
    Matrix<T> y, gate_up;

    __device__ Loaded load(std::int64_t row, std::int64_t col) const {
        T const* const gate = row_of(gate_up, row) + col;
        return {load_pack<lanes>(gate), load_pack<lanes>(gate + y.cols)};
    }
    __device__ void store(std::int64_t row, std::int64_t col, Loaded const& loaded) const {
        Pack<float, lanes> const gate = to_float(loaded.gate);
        Pack<float, lanes> result = to_float(loaded.up);
#pragma unroll
        for (int i = 0; i < lanes; ++i) {
            result.value[i] *= gate.value[i] / (1.0F + expf(-gate.value[i]));
        }
        store_pack(row_of(y, row) + col, from_float<T>(result));
    }
};

/// A thread reads its elements of gate_up before it writes those of dgate_up, which may be the same
/// memory.
template <class T, int Lanes>
struct SwigluBackward {
    static constexpr int lanes = Lanes;
    static constexpr int unroll = 2;
    struct Loaded {
        Pack<T, lanes> dy, gate, up;
    };
    Matrix<T> dgate_up, dy, gate_up;

    __device__ Loaded load(std::int64_t row, std::int64_t col) const {
        T const* const gate = row_of(gate_up, row) + col;
        return {load_pack<lanes>(row_of(dy, row) + col), load_pack<lanes>(gate),
                load_pack<lanes>(gate + dy.cols)};
    }
    __device__ void store(std::int64_t row, std::int64_t col, Loaded const& loaded) const {
        Pack<float, lanes> const d = to_float(loaded.dy);
        Pack<float, lanes> const gate = to_float(loaded.gate);
        Pack<float, lanes> const up = to_float(loaded.up);
        Pack<float, lanes> dgate, dup;
#pragma unroll
        for (int i = 0; i < lanes; ++i) {
            float const a = gate.value[i];
            float const s = 1.0F / (1.0F + expf(-a));
            dgate.value[i] = d.value[i] * up.value[i] * s * (1.0F + a * (1.0F - s));
            dup.value[i] = d.value[i] * a * s;
        }
        T* const to = row_of(dgate_up, row) + col;
        store_pack(to, from_float<T>(dgate));
        store_pack(to + dy.cols, from_float<T>(dup));
    }
};

}  // namespace

void swiglu_forward(Device const& d, Tensor y, Tensor gate_up) {
    check_swiglu_forward(y, gate_up);
    with_type(y.dtype, [&](auto type) {
        using T = decltype(type);
        with_lanes<wide<T>>({y, gate_up}, [&](auto lanes) {
            SwigluForward<T, lanes.value> const op{y.as<T>(), gate_up.as<T>()};
            each_pack(d, y.rows, y.cols, op);
        });
    });
}

void swiglu_backward(Device const& d, Tensor dgate_up, Tensor dy, Tensor gate_up) {
    check_swiglu_backward(dgate_up, dy, gate_up);
    with_type(dy.dtype, [&](auto type) {
        using T = decltype(type);
        with_lanes<wide<T>>({dgate_up, dy, gate_up}, [&](auto lanes) {
            SwigluBackward<T, lanes.value> const op{dgate_up.as<T>(), dy.as<T>(), gate_up.as<T>()};
            each_pack(d, dy.rows, dy.cols, op);
        });
    });
}

}  // namespace cpstep::device
