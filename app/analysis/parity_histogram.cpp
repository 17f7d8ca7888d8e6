#include "app/analysis/parity_histogram.hpp"

#include <algorithm>
#include <cmath>

#include "cuda/error.hpp"
#include "io/h5.hpp"

namespace cpstep {

void ErrorHistogram::add(double difference) {
    if (!std::isfinite(difference)) {
        ++nonfinite;
        return;
    }
    double const size = std::abs(difference);
    auto const bin = size == 0 ? 0
                               : std::clamp(static_cast<int>(std::floor(2 * std::log10(size))) + 21,
                                            1, bins - 1);
    ++count.at(static_cast<std::size_t>(bin));
}

std::vector<ErrorHistogram> parity_histograms(RunData const& run) {
    std::vector<ErrorHistogram> histograms;
    if (!run.finished()) {
        return histograms;
    }
    H5File const file = H5File::open(run.folder / "run.h5");
    for (char const* const array : {"log_probs", "entropy"}) {
        auto const path = [&](std::string const& variant) {
            return "/variants/" + variant + "/" + array;
        };
        if (!file.exists(path(run.variants.front()))) {
            continue;
        }
        std::vector<double> const base = file.read_f64(path(run.variants.front()));
        for (std::size_t i = 1; i < run.variants.size(); ++i) {
            ErrorHistogram histogram;
            histogram.variant = run.variants[i];
            histogram.array = array;
            std::vector<double> const values = file.read_f64(path(run.variants[i]));
            require(values.size() == base.size(), ExitCode::input_data,
                    "{}: {}: {} values, the baseline has {}", (run.folder / "run.h5").string(),
                    path(run.variants[i]), values.size(), base.size());
            for (std::size_t k = 0; k < base.size(); ++k) {
                histogram.add(values[k] - base[k]);
            }
            histograms.push_back(histogram);
        }
    }
    return histograms;
}

}  // namespace cpstep
