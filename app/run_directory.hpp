// The output folder of a run: never overwritten by accident, never shared by two runs.
#pragma once

#include <cstdint>
#include <filesystem>

#include "io/file_descriptor.hpp"

namespace cpstep {

/// Claims DIR for this process (root only). Error(usage) when it holds a finished run (run.h5) and
/// `force` is off, or when a live process holds the lock on DIR/.lock (its text: host, pid); that
/// of an ended process is free. Error(environment) when DIR cannot be written. With `force` the old
/// run's files are removed.
class RunDirectory {
  public:
    RunDirectory(std::filesystem::path folder, bool force);
    RunDirectory(RunDirectory const&) = delete;
    RunDirectory& operator=(RunDirectory const&) = delete;
    ~RunDirectory();  ///< gives the lock back

  private:
    std::filesystem::path folder_;
    FileDescriptor lock_;
};

/// Bytes a user may still write below the folder (or its nearest existing parent).
std::uintmax_t free_bytes(std::filesystem::path folder);

}  // namespace cpstep
