// Can a folder take the files of a run: tried, not guessed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "cuda/fact.hpp"

namespace cpstep {

struct OutputFacts {
    /// Seconds for a small file (write, fsync, rename) and an HDF5 file (create, SWMR, append,
    /// reopen, compare); unknown says which of it failed.
    Fact<double> seconds = {};
    Fact<std::int64_t> free_bytes = {};
    std::string file_system =
        {};                  ///< "ext", "nfs", "lustre", ...; a number where it has no name here
    bool sees_mark = false;  ///< the ProbeFolder's file is there: the folder is rank 0's
};

/// The folder of a probe, made if it is missing, with a file that every host should see. Error
/// (environment) if it cannot be. Takes what it made away again.
class ProbeFolder {
  public:
    explicit ProbeFolder(std::filesystem::path const& folder);
    ProbeFolder(ProbeFolder const&) = delete;
    ProbeFolder& operator=(ProbeFolder const&) = delete;
    ~ProbeFolder();

  private:
    std::filesystem::path folder_ = {};
    std::filesystem::path kept_ = {};  // its nearest parent that was there before
};

/// Never throws, leaves nothing behind. `tag` tells the files of several ranks apart.
OutputFacts probe_output(std::filesystem::path const& folder, std::string const& tag);

}  // namespace cpstep
