// Numbers of JSON files.
#pragma once

#include <cmath>
#include <nlohmann/json.hpp>

namespace cpstep {

/// null for NaN and infinities, which JSON does not have.
inline nlohmann::json number(double value) {
    return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(nullptr);
}

}  // namespace cpstep
