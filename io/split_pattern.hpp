// The regular expression that cuts text into pieces before BPE.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cuda/handle.hpp"

struct pcre2_real_code_8;

namespace cpstep {

void free_pattern(pcre2_real_code_8* code) noexcept;

/// A split pattern of a tokenizer.json. HF runs it with Oniguruma, here it is PCRE2: what the two
/// read differently is rewritten (`\s` is the White_Space property there) or refused by name.
class SplitPattern {
  public:
    /// `where` starts the text of errors; Errors: Error(input_data).
    SplitPattern(std::string_view oniguruma, std::string const& where);

    /// Cut valid UTF-8: every match is a piece, and so is the text between matches. Nothing is
    /// lost.
    std::vector<std::string_view> split(std::string_view text) const;

  private:
    Handle<pcre2_real_code_8*, free_pattern> code_;
};

}  // namespace cpstep
