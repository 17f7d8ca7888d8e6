#include "io/json_text.hpp"

#include <fstream>
#include <unordered_set>
#include <vector>

#include "cuda/error.hpp"

namespace cpstep {
namespace {

using nlohmann::json;

/// NUL bytes and nesting, before the parser allocates anything. The parser itself takes NUL for the
/// end.
void check_bytes(std::string_view text, int max_depth) {
    int depth = 0;
    bool in_string = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        char const c = text[i];
        if (c == '\0') {
            throw JsonError(i, "NUL byte");
        }
        if (in_string) {
            if (c == '\\' && i + 1 < text.size() && text[i + 1] != '\0') {
                ++i;
            } else if (c == '"') {
                in_string = false;
            }
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > max_depth) {
                throw JsonError(i, fmt::format("nested deeper than {} levels", max_depth));
            }
        } else if (c == ']' || c == '}') {
            --depth;
        }
    }
}

/// The library's text without its prefix, the text read so far (as long as the input) and line
/// breaks.
std::string short_cause(std::string_view what) {
    auto const column = what.find(", column ");
    auto const colon = what.find(": ", column == std::string_view::npos ? 0 : column);
    auto const bracket = what.find("] ");
    if (column != std::string_view::npos && colon != std::string_view::npos) {
        what.remove_prefix(colon + 2);
    } else if (bracket != std::string_view::npos) {
        what.remove_prefix(bracket + 2);
    }
    what = what.substr(0, what.find("; last read"));
    std::string text(what.substr(0, 200));
    for (char& c : text) {
        auto const byte = static_cast<unsigned char>(c);
        c = byte < 0x20 || byte >= 0x7f ? '?' : c;
    }
    return text;
}

/// Seen from the parser's callback: keys of the open objects.
class KeyCheck {
  public:
    explicit KeyCheck(std::int64_t max_keys) : max_keys_(max_keys) {}

    bool operator()(json::parse_event_t event, json const& value) {
        if (event == json::parse_event_t::object_start) {
            open_.emplace_back();
        } else if (event == json::parse_event_t::object_end) {
            open_.pop_back();
        } else if (event == json::parse_event_t::key) {
            auto const& key = value.get_ref<std::string const&>();
            if (++keys_ > max_keys_) {
                throw JsonError(JsonError::npos, fmt::format("more than {} keys", max_keys_));
            }
            if (!open_.back().insert(key).second) {
                throw JsonError(JsonError::npos,
                                fmt::format("duplicate key \"{}\"", key.substr(0, 100)));
            }
        }
        return true;
    }

  private:
    std::int64_t max_keys_;
    std::int64_t keys_ = 0;
    std::vector<std::unordered_set<std::string>> open_;
};

}  // namespace

json parse_json(std::string_view text, JsonLimits const& limits) {
    if (text.starts_with("\xef\xbb\xbf")) {
        throw JsonError(0, "byte order mark");
    }
    check_bytes(text, limits.depth);
    KeyCheck keys(limits.keys);
    try {
        return json::parse(
            text, [&](int, json::parse_event_t event, json& value) { return keys(event, value); });
    } catch (json::parse_error const& e) {
        throw JsonError(e.byte > 0 ? e.byte - 1 : 0, short_cause(e.what()));
    } catch (json::exception const& e) {
        throw JsonError(JsonError::npos, short_cause(e.what()));
    }
}

std::string read_text_file(std::filesystem::path const& file, std::uint64_t max_bytes) {
    std::error_code ec;
    auto const status = std::filesystem::status(file, ec);
    require(std::filesystem::exists(status), ExitCode::input_data, "{}: no such file",
            file.string());
    require(std::filesystem::is_regular_file(status), ExitCode::input_data,
            "{}: not a regular file", file.string());
    auto const size = std::filesystem::file_size(file, ec);
    require(!ec, ExitCode::input_data, "{}: {}", file.string(), ec.message());
    require(size <= max_bytes, ExitCode::input_data, "{}: {} bytes, more than the {} allowed",
            file.string(), size, max_bytes);
    std::ifstream in(file, std::ios::binary);
    std::string text(size, '\0');
    in.read(text.data(), static_cast<std::streamsize>(size));
    require(in.good(), ExitCode::input_data, "{}: cannot be read; check its permissions",
            file.string());
    return text;
}

json read_json_object(std::filesystem::path const& file, JsonLimits const& limits,
                      std::uint64_t max_bytes) {
    std::string const text = read_text_file(file, max_bytes);
    json value;
    try {
        value = parse_json(text, limits);
    } catch (JsonError const& e) {
        if (auto const offset = e.offset()) {
            fail(ExitCode::input_data, "{}: byte {}: {}", file.string(), *offset, e.what());
        }
        fail(ExitCode::input_data, "{}: {}", file.string(), e.what());
    }
    require(value.is_object(), ExitCode::input_data, "{}: must hold a JSON object, holds {}",
            file.string(), value.type_name());
    return value;
}

}  // namespace cpstep
