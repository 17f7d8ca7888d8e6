// The host clock of every trace.
#pragma once

#include <chrono>
#include <cstdint>

namespace cpstep {

/// Monotonic host time in nanoseconds.
inline std::int64_t now_ns() {
    auto const now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

}  // namespace cpstep
