#include "app/run_directory.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "cuda/error.hpp"

namespace cpstep {

namespace {

namespace fs = std::filesystem;

std::string host_name() {
    std::array<char, 256> name{};
    gethostname(name.data(), name.size() - 1);
    return name.data();
}

struct Owner {
    std::string host = "?";
    pid_t pid = 0;
};

Owner read_owner(fs::path const& lock) {
    Owner owner;
    std::ifstream(lock) >> owner.host >> owner.pid;
    return owner;
}

[[noreturn]] void fail_in_use(fs::path const& lock) {
    Owner const owner = read_owner(lock);
    fail(ExitCode::usage,
         "{} is in use by process {} on {}; choose another --output, or remove {} if that run is "
         "gone",
         lock.parent_path().string(), owner.pid, owner.host, lock.string());
}

/// The name still leads to the open file: the run that held it may have removed it meanwhile.
bool is_current(int file, fs::path const& lock) {
    struct stat open_file{};
    struct stat named{};
    return fstat(file, &open_file) == 0 && stat(lock.c_str(), &named) == 0 &&
           open_file.st_ino == named.st_ino && open_file.st_dev == named.st_dev;
}

/// True with the lock; false if this system of files has none (some cluster file systems).
bool locked(int file, fs::path const& lock) {
    if (flock(file, LOCK_EX | LOCK_NB) == 0) {
        return true;
    }
    if (errno == EWOULDBLOCK) {
        fail_in_use(lock);
    }
    return false;
}

/// An exclusive lock, which the kernel gives back however the process ends. Without locks the
/// file's existence counts.
FileDescriptor take_lock(fs::path const& lock) {
    for (;;) {
        bool const existed = fs::exists(lock);
        FileDescriptor file(open(lock.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644));
        require(static_cast<bool>(file), ExitCode::environment,
                "cannot write to the output folder {}: {}; choose another --output",
                lock.parent_path().string(), std::strerror(errno));
        if (!locked(file.get(), lock) && existed) {
            fail_in_use(lock);
        }
        if (!is_current(file.get(), lock)) {
            continue;
        }
        std::string const owner = fmt::format("{} {}\n", host_name(), getpid());
        bool const written =
            ftruncate(file.get(), 0) == 0 &&
            write(file.get(), owner.data(), owner.size()) == static_cast<ssize_t>(owner.size());
        require(written, ExitCode::environment, "cannot write {}: {}", lock.string(),
                std::strerror(errno));
        return file;
    }
}

}  // namespace

RunDirectory::RunDirectory(fs::path folder, bool force) : folder_(std::move(folder)) {
    std::error_code error;
    fs::create_directories(folder_, error);
    require(!error, ExitCode::environment, "cannot create the output folder {}: {}",
            folder_.string(), error.message());
    lock_ = take_lock(folder_ / ".lock");
    if (fs::exists(folder_ / "run.h5") && !force) {
        fs::remove(folder_ / ".lock", error);
        fail(ExitCode::usage,
             "{} holds a finished run; choose another --output, or --force to replace it",
             folder_.string());
    }
    for (char const* name : {"run.h5", "summary.json", "ranks"}) {
        fs::remove_all(folder_ / name, error);
    }
}

RunDirectory::~RunDirectory() {
    std::error_code ignored;
    fs::remove(folder_ / ".lock", ignored);
}

std::uintmax_t free_bytes(fs::path folder) {
    folder = fs::absolute(folder);
    while (!fs::exists(folder) && folder.has_relative_path()) {
        folder = folder.parent_path();
    }
    std::error_code error;
    fs::space_info const space = fs::space(folder, error);
    return error ? 0 : space.available;
}

}  // namespace cpstep
