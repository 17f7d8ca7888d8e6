// Which NCCL this program was built with, and which one it found.
#pragma once

#include <string>

#include "cuda/fact.hpp"

namespace cpstep {

struct NcclFacts {
    Fact<int> header = {};   ///< NCCL_VERSION_CODE: 22809 is 2.28.9
    Fact<int> library = {};  ///< ncclGetVersion
    std::string path = {};   ///< of the loaded library
};

/// Unknown in a build without NCCL.
NcclFacts nccl_facts();

/// "2.28.9" of a version code.
std::string nccl_version_text(int code);

}  // namespace cpstep
