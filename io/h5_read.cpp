// Reading. Nothing is allocated by a size that a file merely claims.
#include <algorithm>
#include <cstring>
#include <memory>

#include "io/h5_impl.hpp"

namespace cpstep {
namespace h5 {

static bool leads_out(std::string const& name) {
    std::filesystem::path const path(name);
    return path.is_absolute() || std::find(path.begin(), path.end(), "..") != path.end();
}

bool object_exists(OpenFile const& file, std::string const& path) {
    require_open(file);
    require(!path.empty() && path[0] == '/', ExitCode::internal, "'{}': dataset paths begin with /",
            path);
    if (path == "/") {
        return true;
    }
    PropertiesId const access = access_properties(file, H5P_LINK_ACCESS);
    for (std::size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
        std::string const part = path.substr(0, end);
        if (check(file, H5Lexists(file.id.get(), part.c_str(), access.get()), part,
                  "look for it") == 0) {
            return false;
        }
        H5L_info_t link{};
        check(file, H5Lget_info(file.id.get(), part.c_str(), &link, access.get()), part,
              "look for it");
        require(link.type < H5L_TYPE_EXTERNAL, file.code(),
                "{}: {}: links out of the file are refused", file.path.string(), part);
        if (check(file, H5Oexists_by_name(file.id.get(), part.c_str(), access.get()), part,
                  "follow its link") == 0) {
            return false;
        }
        if (end == std::string::npos) {
            return true;
        }
    }
}

SetId open_dataset(OpenFile const& file, std::string const& path) {
    require(object_exists(file, path), file.code(), "{}: {}: no such dataset", file.path.string(),
            path);
    PropertiesId const access = access_properties(file, H5P_DATASET_ACCESS);
    return SetId(check(file, H5Dopen2(file.id.get(), path.c_str(), access.get()), path,
                       "open it as a dataset"));
}

std::vector<std::int64_t> extent(OpenFile const& file, std::string const& path, hid_t set) {
    SpaceId const space(check(file, H5Dget_space(set), path, "get its extent"));
    if (H5Sget_simple_extent_type(space.get()) == H5S_NULL) {
        return {0};
    }
    int const rank = check(file, H5Sget_simple_extent_ndims(space.get()), path, "get its extent");
    std::vector<hsize_t> dims(static_cast<std::size_t>(rank));
    check(file, H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr), path,
          "get its extent");
    return {dims.begin(), dims.end()};
}

namespace {

constexpr std::uint64_t largest_growth = 64;      // of data over the file that holds them
constexpr std::uint64_t free_bytes = 1ULL << 20;  // never refused

std::string type_name(hid_t type) {
    auto const bits = 8 * H5Tget_size(type);
    switch (H5Tget_class(type)) {
        case H5T_INTEGER:
            return fmt::format("{}-bit {}integer", bits,
                               H5Tget_sign(type) == H5T_SGN_NONE ? "unsigned " : "");
        case H5T_FLOAT:
            return fmt::format("{}-bit float", bits);
        case H5T_STRING:
            return "text";
        case H5T_COMPOUND:
            return "compound";
        case H5T_ENUM:
            return "enumeration (a bool?)";
        default:
            return "another type";
    }
}

std::string_view class_name(H5T_class_t wanted) {
    switch (wanted) {
        case H5T_INTEGER:
            return "integers";
        case H5T_FLOAT:
            return "floating-point numbers";
        case H5T_STRING:
            return "text";
        default:
            return "records";
    }
}

/// Bytes of the files that can hold the data: this one, and the sources of a virtual dataset.
std::uint64_t stored_bytes(OpenFile const& file, std::string const& path, hid_t set) {
    hsize_t total = 0;
    check(file, H5Fget_filesize(file.id.get(), &total), path, "get the size of the file");
    PropertiesId const create(check(file, H5Dget_create_plist(set), path, "get its layout"));
    require(check(file, H5Pget_external_count(create.get()), path, "get its layout") == 0,
            file.code(), "{}: {}: data in other files by way of external storage are refused",
            file.path.string(), path);
    if (check(file, H5Pget_layout(create.get()), path, "get its layout") != H5D_VIRTUAL) {
        return total;
    }
    std::size_t count = 0;
    check(file, H5Pget_virtual_count(create.get(), &count), path, "get its sources");
    for (std::size_t i = 0; i < count; ++i) {
        std::string name(4096, '\0');
        ssize_t const length = H5Pget_virtual_filename(create.get(), i, name.data(), name.size());
        name.resize(static_cast<std::size_t>(
            std::min<ssize_t>(check(file, length, path, "get its sources"), 4095)));
        require(!leads_out(name), file.code(), "{}: {}: its source {} is outside the folder",
                file.path.string(), path, name);
        std::error_code error;
        auto const bytes = std::filesystem::file_size(file.path.parent_path() / name, error);
        total += error ? 0 : bytes;  // a missing source reads as the fill value
    }
    return total;
}

/// Elements of the dataset, once their size is shown to be possible.
std::size_t checked_elements(OpenFile const& file, std::string const& path, hid_t set,
                             std::size_t element) {
    std::uint64_t count = 1;
    std::uint64_t bytes = 0;
    bool fits = true;
    for (std::int64_t const d : extent(file, path, set)) {
        fits =
            fits && d >= 0 && !__builtin_mul_overflow(count, static_cast<std::uint64_t>(d), &count);
    }
    fits = fits && !__builtin_mul_overflow(count, element, &bytes);
    std::uint64_t const stored = stored_bytes(file, path, set);
    require(fits && bytes / largest_growth <= stored + free_bytes / largest_growth, file.code(),
            "{}: {}: claims {} elements of {} bytes, more than a file of {} bytes can hold",
            file.path.string(), path, fits ? std::to_string(count) : "over 2^64", element, stored);
    return static_cast<std::size_t>(count);
}

/// An opened dataset of the wanted class.
struct Source {
    SetId set;
    TypeId type;
};

Source open_source(OpenFile const& file, std::string const& path, H5T_class_t wanted) {
    Source source{open_dataset(file, path), TypeId()};
    source.type.reset(check(file, H5Dget_type(source.set.get()), path, "get its type"));
    require(H5Tget_class(source.type.get()) == wanted, file.code(), "{}: {}: holds {}, expected {}",
            file.path.string(), path, type_name(source.type.get()), class_name(wanted));
    return source;
}

/// Integers that do not fit stop the conversion; HDF5 would clip them.
H5T_conv_ret_t refuse_overflow(H5T_conv_except_t kind, hid_t, hid_t, void*, void*, void* seen) {
    if (kind == H5T_CONV_EXCEPT_RANGE_HI || kind == H5T_CONV_EXCEPT_RANGE_LOW) {
        *static_cast<bool*>(seen) = true;
        return H5T_CONV_ABORT;
    }
    return H5T_CONV_UNHANDLED;
}

/// Which part is read: spaces of the memory and of the file.
struct Part {
    hid_t memory = H5S_ALL;
    hid_t file = H5S_ALL;
};

void read_integers(OpenFile const& file, std::string const& path, hid_t set, hid_t memory,
                   void* out, Part part = {}) {
    bool overflow = false;
    PropertiesId const transfer = properties(file, H5P_DATASET_XFER);
    check(file, H5Pset_type_conv_cb(transfer.get(), refuse_overflow, &overflow), path,
          "set up its conversion");
    herr_t const result = H5Dread(set, memory, part.memory, part.file, transfer.get(), out);
    require(!overflow, file.code(), "{}: {}: a value does not fit the type the program reads it as",
            file.path.string(), path);
    check(file, result, path, "read it");
}

template <class T>
std::vector<T> read_numbers(OpenFile const& file, std::string const& path, hid_t memory,
                            H5T_class_t wanted) {
    Source const source = open_source(file, path, wanted);
    std::size_t const element = std::max(sizeof(T), H5Tget_size(source.type.get()));
    std::vector<T> values(checked_elements(file, path, source.set.get(), element));
    if (values.empty()) {
        return values;
    }
    if (wanted == H5T_INTEGER) {
        read_integers(file, path, source.set.get(), memory, values.data());
    } else {
        check(file, H5Dread(source.set.get(), memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()),
              path, "read it");
    }
    return values;
}

/// Rows [first, first + count) of the first axis.
struct Rows {
    SpaceId memory;
    SpaceId file;
    std::size_t elements = 0;
};

Rows select_rows(OpenFile const& file, std::string const& path, hid_t set, std::int64_t first,
                 std::int64_t count) {
    std::vector<std::int64_t> const dims = extent(file, path, set);
    require(!dims.empty() && first >= 0 && count > 0 && first <= dims[0] - count, file.code(),
            "{}: {}: has no rows {} to {}", file.path.string(), path, first, first + count - 1);
    std::vector<hsize_t> start(dims.size(), 0);
    std::vector<hsize_t> size(dims.begin(), dims.end());
    start[0] = static_cast<hsize_t>(first);
    size[0] = static_cast<hsize_t>(count);
    Rows rows;
    rows.file.reset(check(file, H5Dget_space(set), path, "select its rows"));
    check(file,
          H5Sselect_hyperslab(rows.file.get(), H5S_SELECT_SET, start.data(), nullptr, size.data(),
                              nullptr),
          path, "select its rows");
    rows.memory.reset(check(file,
                            H5Screate_simple(static_cast<int>(size.size()), size.data(), nullptr),
                            path, "select its rows"));
    rows.elements = static_cast<std::size_t>(H5Sget_simple_extent_npoints(rows.memory.get()));
    return rows;
}

/// Fixed-length text up to its padding.
std::string unpad(char const* data, std::size_t width, H5T_str_t padding) {
    std::size_t length = strnlen(data, width);
    if (padding == H5T_STR_SPACEPAD) {
        while (length > 0 && data[length - 1] == ' ') {
            --length;
        }
    }
    return {data, length};
}

std::vector<std::string> read_variable_strings(OpenFile const& file, std::string const& path,
                                               Source const& source, std::size_t count) {
    std::vector<char*> pointers(count, nullptr);
    void* const block = static_cast<void*>(pointers.data());
    SpaceId const space(check(file, H5Dget_space(source.set.get()), path, "get its extent"));
    check(file, H5Dread(source.set.get(), source.type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, block),
          path, "read it");
    std::vector<std::string> texts;
    for (char const* pointer : pointers) {
        texts.emplace_back(pointer == nullptr ? "" : pointer);
    }
    (void)H5Dvlen_reclaim(source.type.get(), space.get(), H5P_DEFAULT, block);
    return texts;
}

std::string read_text_attribute(OpenFile const& file, std::string const& what, hid_t attribute,
                                hid_t type) {
    if (check(file, H5Tis_variable_str(type), what, "get its type") > 0) {
        char* text = nullptr;
        check(file, H5Aread(attribute, type, static_cast<void*>(&text)), what, "read it");
        std::unique_ptr<char, herr_t (*)(void*)> const owner(
            text, [](void* memory) { return H5free_memory(memory); });
        return text == nullptr ? "" : text;
    }
    std::size_t const width = H5Tget_size(type);
    hsize_t stored = 0;
    check(file, H5Fget_filesize(file.id.get(), &stored), what, "get the size of the file");
    require(width <= stored, file.code(), "{}: {}: claims {} bytes, the file has {}",
            file.path.string(), what, width, stored);
    std::vector<char> buffer(width);
    check(file, H5Aread(attribute, type, buffer.data()), what, "read it");
    return unpad(buffer.data(), width, H5Tget_strpad(type));
}

void require_columns(OpenFile const& file, std::string const& path, hid_t type,
                     std::vector<H5Column> const& columns) {
    for (H5Column const& column : columns) {
        int const index = H5Tget_member_index(type, column.name.c_str());
        require(index >= 0, file.code(), "{}: {}: has no column {}", file.path.string(), path,
                column.name);
        TypeId const member(check(file, H5Tget_member_type(type, static_cast<unsigned>(index)),
                                  path, "get a column"));
        require(H5Tget_class(member.get()) == H5T_INTEGER, file.code(),
                "{}: {}: column {} holds {}, expected integers", file.path.string(), path,
                column.name, type_name(member.get()));
    }
}

}  // namespace
}  // namespace h5

