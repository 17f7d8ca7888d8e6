// Files of text that appear whole.
#pragma once

#include <filesystem>
#include <string>

namespace cpstep {

/// Error(output) when it cannot be written.
void write_text_file(std::filesystem::path const& file, std::string const& text);

}  // namespace cpstep
