// What tests of failures share.
#pragma once

#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <string>

#include "cuda/error.hpp"

namespace cpstep::test {

/// The Error that `work` throws; the test fails without one.
template <class F>
Error error_of(F const& work) {
    try {
        work();
    } catch (Error const& error) {
        return error;
    }
    BOOST_FAIL("no Error was thrown");
    std::abort();
}

inline bool contains(std::string const& text, std::string const& part) {
    return text.find(part) != std::string::npos;
}

}  // namespace cpstep::test