bool H5File::exists(std::string const& path) const {
    return h5::object_exists(*impl_, path);
}

std::vector<std::int64_t> H5File::dims(std::string const& path) const {
    return h5::extent(*impl_, path, h5::open_dataset(*impl_, path).get());
}

std::vector<float> H5File::read_f32(std::string const& path) const {
    return h5::read_numbers<float>(*impl_, path, H5T_NATIVE_FLOAT, H5T_FLOAT);
}

std::vector<double> H5File::read_f64(std::string const& path) const {
    return h5::read_numbers<double>(*impl_, path, H5T_NATIVE_DOUBLE, H5T_FLOAT);
}

std::vector<std::int64_t> H5File::read_i64(std::string const& path) const {
    return h5::read_numbers<std::int64_t>(*impl_, path, H5T_NATIVE_INT64, H5T_INTEGER);
}

std::vector<std::int32_t> H5File::read_i32(std::string const& path) const {
    return h5::read_numbers<std::int32_t>(*impl_, path, H5T_NATIVE_INT32, H5T_INTEGER);
}

std::vector<std::uint8_t> H5File::read_u8(std::string const& path) const {
    return h5::read_numbers<std::uint8_t>(*impl_, path, H5T_NATIVE_UINT8, H5T_INTEGER);
}

