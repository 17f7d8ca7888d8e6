#include "io/output_probe.hpp"

#include <sys/vfs.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <numeric>
#include <utility>
#include <vector>

#include "cuda/error.hpp"
#include "io/atomic_file.hpp"
#include "io/h5.hpp"

namespace cpstep {
namespace {

namespace fs = std::filesystem;

constexpr char const* mark_name = ".cpstep-doctor";
constexpr std::int64_t rows = 1000;

/// Numbers of statfs(2) and of the systems of files themselves.
std::string name_of_file_system(std::uint64_t type) {
    static constexpr std::array<std::pair<std::uint64_t, char const*>, 13> names{
        {{0xEF53, "ext"},
         {0x58465342, "xfs"},
         {0x9123683E, "btrfs"},
         {0x01021994, "tmpfs"},
         {0x794C7630, "overlay"},
         {0x2FC12FC1, "zfs"},
         {0x6969, "nfs"},
         {0x0BD00BD0, "lustre"},
         {0x47504653, "gpfs"},
         {0x19830326, "beegfs"},
         {0x00C36400, "ceph"},
         {0xFF534D42, "cifs"},
         {0x65735546, "fuse"}}};
    for (auto const& [number, name] : names) {
        if (number == type) {
            return name;
        }
    }
    return fmt::format("type {:#x}", type);
}

void write_small_file(fs::path const& file) {
    std::ofstream out(part_of(file));
    out << "cpstep doctor\n";
    out.close();
    require(!out.fail(), ExitCode::output, "{}: cannot be written: {}", file.string(),
            std::strerror(errno));
    publish(file);
}

/// A table appended to in SWMR mode and read back, first while its writer has it open.
void write_hdf5(fs::path const& file) {
    std::vector<H5Column> const columns{{.name = "value", .type = H5Column::Type::i64}};
    std::vector<std::int64_t> sent(rows);
    std::iota(sent.begin(), sent.end(), 0);
    H5File writer = H5File::create_swmr(file);
    writer.create_table("/rows", columns, "1");
    writer.start_swmr();
    auto const require_equal = [&](char const* when) {
        std::vector<std::byte> const read = H5File::open(file).read_records("/rows", columns);
        bool const equal = read.size() == sent.size() * sizeof(sent[0]) &&
                           std::memcmp(read.data(), sent.data(), read.size()) == 0;
        require(equal, ExitCode::output, "{}: HDF5 reads other values than were written, {}",
                file.string(), when);
    };
    writer.append_records("/rows", sent.data(), rows);
    writer.flush();
    require_equal("before it was closed");
    writer.close();
    require_equal("after it was closed");
}

}  // namespace

ProbeFolder::ProbeFolder(fs::path const& folder) : folder_(fs::absolute(folder)) {
    kept_ = folder_;
    while (!fs::exists(kept_) && kept_.has_relative_path()) {
        kept_ = kept_.parent_path();
    }
    std::error_code error;
    fs::create_directories(folder_, error);
    require(!error, ExitCode::environment, "{}: cannot be made: {}", folder_.string(),
            error.message());
    std::ofstream mark(folder_ / mark_name);
    require(static_cast<bool>(mark), ExitCode::environment, "{}: cannot be written to: {}",
            folder_.string(), std::strerror(errno));
}

ProbeFolder::~ProbeFolder() {
    std::error_code ignored;
    fs::remove(folder_ / mark_name, ignored);
    for (fs::path made = folder_; made != kept_; made = made.parent_path()) {
        if (!fs::remove(made, ignored)) {
            break;  // someone else writes there by now
        }
    }
}

OutputFacts probe_output(fs::path const& folder, std::string const& tag) {
    OutputFacts facts;
    std::error_code error;
    facts.sees_mark = fs::exists(folder / mark_name, error);
    struct statfs info{};
    bool const answered = statfs(folder.c_str(), &info) == 0;
    facts.file_system =
        answered ? name_of_file_system(static_cast<std::uint64_t>(info.f_type) & 0xFFFFFFFFU)
                 : "unknown";
    facts.free_bytes = answered ? known(static_cast<std::int64_t>(info.f_bavail) *
                                        static_cast<std::int64_t>(info.f_bsize))
                                : unknown<std::int64_t>(std::strerror(errno));
    fs::path const small = folder / fmt::format("{}-{}.txt", mark_name, tag);
    fs::path const table = folder / fmt::format("{}-{}.h5", mark_name, tag);
    auto const begin = std::chrono::steady_clock::now();
    try {
        write_small_file(small);
        write_hdf5(table);
        facts.seconds =
            known(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    } catch (Error const& failed) {
        facts.seconds = unknown<double>(failed.what());
    }
    for (fs::path const& file : {part_of(small), small, table}) {
        fs::remove(file, error);
    }
    return facts;
}

}  // namespace cpstep
