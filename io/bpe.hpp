// Byte-level byte-pair encoding (Sennrich et al. 2016; the byte alphabet is GPT-2's).
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace cpstep {

/// The `model` object of a tokenizer.json of type BPE.
class Bpe {
  public:
    /// `where` starts the text of errors; Errors: Error(input_data).
    Bpe(nlohmann::json const& model, std::string const& where);

    /// Append the ids of one piece (bytes). The merge of lowest rank goes first, the leftmost of
    /// equals; O(n log n) in the length of the piece.
    void encode(std::string_view piece, std::vector<std::int32_t>& ids) const;

    /// Vocabulary, spelled in the byte alphabet.
    std::unordered_map<std::string, std::int32_t> const& vocabulary() const { return vocabulary_; }

    /// Bytes of a token; one that is not spelled in the byte alphabet stands for itself.
    static std::string bytes_of(std::string_view token);

  private:
    struct Merge {
        std::int32_t rank = 0;
        std::int32_t id = 0;
    };
    void read_vocabulary(nlohmann::json const& model, std::string const& where);
    void read_merges(nlohmann::json const& model, std::string const& where);
    Merge const* find_merge(std::int32_t left, std::int32_t right) const;

    std::unordered_map<std::string, std::int32_t> vocabulary_;
    std::unordered_map<std::uint64_t, Merge> merges_;
    std::array<std::int32_t, 256> byte_id_{};  ///< -1: not in the vocabulary
    bool ignore_merges_ = false;
};

}  // namespace cpstep
