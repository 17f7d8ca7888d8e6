// The report as one page without scripts or anything from the network.
#pragma once

#include <string>

#include "app/analysis/analysis.hpp"

namespace cpstep {

/// Light and dark by the reader's setting.
std::string html_page(Analysis const& analysis);

}  // namespace cpstep
