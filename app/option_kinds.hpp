// Kinds of options: how each checks, stores and prints its value. Private to the options files.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "app/option_table.hpp"
#include "cuda/error.hpp"

namespace cpstep::option_kinds {

/// Interval of allowed numbers; an open end is excluded.
struct Range {
    double low = 0;
    double high = std::numeric_limits<double>::infinity();
    bool low_open = false;
    bool high_open = false;

    bool contains(double x) const {
        return (low_open ? x > low : x >= low) && (high_open ? x < high : x <= high);
    }
    std::string text() const;
};

constexpr Range kNotNegative{};
constexpr Range kFromOne{.low = 1};
constexpr Range kPositive{.low_open = true};
constexpr Range kUnit{.high = 1};
constexpr Range kBelowOne{.high = 1, .high_open = true};

/// The whole text, finite; else Error(usage) opened by `label`.
template <class T>
T parse_number(std::string const& text, std::string const& label) {
    constexpr bool integral = std::is_integral_v<T>;
    T value{};
    auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    require(error != std::errc::invalid_argument && end == text.data() + text.size(),
            ExitCode::usage, "{}: '{}' is not {}", label, text,
            integral ? "an integer (digits only)" : "a number (no unit)");
    require(error != std::errc::result_out_of_range, ExitCode::usage,
            "{}: '{}' is out of range, it does not fit {}", label, text,
            integral ? "an integer" : "a double");
    if constexpr (!integral) {
        require(std::isfinite(value), ExitCode::usage, "{}: '{}' is not a finite number", label,
                text);
    }
    return value;
}

template <class T>
T parse_in_range(std::string const& text, std::string const& label, Range range) {
    T const value = parse_number<T>(text, label);
    require(range.contains(static_cast<double>(value)), ExitCode::usage,
            "{}: {} is out of range, it must be {}", label, text, range.text());
    return value;
}

/// true, false, 1, 0, yes, no, on, off in any case.
bool parse_switch(std::string const& text, std::string const& label);
/// Items between single commas.
std::vector<std::string> split_list(std::string const& text, std::string const& label);

/// Place of `item` in `choices`; else Error(usage) that lists them.
template <class Choices>
std::size_t choice_index(std::string const& item, Choices const& choices,
                         std::string const& label) {
    auto const found = std::find(choices.begin(), choices.end(), item);
    require(found != choices.end(), ExitCode::usage, "{}: '{}' is not available; choose from: {}",
            label, item, fmt::join(choices, ", "));
    return static_cast<std::size_t>(found - choices.begin());
}

inline OptionSpec make_spec(std::string name, OptionKind kind, std::string metavar,
                            std::string help) {
    OptionSpec spec;
    spec.name = std::move(name);
    spec.kind = kind;
    spec.metavar = std::move(metavar);
    spec.help = std::move(help);
    return spec;
}

template <class T>
std::string default_text(T const& value) {
    return fmt::format("{}", value);
}
template <class T>
std::string default_text(std::optional<T> const& value) {
    return value ? fmt::format("{}", *value) : "";
}

/// `member`: pointer to a member, or a function Options& -> T&. Its value in Options{} is the
/// default.
template <class T, class Member>
OptionSpec number(std::string name, std::string help, Range range, Member member) {
    constexpr bool integral = std::is_integral_v<T>;
    OptionSpec spec = make_spec(std::move(name), integral ? OptionKind::integer : OptionKind::real,
                                integral ? "N" : "X", std::move(help));
    Options defaults;
    auto& target = std::invoke(member, defaults);
    using Target = std::remove_reference_t<decltype(target)>;
    if constexpr (std::is_same_v<Target, int>) {
        range.high = std::min<double>(range.high, std::numeric_limits<int>::max());
    }
    spec.fallback = default_text(target);
    spec.apply = [range, member](Options& options, std::string const& text,
                                 std::string const& label) {
        T const value = parse_in_range<T>(text, label, range);
        std::invoke(member, options) = static_cast<Target>(value);
        return fmt::format("{}", value);
    };
    return spec;
}

template <class Member>
OptionSpec integer(std::string name, std::string help, Range range, Member member) {
    return number<std::int64_t>(std::move(name), std::move(help), range, member);
}

template <class Member>
OptionSpec real(std::string name, std::string help, Range range, Member member) {
    return number<double>(std::move(name), std::move(help), range, member);
}

OptionSpec flag(std::string name, std::string help, std::function<void(Options&, bool)> set);
OptionSpec flag(std::string name, std::string help, bool Options::* member);

OptionSpec text(std::string name, std::string metavar, std::string help,
                std::string Options::* member);
OptionSpec text(std::string name, std::string metavar, std::string help,
                std::filesystem::path Options::* member);

/// The first choice is the default; `set` gets the index of the choice.
OptionSpec choice(std::string name, std::string help, std::vector<std::string> choices,
                  std::function<void(Options&, std::size_t)> set);

/// Some of `names` in the order given, none twice; the first name alone is the default.
template <class T, std::size_t N>
OptionSpec choice_list(std::string name, std::array<std::string_view, N> const& names,
                       std::vector<T> Options::* member) {
    OptionSpec spec =
        make_spec(std::move(name), OptionKind::list, fmt::format("{}", fmt::join(names, ",")), "");
    spec.fallback = names.front();
    spec.choices.assign(names.begin(), names.end());
    spec.apply = [names, member](Options& options, std::string const& value,
                                 std::string const& label) {
        std::vector<T> items;
        for (std::string const& item : split_list(value, label)) {
            T const found = static_cast<T>(choice_index(item, names, label));
            require(std::find(items.begin(), items.end(), found) == items.end(), ExitCode::usage,
                    "{}: '{}' names {} twice", label, value, item);
            items.push_back(found);
        }
        options.*member = std::move(items);
        return value;
    };
    return spec;
}

/// A choice that this build cannot vary: checked and recorded only.
OptionSpec fixed(std::string name, std::string help, std::vector<std::string> choices);
/// A number of the trainer that must keep one value here.
OptionSpec must_be(std::string name, double value, std::string help, std::string reason);
/// Accepted so that a launch line can be pasted; no effect.
OptionSpec ignored(OptionKind kind, std::string name, std::string reason);

}  // namespace cpstep::option_kinds
