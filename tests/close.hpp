// Comparisons that NaN, Inf, empty and unequal sizes never pass.
#pragma once

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <vector>

namespace cpstep::test {

/// |got - want| <= atol + rtol |want|, false for NaN and Inf on either side.
inline bool within(double got, double want, double rtol, double atol) {
    return std::isfinite(want) && std::isfinite(got) &&
           std::abs(got - want) <= atol + rtol * std::abs(want);
}

/// Every element within(); empty or unequal sizes fail. Reports the first three differences.
template <class A, class B>
boost::test_tools::assertion_result all_close(A const& got, B const& want, double rtol,
                                              double atol) {
    boost::test_tools::assertion_result result(true);
    if (std::size(got) != std::size(want) || std::size(want) == 0) {
        result = false;
        result.message() << "sizes " << std::size(got) << " and " << std::size(want);
        return result;
    }
    int shown = 0;
    for (std::size_t i = 0; i < std::size(want); ++i) {
        double const g = static_cast<double>(got[i]);
        double const w = static_cast<double>(want[i]);
        if (!within(g, w, rtol, atol)) {
            result = false;
            if (shown++ < 3) {
                result.message() << " [" << i << "] got " << g << " want " << w << ";";
            }
        }
    }
    return result;
}

/// c * eps * sqrt(length): the bound of a sum of `length` rounded terms of size one; c <= 8.
template <class T>
double rounding_bound(double c, double length) {
    return c * static_cast<double>(std::numeric_limits<T>::epsilon()) * std::sqrt(length);
}

/// Seeded numbers, uniform in [-scale, scale].
template <class T>
std::vector<T> random_values(std::size_t count, unsigned seed, double scale = 1.0) {
    std::mt19937_64 engine(seed);
    std::uniform_real_distribution<double> uniform(-scale, scale);
    std::vector<T> values(count);
    std::generate(values.begin(), values.end(), [&] { return static_cast<T>(uniform(engine)); });
    return values;
}

/// Central difference of f() with respect to x, for finite-difference tests in double.
template <class F>
double central_difference(double& x, double step, F const& f) {
    double const at = x;
    x = at + step;
    double const up = f();
    x = at - step;
    double const down = f();
    x = at;
    return (up - down) / (2.0 * step);
}

}  // namespace cpstep::test
