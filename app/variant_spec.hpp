// Which variants a run compares: from options to names and CP configurations. Pure.
#pragma once

#include <string>

#include "app/cp_config.hpp"

namespace cpstep {

struct VariantSpec {
    std::string name;  ///< "cp1", "cp2", "cp2-all_gather-gather"
    CpConfig cp;
};

}  // namespace cpstep
