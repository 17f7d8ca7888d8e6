#include "app/run_directory.hpp"

#include <fcntl.h>
#include <signal.h>
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

/// A process of this host that has ended holds nothing; one of another host cannot be asked.
bool stale(std::string const& host, pid_t pid) {
    return host == host_name() && pid > 0 && kill(pid, 0) != 0 && errno == ESRCH;
}

void take_lock(fs::path const& lock) {
    for (int attempt = 0; attempt < 2; ++attempt) {
        int const file = open(lock.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
        if (file >= 0) {
            std::string const owner = fmt::format("{} {}\n", host_name(), getpid());
            bool const written =
                write(file, owner.data(), owner.size()) == static_cast<ssize_t>(owner.size());
            close(file);
            require(written, ExitCode::environment, "cannot write {}: {}", lock.string(),
                    std::strerror(errno));
            return;
        }
        require(errno == EEXIST, ExitCode::environment,
                "cannot write to the output folder {}: {}; choose another --output",
                lock.parent_path().string(), std::strerror(errno));
        std::ifstream in(lock);
        std::string host;
        pid_t pid = 0;
        in >> host >> pid;
        require(stale(host, pid), ExitCode::usage,
                "{} is in use by process {} on {}; choose another --output, or remove {} if that "
                "run is "
                "gone",
                lock.parent_path().string(), pid, host, lock.string());
        fs::remove(lock);
    }
    fail(ExitCode::usage, "{} was taken by another run at the same moment; choose another --output",
         lock.parent_path().string());
}

}  // namespace

RunDirectory::RunDirectory(fs::path folder, bool force) : folder_(std::move(folder)) {
    std::error_code error;
    fs::create_directories(folder_, error);
    require(!error, ExitCode::environment, "cannot create the output folder {}: {}",
            folder_.string(), error.message());
    bool const finished = fs::exists(folder_ / "run.h5");
    require(!finished || force, ExitCode::usage,
            "{} holds a finished run; choose another --output, or --force to replace it",
            folder_.string());
    take_lock(folder_ / ".lock");
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
