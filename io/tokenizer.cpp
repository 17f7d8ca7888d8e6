#include "io/tokenizer.hpp"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>
#include <unordered_map>

#include "cuda/error.hpp"
#include "io/bpe.hpp"
#include "io/json_text.hpp"
#include "io/split_pattern.hpp"

namespace cpstep {
namespace {

using nlohmann::json;

constexpr std::uint64_t kMaxTokenizerBytes = std::uint64_t{512} << 20;

struct FreeC {
    void operator()(utf8proc_uint8_t* p) const noexcept { std::free(p); }
};

utf8proc_uint8_t const* as_utf8(std::string_view text) {
    return reinterpret_cast<utf8proc_uint8_t const*>(text.data());
}

/// Offset of the first byte that is not UTF-8, or npos.
std::size_t invalid_utf8(std::string_view text) {
    std::size_t at = 0;
    while (at < text.size()) {
        utf8proc_int32_t code = 0;
        auto const width = utf8proc_iterate(as_utf8(text) + at,
                                            static_cast<utf8proc_ssize_t>(text.size() - at), &code);
        if (width <= 0) {
            return at;
        }
        at += static_cast<std::size_t>(width);
    }
    return std::string_view::npos;
}

std::string to_nfc(std::string_view text) {
    bool const ascii = std::all_of(text.begin(), text.end(),
                                   [](char c) { return static_cast<unsigned char>(c) < 0x80; });
    if (ascii) {
        return std::string(text);
    }
    utf8proc_uint8_t* raw = nullptr;
    // NOLINTNEXTLINE(clang-analyzer-optin.core.EnumCastOutOfRange): the options are a bit set
    auto const nfc = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    auto const size =
        utf8proc_map(as_utf8(text), static_cast<utf8proc_ssize_t>(text.size()), &raw, nfc);
    std::unique_ptr<utf8proc_uint8_t, FreeC> const owner(raw);
    require(size >= 0, ExitCode::input_data, "NFC of a text failed: {}", utf8proc_errmsg(size));
    return {reinterpret_cast<char const*>(raw), static_cast<std::size_t>(size)};
}

/// Tokens cut out of text before anything else sees it: leftmost first, the longest of those.
class AddedTokens {
  public:
    void add(std::string const& content, std::int32_t id) {
        auto& bucket = by_first_byte_[static_cast<unsigned char>(content.front())];
        bucket.emplace_back(content, id);
        std::sort(bucket.begin(), bucket.end(),
                  [](auto const& a, auto const& b) { return a.first.size() > b.first.size(); });
    }

    /// Calls on_text(string_view) and on_token(id) in order; texts are not empty.
    template <class OnText, class OnToken>
    void split(std::string_view text, OnText const& on_text, OnToken const& on_token) const {
        std::size_t begin = 0;
        for (std::size_t at = 0; at < text.size();) {
            auto const* const token = match(text.substr(at));
            if (token == nullptr) {
                ++at;
                continue;
            }
            if (at > begin) {
                on_text(text.substr(begin, at - begin));
            }
            on_token(token->second);
            at += token->first.size();
            begin = at;
        }
        if (begin < text.size()) {
            on_text(text.substr(begin));
        }
    }

  private:
    using Entry = std::pair<std::string, std::int32_t>;

    Entry const* match(std::string_view text) const {
        for (Entry const& entry : by_first_byte_[static_cast<unsigned char>(text.front())]) {
            if (text.starts_with(entry.first)) {
                return &entry;
            }
        }
        return nullptr;
    }

