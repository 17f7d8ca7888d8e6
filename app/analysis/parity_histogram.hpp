// How far a variant's values are from the baseline's.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "app/analysis/run_data.hpp"

namespace cpstep {

/// |value - baseline| of an array in half decades: bin 0 is exactly 0, bin i >= 1 holds
/// [10^(i/2 - 10.5), 10^(i/2 - 10)), the first and the last also what lies outside.
struct ErrorHistogram {
    static constexpr int bins = 22;
    std::string variant, array;
    std::array<std::int64_t, bins> count{};
    std::int64_t nonfinite = 0;

    void add(double difference);
};

/// log_probs and entropy of each variant of run.h5 but the first; none of an unfinished run.
std::vector<ErrorHistogram> parity_histograms(RunData const& run);

}  // namespace cpstep
