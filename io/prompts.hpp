// Prompts from a JSON-lines file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "io/tokenizer.hpp"

namespace cpstep {

struct Prompt {
    std::int64_t line = 0;              ///< 1-based line of the file
    std::vector<ChatMessage> messages;  ///< a plain string field is one user message
};

struct Prompts {
    std::vector<Prompt> prompts;
    std::int64_t skipped = 0;  ///< bad lines passed over (skip_bad)
};

/// Read up to `limit` prompts; `key` holds a list of {role, content} or a string. CRLF, a BOM and a
/// missing final newline are accepted, blank lines passed over. A bad line (JSON, NUL, type,
/// surrogate half, over 64 MiB) is Error(input_data) "file:line:column: cause", or is skipped and
/// counted with skip_bad.
Prompts read_prompts(std::filesystem::path const& file, std::string const& key, std::int64_t limit,
                     bool skip_bad);

}  // namespace cpstep
