// What a user may have meant.
#pragma once

#include <string>
#include <vector>

namespace cpstep {

/// Nearest of `names` by edit distance, "" if none is close.
std::string nearest_name(std::string const& name, std::vector<std::string> const& names);

}  // namespace cpstep
