// Two groups of HDF5 files, value by value.
#pragma once

#include <string>
#include <vector>

#include "io/h5.hpp"

namespace cpstep {

/// A dataset, or a number that is an attribute, in both groups.
struct TensorDifference {
    std::string name;  ///< below the group: "log_probs", "gradients/...", "@loss"
    std::int64_t values = 0;
    double max_abs = 0;
    double rel_l2 = 0;         ///< |a - b| / |a|; infinite where only b is not zero
    std::int64_t max_ulp = 0;  ///< in steps of float32, after rounding to it
    std::string where;         ///< index of the largest difference, "[3, 17]"
    double a = 0, b = 0;       ///< the values there
    /// What a tolerance bounds: of gradients and weights rel_l2; of other values, as in a run's own
    /// checks, max_abs / max(1, largest |a|).
    double judged = 0;
    std::string fault;  ///< only in one, unequal sizes, NaN or Inf; "" if it can be compared
    bool nonfinite = false;
};

/// A group of an open file.
struct TensorGroup {
    H5File const& file;
    std::string path;
};

/// Every dataset and numeric attribute of either group, by name. Datasets are read in parts of 2^20
/// values at most (one row of the first axis at least).
std::vector<TensorDifference> tensor_differences(TensorGroup const& a, TensorGroup const& b);

/// Steps of float32 from one value to the other; 0 for equal values, -0 and 0 included.
std::int64_t ulp_distance(float a, float b);

}  // namespace cpstep
