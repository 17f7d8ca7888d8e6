// How two parts of a softmax over disjoint keys become one, for kernels.
#pragma once

#include <limits>

#include "cuda/fault.hpp"

namespace cpstep::device {

/// lse of a row that has seen no key.
inline constexpr float no_key = -std::numeric_limits<float>::infinity();

/// Faults that --self-test plants here, read before a launch.
enum class MergeFault : int { none, no_rescale, wrong_sign };

inline MergeFault planted_merge_fault() {
    if (planted(Fault::merge_without_rescale)) {
        return MergeFault::no_rescale;
    }
    return planted(Fault::merge_wrong_sign) ? MergeFault::wrong_sign : MergeFault::none;
}

struct MergeWeights {
    float keep, take, lse;
};

/// o' = keep o + take o_part and lse' of a row that has seen keys in both parts:
/// lse' = log(exp(lse) + exp(part)), keep = exp(lse - lse'), take = exp(part - lse').
__device__ __forceinline__ MergeWeights merge_weights(float lse, float part, MergeFault fault) {
    float const merged = fmaxf(lse, part) + log1pf(expf(-fabsf(lse - part)));
    float keep = expf(lse - merged);
    if (fault == MergeFault::no_rescale) {
        keep = 1.0F;
    } else if (fault == MergeFault::wrong_sign) {
        keep = expf(merged - lse);
    }
    return {keep, expf(part - merged), merged};
}

}  // namespace cpstep::device
