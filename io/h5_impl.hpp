// Shared by the sources of H5File: owned handles, checked calls, how a dataset is found and
// limited.
#pragma once

#include <hdf5.h>

#include <bit>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/error.hpp"
#include "cuda/handle.hpp"
#include "io/h5.hpp"

namespace cpstep::h5 {

// Records in memory are used as they lie in the file.
static_assert(std::endian::native == std::endian::little);

using FileId = Handle<hid_t, H5Fclose, hid_t{-1}>;
using SetId = Handle<hid_t, H5Dclose, hid_t{-1}>;
using GroupId = Handle<hid_t, H5Gclose, hid_t{-1}>;
using ObjectId = Handle<hid_t, H5Oclose, hid_t{-1}>;
using SpaceId = Handle<hid_t, H5Sclose, hid_t{-1}>;
using TypeId = Handle<hid_t, H5Tclose, hid_t{-1}>;
using AttributeId = Handle<hid_t, H5Aclose, hid_t{-1}>;
using PropertiesId = Handle<hid_t, H5Pclose, hid_t{-1}>;

/// Written whole or not at all by a process that is killed.
constexpr std::size_t page_bytes = 4096;

struct OpenFile {
    std::filesystem::path path;
    FileId id;
    bool writing = false;
    bool swmr = false;

    ExitCode code() const { return writing ? ExitCode::output : ExitCode::input_data; }
};

/// Once per thread: no printing by the library; once per process: its locking mode.
void prepare_library();

/// Innermost description on the library's error stack, on one line, with the errno text if it has
/// one.
std::string last_reason();

/// "file: object: cannot <action>: reason", with the free space of the file system when writing.
[[noreturn]] void raise(OpenFile const& file, std::string_view object, std::string_view action);

/// The result of a library call, which is negative on failure.
template <class R>
R check(OpenFile const& file, R result, std::string_view object, std::string_view action) {
    if (result < 0) {
        raise(file, object, action);
    }
    return result;
}

PropertiesId properties(OpenFile const& file, hid_t list_class);
/// Access of objects by path: external links, which lead out of the file, are refused.
PropertiesId access_properties(OpenFile const& file, hid_t list_class);
/// Packed compound of the columns.
TypeId record_type(OpenFile const& file, std::vector<H5Column> const& columns);
TypeId string_type(OpenFile const& file, std::size_t width);
std::size_t record_size(std::vector<H5Column> const& columns);

/// A link of that path exists and leads to an object. Dangling and missing are both false.
bool object_exists(OpenFile const& file, std::string const& path);
SetId open_dataset(OpenFile const& file, std::string const& path);
/// Extent; scalar: empty, null dataspace: {0}.
std::vector<std::int64_t> extent(OpenFile const& file, std::string const& path, hid_t set);

/// Refuses a closed file, and a change of a file that is only read.
void require_open(OpenFile const& file);
void require_writable(OpenFile const& file, std::string const& path);

}  // namespace cpstep::h5

namespace cpstep {

struct H5File::Impl : h5::OpenFile {};

}  // namespace cpstep