std::vector<std::string> H5File::read_strings(std::string const& path) const {
    h5::Source const source = h5::open_source(*impl_, path, H5T_STRING);
    hid_t const type = source.type.get();
    std::size_t const width = H5Tget_size(type);
    std::size_t const count = h5::checked_elements(*impl_, path, source.set.get(), width);
    if (count == 0) {
        return {};
    }
    if (h5::check(*impl_, H5Tis_variable_str(type), path, "get its type") > 0) {
        return h5::read_variable_strings(*impl_, path, source, count);
    }
    std::vector<char> packed(count * width);
    h5::check(*impl_, H5Dread(source.set.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, packed.data()),
              path, "read it");
    std::vector<std::string> texts;
    for (std::size_t i = 0; i < count; ++i) {
        texts.push_back(h5::unpad(packed.data() + i * width, width, H5Tget_strpad(type)));
    }
    return texts;
}

H5Value H5File::read_attribute(std::string const& path, std::string const& name) const {
    std::string const what = path + "@" + name;
    require(h5::object_exists(*impl_, path), impl_->code(), "{}: {}: no such object",
            impl_->path.string(), path);
    h5::PropertiesId const access = h5::access_properties(*impl_, H5P_LINK_ACCESS);
    h5::ObjectId const object(
        h5::check(*impl_, H5Oopen(impl_->id.get(), path.c_str(), access.get()), path, "open it"));
    require(h5::check(*impl_, H5Aexists(object.get(), name.c_str()), what, "look for it") > 0,
            impl_->code(), "{}: {}: no such attribute", impl_->path.string(), what);
    h5::AttributeId const attribute(
        h5::check(*impl_, H5Aopen(object.get(), name.c_str(), H5P_DEFAULT), what, "open it"));
    h5::SpaceId const space(
        h5::check(*impl_, H5Aget_space(attribute.get()), what, "get its extent"));
    require(H5Sget_simple_extent_npoints(space.get()) == 1, impl_->code(), "{}: {}: not one value",
            impl_->path.string(), what);
    h5::TypeId const type(h5::check(*impl_, H5Aget_type(attribute.get()), what, "get its type"));
    std::int64_t whole = 0;
    double real = 0.0;
    switch (H5Tget_class(type.get())) {
        case H5T_INTEGER:
            h5::check(*impl_, H5Aread(attribute.get(), H5T_NATIVE_INT64, &whole), what, "read it");
            return whole;
        case H5T_FLOAT:
            h5::check(*impl_, H5Aread(attribute.get(), H5T_NATIVE_DOUBLE, &real), what, "read it");
            return real;
        case H5T_STRING:
            return h5::read_text_attribute(*impl_, what, attribute.get(), type.get());
        default:
            fail(impl_->code(), "{}: {}: holds {}, expected a number or text", impl_->path.string(),
                 what, h5::type_name(type.get()));
    }
}

