#include "app/analysis/tensor_difference.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "cuda/error.hpp"

namespace cpstep {
namespace {

constexpr std::int64_t values_at_once = std::int64_t{1} << 20;
constexpr char attribute_mark = '@';

std::string joined(std::string const& group, std::string const& name) {
    return group == "/" ? "/" + name : group + "/" + name;
}

/// Datasets and numeric attributes below `path`; names relative to the first group.
void collect(H5File const& file, std::string const& path, std::string const& prefix,
             std::set<std::string>& names) {
    for (std::string const& name : file.attribute_names(path)) {
        if (!std::holds_alternative<std::string>(file.read_attribute(path, name))) {
            names.insert(fmt::format("{}{}{}", prefix, attribute_mark, name));
        }
    }
    for (std::string const& name : file.children(path)) {
        std::string const child = joined(path, name);
        if (file.is_group(child)) {
            collect(file, child, prefix + name + "/", names);
        } else {
            names.insert(prefix + name);
        }
    }
}

/// Sums over the values seen so far.
struct Running {
    double square = 0, square_a = 0, largest_a = 0;
    std::int64_t worst = -1;

    void add(TensorDifference& out, double a, double b, std::int64_t index) {
        if (!std::isfinite(a) || !std::isfinite(b)) {
            if (!out.nonfinite) {
                out.nonfinite = true;
                worst = index;
                out.a = a;
                out.b = b;
            }
            return;
        }
        double const difference = std::abs(a - b);
        square += difference * difference;
        square_a += a * a;
        largest_a = std::max(largest_a, std::abs(a));
        out.max_ulp =
            std::max(out.max_ulp, ulp_distance(static_cast<float>(a), static_cast<float>(b)));
        if (!out.nonfinite && (worst < 0 || difference > out.max_abs)) {
            worst = index;
            out.a = a;
            out.b = b;
        }
        out.max_abs = std::max(out.max_abs, difference);
    }

    void finish(TensorDifference& out) const {
        if (square > 0) {
            out.rel_l2 = square_a > 0 ? std::sqrt(square / square_a)
                                      : std::numeric_limits<double>::infinity();
        }
        bool const of_parameters = out.name.find("gradients/") == 0 ||
                                   out.name.find("updated/") == 0 ||
                                   out.name.find("/gradients/") != std::string::npos;
        out.judged = of_parameters ? out.rel_l2 : out.max_abs / std::max(1.0, largest_a);
        if (out.nonfinite) {
            out.fault = "NaN or Inf";
            out.judged = std::numeric_limits<double>::quiet_NaN();
        }
    }
};

std::string index_text(std::int64_t flat, std::vector<std::int64_t> const& dims) {
    std::vector<std::int64_t> index(dims.size());
    for (std::size_t i = dims.size(); i-- > 0;) {
        index[i] = flat % dims[i];
        flat /= dims[i];
    }
    return fmt::format("[{}]", fmt::join(index, ", "));
}

void compare_datasets(TensorDifference& out, TensorGroup const& a, TensorGroup const& b) {
    std::string const path_a = joined(a.path, out.name);
    std::string const path_b = joined(b.path, out.name);
    std::vector<std::int64_t> const dims = a.file.dims(path_a);
    std::vector<std::int64_t> const other = b.file.dims(path_b);
    if (dims != other || dims.empty()) {
        out.fault =
            fmt::format("sizes [{}] and [{}]", fmt::join(dims, ", "), fmt::join(other, ", "));
        return;
    }
    std::int64_t row = 1;
    for (std::size_t i = 1; i < dims.size(); ++i) {
        row *= dims[i];
    }
    out.values = row * dims[0];
    if (out.values == 0) {
        return;
    }
    Running running;
    std::int64_t const step = std::max<std::int64_t>(values_at_once / row, 1);
    for (std::int64_t first = 0; first < dims[0]; first += step) {
        std::int64_t const count = std::min(step, dims[0] - first);
        std::vector<double> const part_a = a.file.read_f64(path_a, first, count);
        std::vector<double> const part_b = b.file.read_f64(path_b, first, count);
        for (std::size_t i = 0; i < part_a.size(); ++i) {
            running.add(out, part_a[i], part_b[i], first * row + static_cast<std::int64_t>(i));
        }
    }
    out.where = index_text(running.worst, dims);
    running.finish(out);
}

double number_of(H5Value const& value) {
    return std::holds_alternative<double>(value)
               ? std::get<double>(value)
               : static_cast<double>(std::get<std::int64_t>(value));
}

/// Splits "a/b@loss" into the object's path and the attribute.
double read_number(TensorGroup const& group, std::string const& name) {
    std::size_t const mark = name.find(attribute_mark);
    std::string inside = name.substr(0, mark);
    if (!inside.empty() && inside.back() == '/') {
        inside.pop_back();
    }
    std::string const path = inside.empty() ? group.path : joined(group.path, inside);
    return number_of(group.file.read_attribute(path, name.substr(mark + 1)));
}

}  // namespace

std::int64_t ulp_distance(float a, float b) {
    auto const ordered = [](float value) -> std::int64_t {
        auto const bits = std::bit_cast<std::uint32_t>(value);
        auto const size = static_cast<std::int64_t>(bits & 0x7fffffffU);
        return (bits >> 31U) != 0 ? -size : size;
    };
    return std::abs(ordered(a) - ordered(b));
}

std::vector<TensorDifference> tensor_differences(TensorGroup const& a, TensorGroup const& b) {
    std::set<std::string> names_a;
    std::set<std::string> names_b;
    collect(a.file, a.path, "", names_a);
    collect(b.file, b.path, "", names_b);
    std::set<std::string> names = names_a;
    names.insert(names_b.begin(), names_b.end());
    std::vector<TensorDifference> differences;
    for (std::string const& name : names) {
        TensorDifference difference;
        difference.name = name;
        if (!names_a.contains(name) || !names_b.contains(name)) {
            difference.fault = names_a.contains(name) ? "only in A" : "only in B";
        } else if (name.find(attribute_mark) != std::string::npos) {
            difference.values = 1;
            Running running;
            running.add(difference, read_number(a, name), read_number(b, name), 0);
            running.finish(difference);
        } else {
            compare_datasets(difference, a, b);
        }
        differences.push_back(difference);
    }
    return differences;
}

}  // namespace cpstep
