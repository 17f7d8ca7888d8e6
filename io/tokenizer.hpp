// Byte-level BPE from a HF tokenizer.json (GPT-4 style split pattern, NFC), and the ChatML
// template.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace cpstep {

/// Errors: Error(input_data). Anything in tokenizer.json that changes ids and is not supported
/// (other model, normaliser, pre-tokeniser, lstrip/rstrip/single_word tokens) is refused by name.
class Tokenizer {
  public:
    explicit Tokenizer(std::filesystem::path const& tokenizer_json);
    Tokenizer(Tokenizer const&) = delete;
    Tokenizer& operator=(Tokenizer const&) = delete;
    ~Tokenizer();

    /// UTF-8 text to ids; added tokens are recognised in the text. Invalid UTF-8 is an error.
    std::vector<std::int32_t> encode(std::string_view text) const;
    /// Ids to UTF-8; encode followed by decode gives the NFC form of the text.
    std::string decode(std::vector<std::int32_t> const& ids) const;
    /// One more than the largest id.
    std::int64_t vocab_size() const;
    /// Ids of special added tokens.
    std::vector<std::int32_t> special_ids() const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

struct ChatMessage {
    std::string role;
    std::string content;
};

/// ChatML as in the folder's tokenizer_config.json (or chat_template.jinja): its default system
/// message, if the template has one. A template that is not ChatML is refused with the name of its
/// family.
class ChatTemplate {
  public:
    explicit ChatTemplate(std::filesystem::path const& folder);
    /// The conversation with the assistant's header appended (generation prompt).
    std::string render(std::vector<ChatMessage> const& messages) const;

  private:
    std::string default_system_;
    bool has_default_system_ = false;
};

}  // namespace cpstep
