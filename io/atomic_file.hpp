// Files that exist whole or not at all.
#pragma once

#include <filesystem>

namespace cpstep {

/// Where the content of `target` is written first: "target.part".
std::filesystem::path part_of(std::filesystem::path const& target);

/// Give the closed part_of(target) its name: fsync, rename, fsync of the folder. Errors:
/// Error(output).
void publish(std::filesystem::path const& target);

}  // namespace cpstep