std::vector<std::byte> H5File::read_records(std::string const& path,
                                            std::vector<H5Column> const& columns) const {
    h5::Source const source = h5::open_source(*impl_, path, H5T_COMPOUND);
    h5::require_columns(*impl_, path, source.type.get(), columns);
    std::size_t const size = h5::record_size(columns);
    std::size_t const element = std::max(size, H5Tget_size(source.type.get()));
    std::vector<std::byte> records(h5::checked_elements(*impl_, path, source.set.get(), element) *
                                   size);
    if (!records.empty()) {
        h5::TypeId const memory = h5::record_type(*impl_, columns);
        h5::read_integers(*impl_, path, source.set.get(), memory.get(), records.data());
    }
    return records;
}

std::vector<std::byte> H5File::read_records(std::string const& path,
                                            std::vector<H5Column> const& columns,
                                            std::int64_t first, std::int64_t count) const {
    h5::Source const source = h5::open_source(*impl_, path, H5T_COMPOUND);
    h5::require_columns(*impl_, path, source.type.get(), columns);
    (void)h5::checked_elements(*impl_, path, source.set.get(), H5Tget_size(source.type.get()));
    if (count == 0) {
        return {};
    }
    h5::Rows const rows = h5::select_rows(*impl_, path, source.set.get(), first, count);
    std::vector<std::byte> records(rows.elements * h5::record_size(columns));
    h5::TypeId const memory = h5::record_type(*impl_, columns);
    h5::read_integers(*impl_, path, source.set.get(), memory.get(), records.data(),
                      {rows.memory.get(), rows.file.get()});
    return records;
}

std::vector<double> H5File::read_f64(std::string const& path, std::int64_t first,
                                     std::int64_t count) const {
    h5::Source const source = h5::open_source(*impl_, path, H5T_FLOAT);
    (void)h5::checked_elements(*impl_, path, source.set.get(), H5Tget_size(source.type.get()));
    h5::Rows const rows = h5::select_rows(*impl_, path, source.set.get(), first, count);
    std::vector<double> values(rows.elements);
    h5::check(*impl_,
              H5Dread(source.set.get(), H5T_NATIVE_DOUBLE, rows.memory.get(), rows.file.get(),
                      H5P_DEFAULT, values.data()),
              path, "read it");
    return values;
}

}  // namespace cpstep