    std::array<std::vector<Entry>, 256> by_first_byte_;
};

/// A field of an object; a null value where it is absent.
json const& field(json const& object, char const* key) {
    static json const absent;
    auto const found = object.find(key);
    return found == object.end() ? absent : *found;
}

std::string type_of(json const& value) {
    return value.is_object() ? field(value, "type").dump() : value.dump();
}

bool has_type(json const& value, char const* type) {
    return value.is_object() && field(value, "type") == type;
}

/// What HF applies around the model: only what leaves ids alone, or is done here, passes.
void refuse_other_stages(json const& root, std::string const& where) {
    auto const stage = [&](char const* key) -> json const& { return field(root, key); };
    for (char const* const key : {"truncation", "padding"}) {
        require(stage(key).is_null(), ExitCode::input_data,
                "{}: {} is not supported; set it to null", where, key);
    }
    require(has_type(stage("normalizer"), "NFC"), ExitCode::input_data,
            "{}: normalizer {} is not supported; only \"NFC\" is", where,
            type_of(stage("normalizer")));
    require(stage("post_processor").is_null() || has_type(stage("post_processor"), "ByteLevel"),
            ExitCode::input_data, "{}: post_processor {} is not supported; only \"ByteLevel\" is",
            where, type_of(stage("post_processor")));
    require(has_type(stage("decoder"), "ByteLevel"), ExitCode::input_data,
            "{}: decoder {} is not supported; only \"ByteLevel\" is", where,
            type_of(stage("decoder")));
}

/// The regular expression of a pre-tokenizer [Split by regex, ByteLevel without one].
std::string read_pattern(json const& root, std::string const& where) {
    json const& stage = field(root, "pre_tokenizer");
    require(has_type(stage, "Sequence"), ExitCode::input_data,
            "{}: pre_tokenizer {} is not supported; only a \"Sequence\" of Split and ByteLevel is",
            where, type_of(stage));
    json const& parts = field(stage, "pretokenizers");
    std::vector<std::string> types;
    for (json const& part : parts) {
        types.push_back(type_of(part));
    }
    require(types == std::vector<std::string>{"\"Split\"", "\"ByteLevel\""}, ExitCode::input_data,
            "{}: pre_tokenizer sequence [{}] is not supported; only [\"Split\", \"ByteLevel\"] is",
            where, fmt::join(types, ", "));
    json const& split = parts[0];
    json const& pattern = field(split, "pattern");
    require(pattern.is_object() && pattern.contains("Regex") && pattern["Regex"].is_string(),
            ExitCode::input_data, "{}: the Split pattern {} is not supported; only a Regex is",
            where, pattern.dump());
    json const& behavior = field(split, "behavior");
    require(behavior == "Isolated", ExitCode::input_data,
            "{}: Split behavior {} is not supported; only \"Isolated\" is", where, behavior.dump());
    require(split.value("invert", json(false)) == false, ExitCode::input_data,
            "{}: Split with invert is not supported", where);
    // HF's defaults of absent ByteLevel fields are true.
    for (char const* const key : {"add_prefix_space", "use_regex"}) {
        require(parts[1].value(key, json(true)) == false, ExitCode::input_data,
                "{}: ByteLevel with {} = true is not supported", where, key);
    }
    return pattern["Regex"].get<std::string>();
}

struct AddedToken {
    std::string content;
    std::int32_t id = 0;
    bool special = false;
    bool normalized = false;
};

AddedToken read_added_token(json const& item, std::string const& where) {
    auto const flag = [&](char const* key) { return field(item, key) == true; };
    require(item.is_object() && field(item, "content").is_string() && item["content"] != "",
            ExitCode::input_data, "{}: added_tokens needs objects with a non-empty content", where);
    AddedToken token{.content = item["content"].get<std::string>(),
                     .special = flag("special"),
                     .normalized = flag("normalized")};
    for (char const* const key : {"lstrip", "rstrip", "single_word"}) {
        require(!flag(key), ExitCode::input_data,
                "{}: added token {} with {} = true is not supported", where, item["content"].dump(),
                key);
    }
    json const& id = field(item, "id");
    require(id.is_number_unsigned() && id < std::numeric_limits<std::int32_t>::max(),
            ExitCode::input_data, "{}: added token {} needs an integer id from 0 to 2^31 - 2",
            where, item["content"].dump());
    token.id = id.get<std::int32_t>();
    return token;
}

}  // namespace

struct Tokenizer::Impl {
    Impl(json const& root, std::string const& where)
        : pattern(read_pattern(root, where), where), bpe(field(root, "model"), where) {
        for (auto const& [token, id] : bpe.vocabulary()) {
            bytes_of[id] = Bpe::bytes_of(token);
            vocab_size = std::max(vocab_size, std::int64_t{id} + 1);
        }
        for (json const& item : field(root, "added_tokens")) {
            add(read_added_token(item, where), where);
        }
    }

    void add(AddedToken const& token, std::string const& where) {
        auto const same_text = bpe.vocabulary().find(token.content);
        auto const same_id = bytes_of.find(token.id);
        bool const in_vocabulary = same_text != bpe.vocabulary().end();
        require(in_vocabulary ? same_text->second == token.id : same_id == bytes_of.end(),
                ExitCode::input_data,
                "{}: added token {} has id {}, which contradicts another entry", where,
                json(token.content).dump(), token.id);
        bytes_of[token.id] = token.content;
        vocab_size = std::max(vocab_size, std::int64_t{token.id} + 1);
        (token.normalized ? after_nfc : raw)
            .add(token.normalized ? to_nfc(token.content) : token.content, token.id);
        if (token.special) {
            special.push_back(token.id);
        }
    }

    void encode_text(std::string_view text, std::vector<std::int32_t>& ids) const {
        after_nfc.split(
            to_nfc(text),
            [&](std::string_view plain) {
                for (std::string_view const piece : pattern.split(plain)) {
                    bpe.encode(piece, ids);
                }
            },
            [&](std::int32_t id) { ids.push_back(id); });
    }

    SplitPattern pattern;
    Bpe bpe;
    AddedTokens raw;
    AddedTokens after_nfc;
    std::unordered_map<std::int32_t, std::string> bytes_of;
    std::vector<std::int32_t> special;
    std::int64_t vocab_size = 0;
};

Tokenizer::Tokenizer(std::filesystem::path const& tokenizer_json) {
    json const root = read_json_object(tokenizer_json, {}, kMaxTokenizerBytes);
    std::string const where = tokenizer_json.string();
    refuse_other_stages(root, where);
    impl_ = std::make_unique<Impl>(root, where);
}

Tokenizer::~Tokenizer() = default;

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
    std::size_t const invalid = invalid_utf8(text);
    require(invalid == std::string_view::npos, ExitCode::input_data,
            "a text is not UTF-8 at byte {}; convert it to UTF-8", invalid);
    std::vector<std::int32_t> ids;
    impl_->raw.split(
        text, [&](std::string_view plain) { impl_->encode_text(plain, ids); },
        [&](std::int32_t id) { ids.push_back(id); });
    return ids;
}

std::string Tokenizer::decode(std::vector<std::int32_t> const& ids) const {
    std::string text;
    for (std::int32_t const id : ids) {
        auto const found = impl_->bytes_of.find(id);
        require(found != impl_->bytes_of.end(), ExitCode::input_data,
                "token id {} is not in the tokenizer's vocabulary of {}", id, impl_->vocab_size);
        text += found->second;
    }
    return text;
}

std::int64_t Tokenizer::vocab_size() const {
    return impl_->vocab_size;
}

std::vector<std::int32_t> Tokenizer::special_ids() const {
    return impl_->special;
}

}  // namespace cpstep
