#include "io/rollout.hpp"

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "cuda/error.hpp"
#include "io/atomic_file.hpp"
#include "io/h5.hpp"

namespace cpstep {
namespace {

constexpr std::string_view format_name = "cpstep-rollout";
constexpr std::int64_t newest_version = 1;

/// `where` opens each message: the file's name, or "rollout".
void require_offsets(std::string const& where, std::string_view name,
                     std::vector<std::int64_t> const& offsets, std::size_t values) {
    require(offsets.size() >= 2, ExitCode::input_data, "{}: {}: no sample in it", where, name);
    require(offsets.front() == 0, ExitCode::input_data, "{}: {}: begins with {}, must begin with 0",
            where, name, offsets.front());
    for (std::size_t j = 0; j + 1 < offsets.size(); ++j) {
        require(offsets[j] <= offsets[j + 1], ExitCode::input_data, "{}: {}: falls at sample {}",
                where, name, j);
    }
    require(static_cast<std::uint64_t>(offsets.back()) == values, ExitCode::input_data,
            "{}: {}: ends with {}, but there are {} values", where, name, offsets.back(), values);
}

void require_size(std::string const& where, std::string_view name, std::size_t size,
                  std::size_t wanted, bool optional) {
    require(size == wanted || (optional && size == 0), ExitCode::input_data,
            "{}: {}: {} values, expected {}", where, name, size, wanted);
}

/// Sizes and offsets fit together, so that every sample can be addressed.
void require_shape(Rollout const& r, std::string const& where) {
    require_offsets(where, "token_offsets", r.token_offsets, r.tokens.size());
    require_offsets(where, "response_offsets", r.response_offsets, r.loss_mask.size());
    require(r.response_offsets.size() == r.token_offsets.size(), ExitCode::input_data,
            "{}: response_offsets: {} samples, token_offsets has {}", where,
            r.response_offsets.size() - 1, r.samples());
    auto const n = static_cast<std::size_t>(r.samples());
    require_size(where, "old_log_probs", r.old_log_probs.size(), r.loss_mask.size(), true);
    require_size(where, "ref_log_probs", r.ref_log_probs.size(), r.loss_mask.size(), true);
    require_size(where, "rollout_log_probs", r.rollout_log_probs.size(), r.loss_mask.size(), true);
    require_size(where, "advantages", r.advantages.size(), n, true);
    bool const given = !r.advantages.empty();
    require(given || !(r.rewards.empty() || r.groups.empty()), ExitCode::input_data,
            "{}: needs rewards and groups, or advantages", where);
    require_size(where, "rewards", r.rewards.size(), n, given);
    require_size(where, "groups", r.groups.size(), n, given);
}

void require_finite(std::string const& where, std::string_view name, std::span<float const> values,
                    std::int64_t sample) {
    for (std::size_t i = 0; i < values.size(); ++i) {
        require(std::isfinite(values[i]), ExitCode::input_data, "{}: {}: sample {}: {} at {}",
                where, name, sample, values[i], i);
    }
}

/// [begin, end) of a vector that may be absent.
template <class T>
std::span<T const> part(std::vector<T> const& values, std::int64_t begin, std::int64_t end) {
    if (values.empty()) {
        return {};
    }
    return std::span(values).subspan(static_cast<std::size_t>(begin),
                                     static_cast<std::size_t>(end - begin));
}

void require_sample(Rollout const& r, std::int64_t j, std::int64_t vocab_size,
                    std::string const& where) {
    std::int64_t const total = r.total_length(j);
    std::int64_t const response = r.response_length(j);
    require(response > 0 && response < total, ExitCode::input_data,
            "{}: sample {}: {} response tokens of {} in all; there must be a response and a prompt",
            where, j, response, total);
    for (std::int32_t const token : part(r.tokens, r.token_offsets[j], r.token_offsets[j + 1])) {
        require(token >= 0 && token < vocab_size, ExitCode::input_data,
                "{}: tokens: sample {}: {} is not in the vocabulary of {}", where, j, token,
                vocab_size);
    }
    std::int64_t const begin = r.response_offsets[j];
    std::int64_t const end = r.response_offsets[j + 1];
    for (std::uint8_t const mask : part(r.loss_mask, begin, end)) {
        require(mask <= 1, ExitCode::input_data, "{}: loss_mask: sample {}: {} is neither 0 nor 1",
                where, j, mask);
    }
    require_finite(where, "old_log_probs", part(r.old_log_probs, begin, end), j);
    require_finite(where, "ref_log_probs", part(r.ref_log_probs, begin, end), j);
    require_finite(where, "rollout_log_probs", part(r.rollout_log_probs, begin, end), j);
    require_finite(where, "rewards", part(r.rewards, j, j + 1), j);
    require_finite(where, "advantages", part(r.advantages, j, j + 1), j);
}

void require_format(H5File const& in, std::string const& where) {
    H5Value const format = in.read_attribute("/", "format");
    auto const* name = std::get_if<std::string>(&format);
    require(name != nullptr && *name == format_name, ExitCode::input_data,
            "{}: not a rollout file: attribute format is not \"{}\"", where, format_name);
    H5Value const version = in.read_attribute("/", "format_version");
    auto const* number = std::get_if<std::int64_t>(&version);
    require(number != nullptr && *number >= 1, ExitCode::input_data,
            "{}: attribute format_version is not a positive integer", where);
    require(*number <= newest_version, ExitCode::input_data,
            "{}: written by a newer version: its format_version is {}, this program reads up to {}",
            where, *number, newest_version);
}

/// A 1-d dataset by the member function that reads its type; absent optional ones are empty.
template <class T>
std::vector<T> read_vector(H5File const& in, std::string const& where, std::string const& path,
                           std::vector<T> (H5File::*read)(std::string const&) const,
                           bool optional) {
    if (optional && !in.exists(path)) {
        return {};
    }
    std::size_t const rank = in.dims(path).size();
    require(rank == 1, ExitCode::input_data, "{}: {}: {} dimensions, expected 1", where, path,
            rank);
    return (in.*read)(path);
}

template <class T>
void write_vector(H5File& out, std::string const& path, std::vector<T> const& values,
                  std::string const& units) {
    if (!values.empty()) {
        out.write(path, std::span(values), {static_cast<std::int64_t>(values.size())}, units);
    }
}

template <class T>
std::vector<T> head(std::vector<T> const& values, std::int64_t count) {
    auto const part_of_values = part(values, 0, count);
    return {part_of_values.begin(), part_of_values.end()};
}

}  // namespace

Rollout first_samples(Rollout const& rollout, std::int64_t count) {
    require(count >= 1 && count <= rollout.samples(), ExitCode::input_data,
            "rollout: {} samples asked for, it has {}", count, rollout.samples());
    std::int64_t const responses = rollout.response_offsets[count];
    Rollout out;
    out.tokens = head(rollout.tokens, rollout.token_offsets[count]);
    out.token_offsets = head(rollout.token_offsets, count + 1);
    out.response_offsets = head(rollout.response_offsets, count + 1);
    out.loss_mask = head(rollout.loss_mask, responses);
    out.old_log_probs = head(rollout.old_log_probs, responses);
    out.ref_log_probs = head(rollout.ref_log_probs, responses);
    out.rollout_log_probs = head(rollout.rollout_log_probs, responses);
    out.rewards = head(rollout.rewards, count);
    out.groups = head(rollout.groups, count);
    out.advantages = head(rollout.advantages, count);
    return out;
}

void validate_rollout(Rollout const& rollout, std::int64_t vocab_size, std::string const& where) {
    require_shape(rollout, where);
    for (std::int64_t j = 0; j < rollout.samples(); ++j) {
        require_sample(rollout, j, vocab_size, where);
    }
    bool const any = std::any_of(rollout.loss_mask.begin(), rollout.loss_mask.end(),
                                 [](std::uint8_t mask) { return mask != 0; });
    require(any, ExitCode::input_data, "{}: loss_mask: every response token is masked", where);
}

Rollout read_rollout(std::filesystem::path const& file) {
    std::string const where = file.string();
    H5File const in = H5File::open(file);
    require_format(in, where);
    auto const f32 = [&](std::string const& path) {
        return read_vector(in, where, path, &H5File::read_f32, true);
    };
    Rollout r;
    r.tokens = read_vector(in, where, "/tokens", &H5File::read_i32, false);
    r.token_offsets = read_vector(in, where, "/token_offsets", &H5File::read_i64, false);
    r.response_offsets = read_vector(in, where, "/response_offsets", &H5File::read_i64, false);
    r.loss_mask = read_vector(in, where, "/loss_mask", &H5File::read_u8, false);
    r.old_log_probs = f32("/old_log_probs");
    r.ref_log_probs = f32("/ref_log_probs");
    r.rollout_log_probs = f32("/rollout_log_probs");
    r.rewards = f32("/rewards");
    r.groups = read_vector(in, where, "/groups", &H5File::read_i32, true);
    r.advantages = f32("/advantages");
    require_shape(r, where);
    return r;
}

void write_rollout(std::filesystem::path const& file, Rollout const& rollout) {
    require_shape(rollout, "rollout");
    H5File out = H5File::create(part_of(file));
    out.attribute("/", "format", std::string(format_name));
    out.attribute("/", "format_version", newest_version);
    write_vector(out, "/tokens", rollout.tokens, "1");
    write_vector(out, "/token_offsets", rollout.token_offsets, "1");
    write_vector(out, "/response_offsets", rollout.response_offsets, "1");
    write_vector(out, "/loss_mask", rollout.loss_mask, "1");
    write_vector(out, "/old_log_probs", rollout.old_log_probs, "1");
    write_vector(out, "/ref_log_probs", rollout.ref_log_probs, "1");
    write_vector(out, "/rollout_log_probs", rollout.rollout_log_probs, "1");
    write_vector(out, "/rewards", rollout.rewards, "1");
    write_vector(out, "/groups", rollout.groups, "1");
    write_vector(out, "/advantages", rollout.advantages, "1");
    out.close();
    publish(file);
}

}  // namespace cpstep
