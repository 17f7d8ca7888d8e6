// Library set-up, errors, opening and closing. Writing is in h5_write.cpp, reading in h5_read.cpp.
#include "io/h5.hpp"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <utility>

#include "io/h5_impl.hpp"

namespace cpstep {
namespace h5 {
namespace {

herr_t keep_first_description(unsigned, H5E_error2_t const* error, void* out) {
    auto& text = *static_cast<std::string*>(out);
    if (text.empty() && error->desc != nullptr) {
        text = error->desc;
    }
    return 0;
}

herr_t refuse_external_link(char const*, char const*, char const*, char const*, unsigned*, hid_t,
                            void*) {
    return -1;
}

/// "file write failed: time = ..., error message = 'No space left on device', ..." to its two
/// useful parts.
std::string shorten(std::string text) {
    static constexpr std::string_view marker = "error message = '";
    auto const begin = text.find(marker);
    if (begin != std::string::npos) {
        auto const from = begin + marker.size();
        auto const end = text.find('\'', from);
        text = text.substr(0, text.find(':')) + ": " + text.substr(from, end - from);
    }
    std::replace_if(text.begin(), text.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
    return text;
}

/// The library refused because a writer has, or had when it was killed, the file open.
bool marked_as_open(std::string const& reason) {
    return reason.find("h5clear") != std::string::npos;
}

/// No file and the reason on failure.
FileId try_open(OpenFile const& file, unsigned flags, bool clear_marks, std::string& reason) {
    PropertiesId access = properties(file, H5P_FILE_ACCESS);
    if (clear_marks) {  // what h5clear -s does; exported, though in no header
        bool const clear = true;
        check(file, H5Pset(access.get(), "clear_status_flags", &clear), "file", "set up access");
    }
    hid_t const id = H5Fopen(file.path.c_str(), flags, access.get());
    if (id < 0) {
        reason = last_reason();  // closing the list empties the error stack
        return FileId();
    }
    return FileId(id);
}

/// Read only first; then beside a SWMR writer, which a killed one looks like; at last clear the
/// marks.
FileId open_for_reading(OpenFile const& file) {
    std::string reason;
    FileId id = try_open(file, H5F_ACC_RDONLY, false, reason);
    if (!id && marked_as_open(reason)) {
        id = try_open(file, H5F_ACC_RDONLY | H5F_ACC_SWMR_READ, false, reason);
        if (!id && try_open(file, H5F_ACC_RDWR, true, reason)) {
            id = try_open(file, H5F_ACC_RDONLY, false, reason);
        }
    }
    require(static_cast<bool>(id), ExitCode::input_data, "{}: cannot open as HDF5: {}",
            file.path.string(), reason);
    return id;
}

FileId create_file(OpenFile const& file, hid_t access) {
    return FileId(check(file, H5Fcreate(file.path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access),
                        "file", "create it"));
}

}  // namespace

void prepare_library() {
    static std::once_flag once;
    std::call_once(once, [] {
        // A file system without locks must not stop us; a locked file still does.
        ::setenv("HDF5_USE_FILE_LOCKING", "BEST_EFFORT", 0);
        // Every file is closed by its owner; after a failed close the library's own exit code
        // loops.
        (void)H5dont_atexit();
    });
    thread_local bool silenced = false;  // the error stack is a thread's own
    if (!silenced) {
        (void)H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
        silenced = true;
    }
}

std::string last_reason() {
    std::string text;
    (void)H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first_description, &text);
    return text.empty() ? "no reason given by HDF5" : shorten(std::move(text));
}

void raise(OpenFile const& file, std::string_view object, std::string_view action) {
    std::string text =
        fmt::format("{}: {}: cannot {}: {}", file.path.string(), object, action, last_reason());
    if (file.writing) {
        std::error_code error;
        auto const folder = file.path.has_parent_path() ? file.path.parent_path() : ".";
        auto const space = std::filesystem::space(folder, error);
        if (!error) {
            text += fmt::format(" ({} bytes free on the file system)", space.available);
        }
    }
    throw Error(file.code(), text);
}

PropertiesId properties(OpenFile const& file, hid_t list_class) {
    return PropertiesId(check(file, H5Pcreate(list_class), "file", "make a property list"));
}

PropertiesId access_properties(OpenFile const& file, hid_t list_class) {
    PropertiesId list = properties(file, list_class);
    check(file, H5Pset_elink_cb(list.get(), refuse_external_link, nullptr), "file",
          "set up access");
    return list;
}

TypeId string_type(OpenFile const& file, std::size_t width) {
    TypeId type(check(file, H5Tcopy(H5T_C_S1), "file", "make a string type"));
    check(file, H5Tset_size(type.get(), std::max<std::size_t>(width, 1)), "file",
          "size a string type");
    check(file, H5Tset_strpad(type.get(), H5T_STR_NULLPAD), "file", "make a string type");
    check(file, H5Tset_cset(type.get(), H5T_CSET_UTF8), "file", "make a string type");
    return type;
}

static hid_t column_type(H5Column::Type type) {
    switch (type) {
        case H5Column::Type::u16:
            return H5T_STD_U16LE;
        case H5Column::Type::i16:
            return H5T_STD_I16LE;
        case H5Column::Type::u32:
            return H5T_STD_U32LE;
        case H5Column::Type::i32:
            return H5T_STD_I32LE;
        case H5Column::Type::u64:
            return H5T_STD_U64LE;
        case H5Column::Type::i64:
            return H5T_STD_I64LE;
    }
    fail(ExitCode::internal, "no such column type: {}", static_cast<int>(type));
}

std::size_t record_size(std::vector<H5Column> const& columns) {
    std::size_t size = 0;
    for (H5Column const& column : columns) {
        size += H5Tget_size(column_type(column.type));
    }
    return size;
}

TypeId record_type(OpenFile const& file, std::vector<H5Column> const& columns) {
    TypeId type(
        check(file, H5Tcreate(H5T_COMPOUND, record_size(columns)), "file", "make a table type"));
    std::size_t offset = 0;
    for (H5Column const& column : columns) {
        hid_t const member = column_type(column.type);
        check(file, H5Tinsert(type.get(), column.name.c_str(), offset, member), column.name,
              "add a column");
        offset += H5Tget_size(member);
    }
    return type;
}

void require_open(OpenFile const& file) {
    require(static_cast<bool>(file.id), ExitCode::internal, "{}: used after close",
            file.path.string());
}

void require_writable(OpenFile const& file, std::string const& path) {
    require_open(file);
    require(file.writing, ExitCode::internal, "{}: {}: the file is open for reading only",
            file.path.string(), path);
}

}  // namespace h5

H5File::H5File(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
H5File::H5File(H5File&&) noexcept = default;
H5File& H5File::operator=(H5File&&) noexcept = default;
H5File::~H5File() = default;

H5File H5File::open(std::filesystem::path const& file) {
    h5::prepare_library();
    std::error_code error;
    auto const status = std::filesystem::status(file, error);
    require(std::filesystem::exists(status), ExitCode::input_data, "{}: no such file",
            file.string());
    require(std::filesystem::is_regular_file(status), ExitCode::input_data,
            "{}: not a regular file", file.string());
    auto const size = std::filesystem::file_size(file, error);
    require(!error, ExitCode::input_data, "{}: {}", file.string(), error.message());
    require(size > 0, ExitCode::input_data, "{}: the file is empty (0 bytes)", file.string());
    auto impl = std::make_unique<Impl>();
    impl->path = file;
    impl->id = h5::open_for_reading(*impl);
    return H5File(std::move(impl));
}

H5File H5File::create(std::filesystem::path const& file) {
    h5::prepare_library();
    auto impl = std::make_unique<Impl>();
    impl->path = file;
    impl->writing = true;
    impl->id = h5::create_file(*impl, H5P_DEFAULT);
    return H5File(std::move(impl));
}

H5File H5File::create_swmr(std::filesystem::path const& file) {
    h5::prepare_library();
    auto impl = std::make_unique<Impl>();
    impl->path = file;
    impl->writing = true;
    h5::PropertiesId const access = h5::properties(*impl, H5P_FILE_ACCESS);
    h5::check(*impl, H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_V110), "file",
              "choose the 1.10 format");
    h5::check(*impl, H5Pset_alignment(access.get(), h5::page_bytes / 2, h5::page_bytes), "file",
              "align its chunks");
    impl->id = h5::create_file(*impl, access.get());
    return H5File(std::move(impl));
}

void H5File::start_swmr() {
    h5::require_writable(*impl_, "/");
    h5::check(*impl_, H5Fstart_swmr_write(impl_->id.get()), "file", "start SWMR writing");
    impl_->swmr = true;
}

void H5File::flush() {
    h5::require_writable(*impl_, "/");
    h5::check(*impl_, H5Fflush(impl_->id.get(), H5F_SCOPE_LOCAL), "file", "flush");
}

void H5File::close() {
    if (!impl_->id) {
        return;
    }
    if (impl_->writing) {
        flush();
    }
    // A reference of our own outlives the handle, so that the one close that matters is checked.
    hid_t const last = impl_->id.get();
    h5::check(*impl_, H5Iinc_ref(last), "file", "close");
    impl_->id.reset();
    h5::check(*impl_, H5Fclose(last), "file", "close");
}

std::string h5_version() {
    h5::prepare_library();
    unsigned major = 0, minor = 0, release = 0;
    require(H5get_libversion(&major, &minor, &release) >= 0, ExitCode::environment,
            "HDF5 does not tell its version");
    return fmt::format("{}.{}.{}", major, minor, release);
}

}  // namespace cpstep
