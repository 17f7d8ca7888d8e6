#include "app/option_variants.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <set>
#include <utility>

#include "app/option_kinds.hpp"

namespace cpstep {
namespace {

using namespace option_kinds;

constexpr std::size_t kMaxName = 40;
constexpr char const* kBaseline = "cp1";
constexpr double kMaxRanks = 1 << 20;

struct VariantKey {
    std::string name;
    std::function<void(NamedVariant&, std::string const& value, std::string const& label)> set;
    std::function<std::string(NamedVariant const&)> text;  ///< "" if the key is left out
};

template <class T, std::size_t N>
VariantKey name_key(std::string name, std::array<std::string_view, N> const& names,
                    std::optional<T> NamedVariant::* member) {
    return {std::move(name),
            [&names, member](NamedVariant& variant, std::string const& value,
                             std::string const& label) {
                variant.*member = static_cast<T>(choice_index(value, names, label));
            },
            [member](NamedVariant const& variant) {
                return variant.*member ? std::string(name_of(*(variant.*member))) : "";
            }};
}

VariantKey size_key() {
    return {"context-parallel-size",
            [](NamedVariant& variant, std::string const& value, std::string const& label) {
                variant.size = static_cast<int>(
                    parse_in_range<std::int64_t>(value, label, {.low = 1, .high = kMaxRanks}));
            },
            [](NamedVariant const& variant) {
                return variant.size ? fmt::format("{}", *variant.size) : "";
            }};
}

VariantKey hierarchical_key() {
    return {"hierarchical-context-parallel-sizes",
            [](NamedVariant& variant, std::string const& value, std::string const& label) {
                variant.hierarchical = parse_factors(value, 'x', label);
            },
            [](NamedVariant const& variant) {
                return variant.hierarchical ? fmt::format("{}x{}", variant.hierarchical->a2a,
                                                          variant.hierarchical->p2p)
                                            : "";
            }};
}

std::vector<VariantKey> const& variant_keys() {
    static std::vector<VariantKey> const keys{
        size_key(),
        name_key("cp-comm-type", cp_method_names, &NamedVariant::method),
        name_key("cp-loss-comm", loss_comm_names, &NamedVariant::loss),
        name_key("cp-layout", cp_layout_names, &NamedVariant::layout),
        hierarchical_key(),
        name_key("trace-detail", trace_detail_names, &NamedVariant::trace_detail)};
    return keys;
}

VariantKey const& find_key(std::string const& name, std::string const& label) {
    std::vector<std::string> names;
    for (VariantKey const& key : variant_keys()) {
        if (key.name == name) {
            return key;
        }
        names.push_back(key.name);
    }
    std::string const nearest = nearest_name(name, names);
    fail(ExitCode::usage, "{}: unknown key '{}'; {}", label, name,
         nearest.empty() ? fmt::format("keys are: {}", fmt::join(names, ", "))
                         : fmt::format("did you mean '{}'?", nearest));
}

void check_name(std::string const& name, std::string const& label) {
    auto const alphanumeric = [](unsigned char c) { return std::isalnum(c) != 0; };
    auto const allowed = [&](char c) {
        return alphanumeric(static_cast<unsigned char>(c)) ||
               std::string_view("_.+-").find(c) != std::string_view::npos;
    };
    // Without a letter or digit: "." would be no name of a group in run.h5.
    require(name.size() <= kMaxName && std::all_of(name.begin(), name.end(), allowed) &&
                std::any_of(name.begin(), name.end(), alphanumeric),
            ExitCode::usage,
            "{}: '{}' is no name of a variant; write NAME or NAME:key=value,... with a NAME of at "
            "most {} letters, digits and _.+- (one letter or digit at least)",
            label, name, kMaxName);
    require(name != kBaseline, ExitCode::usage,
            "{}: the name {} is reserved for the baseline, which always runs; choose another",
            label, kBaseline);
}

NamedVariant parse_variant(std::string const& text, std::string const& label) {
    std::size_t const colon = std::min(text.find(':'), text.size());
    NamedVariant variant;
    variant.name = text.substr(0, colon);
    check_name(variant.name, label);
    if (colon == text.size()) {
        return variant;
    }
    std::string const place = fmt::format("{}: variant {}", label, variant.name);
    std::set<std::string> seen;
    for (std::string const& item : split_list(text.substr(colon + 1), place)) {
        std::size_t const equals = item.find('=');
        require(equals != std::string::npos, ExitCode::usage,
                "{}: '{}' is not of the form key=value", place, item);
        VariantKey const& key = find_key(item.substr(0, equals), place);
        require(seen.insert(key.name).second, ExitCode::usage, "{}: {} is given twice", place,
                key.name);
        key.set(variant, item.substr(equals + 1), fmt::format("{}: {}", place, key.name));
    }
    return variant;
}

std::string text_of(NamedVariant const& variant) {
    std::vector<std::string> items;
    for (VariantKey const& key : variant_keys()) {
        std::string const value = key.text(variant);
        if (!value.empty()) {
            items.push_back(fmt::format("{}={}", key.name, value));
        }
    }
    return fmt::format("{}{}{}", variant.name, items.empty() ? "" : ":", fmt::join(items, ","));
}

}  // namespace

HierarchicalSizes parse_factors(std::string const& text, char separator, std::string const& label) {
    std::size_t const middle = text.find(separator);
    require(middle != std::string::npos && text.find(separator, middle + 1) == std::string::npos,
            ExitCode::usage,
            "{0}: '{1}' is not two factors; write the ranks that exchange heads, then those of a "
            "ring, e.g. 2{2}4",
            label, text, separator);
    auto const factor = [&](std::string const& item) {
        return static_cast<int>(
            parse_in_range<std::int64_t>(item, label, {.low = 2, .high = kMaxRanks}));
    };
    return {.a2a = factor(text.substr(0, middle)), .p2p = factor(text.substr(middle + 1))};
}

std::string apply_variants(Options& options, std::string const& text, std::string const& label) {
    std::vector<NamedVariant> variants;
    std::vector<std::string> canonical;
    std::set<std::string> names;
    for (std::size_t begin = 0; begin <= text.size();) {
        std::size_t const end = std::min(text.find(';', begin), text.size());
        std::string const item = text.substr(begin, end - begin);
        begin = end + 1;
        require(!item.empty(), ExitCode::usage,
                "{}: a variant is empty; write NAME or NAME:key=value,..., with a single ';' "
                "between variants",
                label);
        variants.push_back(parse_variant(item, label));
        canonical.push_back(text_of(variants.back()));
        require(names.insert(variants.back().name).second, ExitCode::usage,
                "{}: two variants have the name {}; rename one", label, variants.back().name);
    }
    options.variants = std::move(variants);
    return fmt::format("{}", fmt::join(canonical, ";"));
}

}  // namespace cpstep
