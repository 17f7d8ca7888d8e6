// Owner of a POSIX file descriptor.
#pragma once

#include <unistd.h>

#include "cuda/handle.hpp"

namespace cpstep {

using FileDescriptor = Handle<int, ::close, -1>;

}  // namespace cpstep
