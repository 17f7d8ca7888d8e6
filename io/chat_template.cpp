#include <algorithm>
#include <array>
#include <optional>

#include "cuda/error.hpp"
#include "io/json_text.hpp"
#include "io/tokenizer.hpp"

namespace cpstep {
namespace {

using nlohmann::json;

constexpr std::uint64_t kMaxTemplateBytes = std::uint64_t{64} << 20;
constexpr std::string_view kStart = "<|im_start|>";
constexpr std::string_view kEnd = "<|im_end|>";

struct Family {
    std::string_view mark;
    std::string_view name;
};

constexpr std::array kFamilies{
    Family{"<|start_header_id|>", "llama-3"}, Family{"[INST]", "mistral"},
    Family{"<start_of_turn>", "gemma"},       Family{"<\xef\xbd\x9cUser\xef\xbd\x9c>", "deepseek"},
    Family{"<|user|>", "phi/zephyr"},
};

void require_chatml(std::string const& source, std::string const& where) {
    if (source.find(kStart) != std::string::npos && source.find(kEnd) != std::string::npos) {
        return;
    }
    auto const* const family =
        std::find_if(kFamilies.begin(), kFamilies.end(),
                     [&](Family const& f) { return source.find(f.mark) != std::string::npos; });
    fail(ExitCode::input_data, "{}: chat template of family {} is not supported; only ChatML is",
         where, family == kFamilies.end() ? "unknown" : family->name);
}

/// The template of tokenizer_config.json: a string, or the one named "default" in a list.
std::optional<std::string> template_in_config(json const& config, std::string const& where) {
    auto const found = config.find("chat_template");
    if (found == config.end() || found->is_null()) {
        return std::nullopt;
    }
    if (found->is_string()) {
        return found->get<std::string>();
    }
    require(found->is_array(), ExitCode::input_data, "{}: chat_template must be a string or a list",
            where);
    for (json const& item : *found) {
        if (item.is_object() && item.value("name", json()) == "default" &&
            item.value("template", json()).is_string()) {
            return item["template"].get<std::string>();
        }
    }
    fail(ExitCode::input_data, "{}: chat_template lists no template named \"default\"", where);
}

/// Jinja's string escapes that occur in templates.
std::string unescape(std::string_view text) {
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '\\' || i + 1 == text.size()) {
            out += text[i];
            continue;
        }
        char const c = text[++i];
        switch (c) {
            case 'n':
                out += '\n';
                break;
            case 't':
                out += '\t';
                break;
            case 'r':
                out += '\r';
                break;
            case '\\':
            case '\'':
            case '"':
                out += c;
                break;
            default:
                out += '\\';
                out += c;
        }
    }
    return out;
}

/// The literal text up to <|im_end|>. Inside a string literal (`quote` opened it) the quote must
/// not end before; outside, no Jinja tag may intervene: then the text is computed, not a default.
std::optional<std::string> literal_until_end(std::string_view rest, char quote) {
    auto const end = rest.find(kEnd);
    if (end == std::string_view::npos) {
        return std::nullopt;
    }
    std::string_view const text = rest.substr(0, end);
    if (quote == 0) {
        bool const tag =
            text.find("{{") != std::string_view::npos || text.find("{%") != std::string_view::npos;
        return tag ? std::nullopt : std::optional<std::string>(text);
    }
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '\\') {
            ++i;
        } else if (text[i] == quote) {
            return std::nullopt;
        }
    }
    return unescape(text);
}

/// The system message that the template writes out literally, if any.
std::optional<std::string> find_default_system(std::string_view source) {
    std::string const opening = std::string(kStart) + "system";
    for (auto at = source.find(opening); at != std::string_view::npos;
         at = source.find(opening, at + 1)) {
        char const before = at > 0 ? source[at - 1] : '\0';
        char const quote = before == '\'' || before == '"' ? before : '\0';
        std::string_view rest = source.substr(at + opening.size());
        if (rest.starts_with("\\n")) {
            rest.remove_prefix(2);
        } else if (rest.starts_with('\n')) {
            rest.remove_prefix(1);
        } else {
            continue;
        }
        if (auto text = literal_until_end(rest, quote)) {
            return text;
        }
    }
    return std::nullopt;
}

std::string load_template(std::filesystem::path const& folder) {
    auto const jinja = folder / "chat_template.jinja";
    auto const config = folder / "tokenizer_config.json";
    std::optional<std::string> source;
    std::string where = jinja.string();
    if (std::filesystem::exists(jinja)) {  // as in HF, it goes before the config's
        source = read_text_file(jinja, kMaxTemplateBytes);
    } else if (std::filesystem::exists(config)) {
        where = config.string();
        source = template_in_config(read_json_object(config, {}, kMaxTemplateBytes), where);
    }
    require(source.has_value(), ExitCode::input_data,
            "{}: no chat template; put chat_template.jinja there, add chat_template to "
            "tokenizer_config.json, or give prompts as plain text",
            folder.string());
    require_chatml(*source, where);
    return *source;
}

}  // namespace

ChatTemplate::ChatTemplate(std::filesystem::path const& folder) {
    auto const system = find_default_system(load_template(folder));
    has_default_system_ = system.has_value();
    default_system_ = system.value_or("");
}

std::string ChatTemplate::render(std::vector<ChatMessage> const& messages) const {
    require(!messages.empty(), ExitCode::input_data, "a conversation has no messages");
    std::string text;
    auto const turn = [&](std::string const& role, std::string const& content) {
        text += fmt::format("{}{}\n{}{}\n", kStart, role, content, kEnd);
    };
    if (has_default_system_ && messages.front().role != "system") {
        turn("system", default_system_);
    }
    for (ChatMessage const& message : messages) {
        require(!message.role.empty() && message.role.find('\n') == std::string::npos,
                ExitCode::input_data, "a message's role must be one non-empty line");
        turn(message.role, message.content);
    }
    return text + fmt::format("{}assistant\n", kStart);
}

}  // namespace cpstep
