#include "io/atomic_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "cuda/error.hpp"
#include "io/file_descriptor.hpp"

namespace cpstep {
namespace {

void sync(std::filesystem::path const& path, int flags) {
    FileDescriptor const file(::open(path.c_str(), flags | O_CLOEXEC));
    // Some file systems cannot sync a folder (EINVAL); the rename stands all the same.
    require(file && (::fsync(file.get()) == 0 || errno == EINVAL), ExitCode::output,
            "{}: cannot bring it to the disk: {}", path.string(), std::strerror(errno));
}

}  // namespace

std::filesystem::path part_of(std::filesystem::path const& target) {
    return std::filesystem::path(target) += ".part";
}

void publish(std::filesystem::path const& target) {
    std::filesystem::path const part = part_of(target);
    sync(part, O_RDWR);
    require(::rename(part.c_str(), target.c_str()) == 0, ExitCode::output,
            "{}: cannot be renamed to {}: {}", part.string(), target.string(),
            std::strerror(errno));
    sync(target.has_parent_path() ? target.parent_path() : ".", O_RDONLY | O_DIRECTORY);
}

}  // namespace cpstep
