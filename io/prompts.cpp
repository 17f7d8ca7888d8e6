#include "io/prompts.hpp"

#include <fmt/format.h>

#include <fstream>
#include <optional>

#include "cuda/error.hpp"
#include "io/json_text.hpp"

namespace cpstep {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxLineBytes = std::size_t{64} << 20;
constexpr std::size_t kBlockBytes = std::size_t{1} << 20;
constexpr JsonLimits kLineLimits{.depth = 64, .keys = 100'000};
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

struct Line {
    std::int64_t number = 0;
    std::string text;       ///< without LF and without the CR before it
    bool too_long = false;  ///< text holds the first kMaxLineBytes only
};

/// Lines of a file; never holds more than the longest line allowed.
class LineReader {
  public:
    explicit LineReader(std::filesystem::path const& file)
        : name_(file.string()), in_(file, std::ios::binary), block_(kBlockBytes, '\0') {
        require(in_.is_open(), ExitCode::input_data, "{}: cannot be opened; check its permissions",
                name_);
    }

    /// False at the end of the file. A last line without LF is a line.
    bool next(Line& line) {
        line = Line{.number = ++count_, .text = {}};
        bool any = false;
        while (fill()) {
            any = true;
            std::string_view const rest = std::string_view(block_).substr(at_, size_ - at_);
            auto const end = rest.find('\n');
            append(line, rest.substr(0, end));
            at_ += end == std::string_view::npos ? rest.size() : end + 1;
            if (end != std::string_view::npos) {
                break;
            }
        }
        if (line.text.ends_with('\r') && !line.too_long) {
            line.text.pop_back();
        }
        return any;
    }

  private:
    bool fill() {
        if (at_ == size_ && in_.good()) {
            in_.read(block_.data(), static_cast<std::streamsize>(block_.size()));
            require(!in_.bad(), ExitCode::input_data, "{}: read error after line {}", name_,
                    count_ - 1);
            size_ = static_cast<std::size_t>(in_.gcount());
            at_ = 0;
        }
        return at_ < size_;
    }

    static void append(Line& line, std::string_view part) {
        std::size_t const room = kMaxLineBytes - line.text.size();
        line.too_long = line.too_long || part.size() > room;
        line.text.append(part.substr(0, room));
    }

    std::string name_;
    std::ifstream in_;
    std::string block_;
    std::size_t at_ = 0;
    std::size_t size_ = 0;
    std::int64_t count_ = 0;
};

/// Why a line is bad, and its 1-based column in bytes.
class BadLine : public std::runtime_error {
  public:
    BadLine(std::size_t column, std::string const& cause)
        : std::runtime_error(cause), column_(column) {}
    std::size_t column() const { return column_; }

  private:
    std::size_t column_;
};

template <class... Args>
void expect(bool condition, fmt::format_string<Args...> cause, Args&&... args) {
    if (!condition) {
        throw BadLine(1, fmt::format(cause, std::forward<Args>(args)...));
    }
}

ChatMessage to_message(json const& value, std::string const& key, std::size_t index) {
    expect(value.is_object(), "{}[{}] must be an object with role and content, is {}", key, index,
           value.type_name());
    for (char const* const field : {"role", "content"}) {
        auto const found = value.find(field);
        expect(found != value.end(), "{}[{}] has no {}", key, index, field);
        expect(found->is_string(), "{}[{}].{} must be a string, is {}", key, index, field,
               found->type_name());
    }
    ChatMessage message{value["role"].get<std::string>(), value["content"].get<std::string>()};
    expect(!message.role.empty() && message.role.find('\n') == std::string::npos,
           "{}[{}].role must be one non-empty line", key, index);
    return message;
}

std::vector<ChatMessage> to_messages(json const& record, std::string const& key) {
    expect(record.is_object(), "must be a JSON object, is {}", record.type_name());
    auto const found = record.find(key);
    if (found == record.end()) {
        std::vector<std::string> keys;
        for (auto const& [name, value] : record.items()) {
            keys.push_back(name);
        }
        expect(false, "no key \"{}\"; the keys are: {}", key, fmt::join(keys, ", "));
    }
    if (found->is_string()) {
        return {{"user", found->get<std::string>()}};
    }
    expect(found->is_array() && !found->empty(),
           "{} must be a string or a non-empty list of messages, is {}{}", key,
           found->is_array() ? "an empty " : "", found->type_name());
    std::vector<ChatMessage> messages;
    for (json const& value : *found) {
        messages.push_back(to_message(value, key, messages.size()));
    }
    return messages;
}

/// The messages of a line that is not blank; throws BadLine.
std::vector<ChatMessage> parse_line(Line const& line, std::string const& key) {
    if (line.too_long) {
        throw BadLine(kMaxLineBytes + 1, fmt::format("line over {} MiB", kMaxLineBytes >> 20));
    }
    bool const marked = line.number == 1 && line.text.starts_with(kByteOrderMark);
    std::size_t const skip = marked ? kByteOrderMark.size() : 0;
    json record;
    try {
        record = parse_json(std::string_view(line.text).substr(skip), kLineLimits);
    } catch (JsonError const& e) {
        throw BadLine(e.offset() ? skip + *e.offset() + 1 : 1, e.what());
    }
    return to_messages(record, key);
}

bool is_blank(Line const& line) {
    std::string_view text = line.text;
    if (line.number == 1 && text.starts_with(kByteOrderMark)) {
        text.remove_prefix(kByteOrderMark.size());
    }
    return !line.too_long && text.find_first_not_of(" \t\r") == std::string_view::npos;
}

}  // namespace

Prompts read_prompts(std::filesystem::path const& file, std::string const& key, std::int64_t limit,
                     bool skip_bad) {
    require(std::filesystem::exists(file), ExitCode::input_data, "{}: no such file", file.string());
    require(!std::filesystem::is_directory(file), ExitCode::input_data,
            "{}: is a folder, not a file", file.string());
    LineReader reader(file);
    Prompts result;
    Line line;
    while (static_cast<std::int64_t>(result.prompts.size()) < limit && reader.next(line)) {
        if (is_blank(line)) {
            continue;
        }
        try {
            result.prompts.push_back({line.number, parse_line(line, key)});
        } catch (BadLine const& e) {
            require(skip_bad, ExitCode::input_data, "{}:{}:{}: {}", file.string(), line.number,
                    e.column(), e.what());
            ++result.skipped;
        }
    }
    require(limit <= 0 || !result.prompts.empty(), ExitCode::input_data,
            "{}: holds no prompts ({} bad lines skipped)", file.string(), result.skipped);
    return result;
}

}  // namespace cpstep
