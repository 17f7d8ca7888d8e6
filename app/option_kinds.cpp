#include "app/option_kinds.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

namespace cpstep::option_kinds {

std::string Range::text() const {
    if (std::isinf(high)) {
        return fmt::format("{} {}", low_open ? "more than" : "at least", low);
    }
    return fmt::format("in {}{}, {}{}", low_open ? '(' : '[', low, high, high_open ? ')' : ']');
}

bool parse_switch(std::string const& text, std::string const& label) {
    std::string lower = text;
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    for (auto const* on : {"true", "1", "yes", "on"}) {
        if (lower == on) {
            return true;
        }
    }
    for (auto const* off : {"false", "0", "no", "off"}) {
        if (lower == off) {
            return false;
        }
    }
    fail(ExitCode::usage, "{}: '{}' is not true, false, 1, 0, yes, no, on or off", label, text);
}

std::vector<std::string> split_list(std::string const& text, std::string const& label) {
    std::vector<std::string> items;
    for (std::size_t begin = 0; begin <= text.size();) {
        std::size_t const comma = std::min(text.find(',', begin), text.size());
        items.push_back(text.substr(begin, comma - begin));
        begin = comma + 1;
        require(!items.back().empty(), ExitCode::usage,
                "{}: '{}' has an empty item; write items with single commas between them", label,
                text);
    }
    return items;
}

OptionSpec flag(std::string name, std::string help, std::function<void(Options&, bool)> set) {
    OptionSpec spec = make_spec(std::move(name), OptionKind::flag, "", std::move(help));
    spec.fallback = "false";
    spec.apply = [set = std::move(set)](Options& options, std::string const& text,
                                        std::string const& label) {
        bool const value = parse_switch(text, label);
        set(options, value);
        return std::string(value ? "true" : "false");
    };
    return spec;
}

OptionSpec flag(std::string name, std::string help, bool Options::* member) {
    return flag(std::move(name), std::move(help),
                [member](Options& options, bool value) { options.*member = value; });
}

namespace {

template <class T>
OptionSpec text_of(std::string name, std::string metavar, std::string help, T Options::* member) {
    OptionSpec spec =
        make_spec(std::move(name), OptionKind::text, std::move(metavar), std::move(help));
    spec.fallback = std::filesystem::path(Options{}.*member).string();
    spec.apply = [member](Options& options, std::string const& value, std::string const& label) {
        require(!value.empty(), ExitCode::usage, "{}: the value is empty", label);
        options.*member = value;
        return value;
    };
    return spec;
}

}  // namespace

OptionSpec text(std::string name, std::string metavar, std::string help,
                std::string Options::* member) {
    return text_of(std::move(name), std::move(metavar), std::move(help), member);
}

OptionSpec text(std::string name, std::string metavar, std::string help,
                std::filesystem::path Options::* member) {
    return text_of(std::move(name), std::move(metavar), std::move(help), member);
}

OptionSpec choice(std::string name, std::string help, std::vector<std::string> choices,
                  std::function<void(Options&, std::size_t)> set) {
    OptionSpec spec = make_spec(std::move(name), OptionKind::choice,
                                fmt::format("{}", fmt::join(choices, "|")), std::move(help));
    spec.fallback = choices.front();
    spec.choices = choices;
    spec.apply = [choices = std::move(choices), set = std::move(set)](
                     Options& options, std::string const& value, std::string const& label) {
        set(options, choice_index(value, choices, label));
        return value;
    };
    return spec;
}

OptionSpec fixed(std::string name, std::string help, std::vector<std::string> choices) {
    return choice(std::move(name), std::move(help), std::move(choices),
                  [](Options&, std::size_t) {});
}

OptionSpec must_be(std::string name, double value, std::string help, std::string reason) {
    OptionSpec spec = make_spec(std::move(name), OptionKind::real, "N", std::move(help));
    spec.fallback = fmt::format("{}", value);
    spec.apply = [value, reason = std::move(reason)](Options&, std::string const& given,
                                                     std::string const& label) {
        require(parse_number<double>(given, label) == value, ExitCode::usage,
                "{}: {} is not supported: {}; set it to {} or leave it out", label, given, reason,
                value);
        return fmt::format("{}", value);
    };
    return spec;
}

OptionSpec ignored(OptionKind kind, std::string name, std::string reason) {
    char const* const metavar = kind == OptionKind::flag   ? ""
                                : kind == OptionKind::text ? "V"
                                                           : "N";
    OptionSpec spec = make_spec(std::move(name), kind, metavar, std::move(reason));
    spec.applicable = false;
    spec.fallback = kind == OptionKind::flag ? "false" : "";
    spec.apply = [kind](Options&, std::string const& given, std::string const& label) {
        if (kind == OptionKind::flag) {
            return std::string(parse_switch(given, label) ? "true" : "false");
        }
        if (kind == OptionKind::text) {
            require(!given.empty(), ExitCode::usage, "{}: the value is empty", label);
            return given;
        }
        return kind == OptionKind::integer
                   ? fmt::format("{}", parse_in_range<std::int64_t>(given, label, kNotNegative))
                   : fmt::format("{}", parse_in_range<double>(given, label, kNotNegative));
    };
    return spec;
}

}  // namespace cpstep::option_kinds
