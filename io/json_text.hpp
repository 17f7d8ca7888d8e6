// JSON from files that nobody vouches for: strict, bounded, and errors with a byte position.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace cpstep {

struct JsonLimits {
    int depth = 64;                 ///< nested arrays and objects
    std::int64_t keys = 4'000'000;  ///< object keys in the whole text
};

/// Why a text was refused, and where. The cause is one short line.
class JsonError : public std::runtime_error {
  public:
    JsonError(std::size_t byte, std::string const& cause)
        : std::runtime_error(cause), byte_(byte) {}
    /// 0-based offset of the offending byte; none where the parser does not know it.
    std::optional<std::size_t> offset() const {
        return byte_ == npos ? std::nullopt : std::optional<std::size_t>(byte_);
    }
    static constexpr std::size_t npos = static_cast<std::size_t>(-1);

  private:
    std::size_t byte_;
};

/// Parse a whole text. Beyond JSON's grammar it refuses a BOM, NUL bytes, duplicate keys and excess
/// over the limits; ill-formed UTF-8 and surrogate halves too. Throws JsonError.
nlohmann::json parse_json(std::string_view text, JsonLimits const& limits);

/// Read and parse a file of at most `max_bytes` that must hold an object.
/// Errors: Error(input_data) "file: byte N: cause".
nlohmann::json read_json_object(std::filesystem::path const& file, JsonLimits const& limits,
                                std::uint64_t max_bytes);

/// The bytes of a regular file of at most `max_bytes`. Errors: Error(input_data).
std::string read_text_file(std::filesystem::path const& file, std::uint64_t max_bytes);

}  // namespace cpstep
