// What a probe found out, or why it could not.
#pragma once

#include <optional>
#include <string>
#include <utility>

namespace cpstep {

template <class T>
struct Fact {
    std::optional<T> value;
    std::string why;  ///< nothing is known

    bool known() const { return value.has_value(); }
};

template <class T>
Fact<T> known(T value) {
    return {.value = std::move(value), .why = {}};
}

template <class T>
Fact<T> unknown(std::string const& why) {
    return {.value = std::nullopt, .why = why};
}

}  // namespace cpstep
