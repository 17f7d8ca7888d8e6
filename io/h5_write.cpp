// Writing datasets, tables and attributes.
#include <algorithm>
#include <limits>

#include "io/h5_impl.hpp"

namespace cpstep {
namespace h5 {
namespace {

constexpr std::int64_t chunk_bytes = 1 << 20;

using Dims = std::vector<std::int64_t>;

void require_new_objects(OpenFile const& file, std::string const& path) {
    require_writable(file, path);
    require(!file.swmr, ExitCode::internal,
            "{}: {}: objects and attributes must exist before start_swmr", file.path.string(),
            path);
}

std::vector<hsize_t> unsigned_dims(OpenFile const& file, std::string const& path, Dims const& dims,
                                   std::size_t count) {
    std::vector<hsize_t> out;
    std::uint64_t product = 1;
    for (std::int64_t const d : dims) {
        require(d >= 0 && !__builtin_mul_overflow(product, static_cast<std::uint64_t>(d), &product),
                ExitCode::internal, "{}: {}: bad extent {}", file.path.string(), path, d);
        out.push_back(static_cast<hsize_t>(d));
    }
    require(product == count, ExitCode::internal, "{}: {}: {} values for an extent of {}",
            file.path.string(), path, count, product);
    return out;
}

/// About 1 MiB of whole trailing rows, never larger than the dataset; 1 along an empty axis.
std::vector<hsize_t> chunk_of(std::vector<hsize_t> const& dims, std::size_t element) {
    std::vector<hsize_t> chunk(dims.size(), 1);
    hsize_t row = element;
    for (std::size_t axis = dims.size(); axis-- > 0;) {
        hsize_t const fits = std::max<hsize_t>(static_cast<hsize_t>(chunk_bytes) / row, 1);
        chunk[axis] = std::clamp<hsize_t>(dims[axis], 1, fits);
        row *= chunk[axis];
    }
    return chunk;
}

PropertiesId creation(OpenFile const& file, std::string const& path,
                      std::vector<hsize_t> const& chunk) {
    PropertiesId list = properties(file, H5P_DATASET_CREATE);
    if (!chunk.empty()) {
        check(file, H5Pset_chunk(list.get(), static_cast<int>(chunk.size()), chunk.data()), path,
              "set its chunks");
        check(file, H5Pset_fletcher32(list.get()), path, "ask for checksums");
    }
    return list;
}

SetId create_dataset(OpenFile const& file, std::string const& path, hid_t type, hid_t space,
                     hid_t create) {
    PropertiesId const link = properties(file, H5P_LINK_CREATE);
    check(file, H5Pset_create_intermediate_group(link.get(), 1), path, "make its groups");
    check(file, H5Pset_char_encoding(link.get(), H5T_CSET_UTF8), path, "name it");
    return SetId(check(
        file, H5Dcreate2(file.id.get(), path.c_str(), type, space, link.get(), create, H5P_DEFAULT),
        path, "create it"));
}

void write_attribute(OpenFile const& file, std::string const& path, hid_t object,
                     std::string const& name, H5Value const& value) {
    std::string const what = path + "@" + name;
    if (check(file, H5Aexists(object, name.c_str()), what, "look for it") > 0) {
        check(file, H5Adelete(object, name.c_str()), what, "replace it");
    }
    SpaceId const space(check(file, H5Screate(H5S_SCALAR), what, "make its space"));
    TypeId type;
    void const* data = nullptr;
    std::string text;
    if (auto const* number = std::get_if<std::int64_t>(&value)) {
        type.reset(check(file, H5Tcopy(H5T_STD_I64LE), what, "make its type"));
        data = number;
    } else if (auto const* real = std::get_if<double>(&value)) {
        type.reset(check(file, H5Tcopy(H5T_IEEE_F64LE), what, "make its type"));
        data = real;
    } else {
        text = std::get<std::string>(value);
        type = string_type(file, text.size());
        data = text.c_str();  // an empty text is one NUL
    }
    AttributeId const attribute(check(
        file, H5Acreate2(object, name.c_str(), type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT),
        what, "create it"));
    check(file, H5Awrite(attribute.get(), type.get(), data), what, "write it");
}

/// A whole dataset of a type that is the same in memory; scalar when dims is empty.
void write_dataset(OpenFile const& file, std::string const& path, hid_t type, void const* data,
                   std::size_t count, Dims const& dims, std::string const& units) {
    require_new_objects(file, path);
    std::vector<hsize_t> const now = unsigned_dims(file, path, dims, count);
    std::vector<hsize_t> most = now;  // chunks need a place to be: an empty axis may grow
    std::replace(most.begin(), most.end(), hsize_t{0}, H5S_UNLIMITED);
    SpaceId const space(
        check(file,
              now.empty() ? H5Screate(H5S_SCALAR)
                          : H5Screate_simple(static_cast<int>(now.size()), now.data(), most.data()),
              path, "make its space"));
    PropertiesId const create = creation(file, path, chunk_of(now, H5Tget_size(type)));
    SetId const set = create_dataset(file, path, type, space.get(), create.get());
    write_attribute(file, path, set.get(), "units", units);
    if (count > 0) {
        check(file, H5Dwrite(set.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data), path,
              "write it");
    }
}

/// Chunks of a growing table fill one page. A flush rewrites the last chunk in place, and a killed
/// writer can leave a write half done between pages, never within one: with larger chunks the
/// checksum of rows that were flushed long before is lost. create_swmr aligns them.
hsize_t rows_per_page(std::size_t record) {
    constexpr std::size_t checksum = 4;
    return std::max<std::size_t>((page_bytes - checksum) / record, 1);
}

void create_growing(OpenFile const& file, std::string const& path, hid_t type,
                    std::string const& units) {
    require_new_objects(file, path);
    hsize_t const none = 0;
    hsize_t const any = H5S_UNLIMITED;
    SpaceId const space(check(file, H5Screate_simple(1, &none, &any), path, "make its space"));
    PropertiesId const create = creation(file, path, {rows_per_page(H5Tget_size(type))});
    SetId const set = create_dataset(file, path, type, space.get(), create.get());
    write_attribute(file, path, set.get(), "units", units);
}

void append_rows(OpenFile const& file, std::string const& path, hid_t set, hid_t type,
                 void const* rows, hsize_t count) {
    Dims const now = extent(file, path, set);
    require(now.size() == 1, ExitCode::internal, "{}: {}: not a table", file.path.string(), path);
    hsize_t const from = static_cast<hsize_t>(now[0]);
    hsize_t const to = from + count;
    check(file, H5Dset_extent(set, &to), path, "extend it");
    SpaceId const target(check(file, H5Dget_space(set), path, "select its rows"));
    check(file, H5Sselect_hyperslab(target.get(), H5S_SELECT_SET, &from, nullptr, &count, nullptr),
          path, "select its rows");
    SpaceId const source(
        check(file, H5Screate_simple(1, &count, nullptr), path, "select its rows"));
    check(file, H5Dwrite(set, type, source.get(), target.get(), H5P_DEFAULT, rows), path,
          "append to it");
}

/// Rows of `width` bytes, padded with NUL.
std::vector<char> packed_strings(OpenFile const& file, std::string const& path,
                                 std::span<std::string const> rows, std::size_t width) {
    std::vector<char> packed(rows.size() * width, '\0');
    for (std::size_t i = 0; i < rows.size(); ++i) {
        require(rows[i].size() <= width, ExitCode::internal, "{}: {}: '{}' is over {} bytes",
                file.path.string(), path, rows[i], width);
        std::copy(rows[i].begin(), rows[i].end(),
                  packed.begin() + static_cast<std::ptrdiff_t>(i * width));
    }
    return packed;
}

/// Source table i becomes row i of the virtual dataset.
void map_source(OpenFile const& file, std::string const& path, hid_t create, hid_t target,
                hsize_t row, std::string const& source_file, std::string const& source_path,
                hsize_t count) {
    hsize_t const start[2] = {row, 0};
    hsize_t const size[2] = {1, count};
    check(file, H5Sselect_hyperslab(target, H5S_SELECT_SET, start, nullptr, size, nullptr), path,
          "select a row");
    SpaceId const source(
        check(file, H5Screate_simple(1, &count, nullptr), path, "describe a source"));
    check(file,
          H5Pset_virtual(create, target, source_file.c_str(), source_path.c_str(), source.get()),
          path, "map a source");
}

template <class T>
void write_numbers(OpenFile const& file, std::string const& path, hid_t type,
                   std::span<T const> data, Dims const& dims, std::string const& units) {
    write_dataset(file, path, type, data.data(), data.size(), dims, units);
}

}  // namespace
}  // namespace h5

using Dims = std::vector<std::int64_t>;

void H5File::write(std::string const& path, std::span<float const> data, Dims const& dims,
                   std::string const& units) {
    h5::write_numbers(*impl_, path, H5T_IEEE_F32LE, data, dims, units);
}

void H5File::write(std::string const& path, std::span<double const> data, Dims const& dims,
                   std::string const& units) {
    h5::write_numbers(*impl_, path, H5T_IEEE_F64LE, data, dims, units);
}

void H5File::write(std::string const& path, std::span<std::int64_t const> data, Dims const& dims,
                   std::string const& units) {
    h5::write_numbers(*impl_, path, H5T_STD_I64LE, data, dims, units);
}

void H5File::write(std::string const& path, std::span<std::int32_t const> data, Dims const& dims,
                   std::string const& units) {
    h5::write_numbers(*impl_, path, H5T_STD_I32LE, data, dims, units);
}

void H5File::write(std::string const& path, std::span<std::uint8_t const> data, Dims const& dims,
                   std::string const& units) {
    h5::write_numbers(*impl_, path, H5T_STD_U8LE, data, dims, units);
}

void H5File::write_strings(std::string const& path, std::vector<std::string> const& data) {
    std::size_t width = 1;
    for (std::string const& text : data) {
        width = std::max(width, text.size());
    }
    h5::TypeId const type = h5::string_type(*impl_, width);
    std::vector<char> const packed = h5::packed_strings(*impl_, path, data, width);
    h5::write_dataset(*impl_, path, type.get(), packed.data(), data.size(),
                      {static_cast<std::int64_t>(data.size())}, "1");
}

void H5File::write_text(std::string const& path, std::string const& text) {
    h5::TypeId const type = h5::string_type(*impl_, text.size());
    h5::write_dataset(*impl_, path, type.get(), text.c_str(), 1, {}, "1");
}

void H5File::attribute(std::string const& path, std::string const& name, H5Value const& value) {
    h5::require_new_objects(*impl_, path);
    if (!h5::object_exists(*impl_, path)) {
        h5::PropertiesId const link = h5::properties(*impl_, H5P_LINK_CREATE);
        h5::check(*impl_, H5Pset_create_intermediate_group(link.get(), 1), path, "make its groups");
        h5::GroupId const group(h5::check(
            *impl_, H5Gcreate2(impl_->id.get(), path.c_str(), link.get(), H5P_DEFAULT, H5P_DEFAULT),
            path, "make the group"));
    }
    h5::ObjectId const object(
        h5::check(*impl_, H5Oopen(impl_->id.get(), path.c_str(), H5P_DEFAULT), path, "open it"));
    h5::write_attribute(*impl_, path, object.get(), name, value);
}

void H5File::create_table(std::string const& path, std::vector<H5Column> const& columns,
                          std::string const& units) {
    h5::TypeId const type = h5::record_type(*impl_, columns);
    h5::create_growing(*impl_, path, type.get(), units);
}

void H5File::append_records(std::string const& path, void const* records, std::int64_t count) {
    h5::require_writable(*impl_, path);
    if (count == 0) {
        return;
    }
    require(count > 0, ExitCode::internal, "{}: {} records to append", path, count);
    h5::SetId const set = h5::open_dataset(*impl_, path);
    h5::TypeId const type(h5::check(*impl_, H5Dget_type(set.get()), path, "get its type"));
    h5::append_rows(*impl_, path, set.get(), type.get(), records, static_cast<hsize_t>(count));
}

void H5File::create_string_table(std::string const& path, std::int64_t width) {
    require(width > 0, ExitCode::internal, "{}: strings of {} bytes", path, width);
    h5::TypeId const type = h5::string_type(*impl_, static_cast<std::size_t>(width));
    h5::create_growing(*impl_, path, type.get(), "1");
}

void H5File::append_strings(std::string const& path, std::span<std::string const> rows) {
    h5::require_writable(*impl_, path);
    if (rows.empty()) {
        return;
    }
    h5::SetId const set = h5::open_dataset(*impl_, path);
    h5::TypeId const type(h5::check(*impl_, H5Dget_type(set.get()), path, "get its type"));
    std::vector<char> const packed =
        h5::packed_strings(*impl_, path, rows, H5Tget_size(type.get()));
    h5::append_rows(*impl_, path, set.get(), type.get(), packed.data(), rows.size());
}

void H5File::write_virtual_table(std::string const& path, std::vector<H5Column> const& columns,
                                 std::vector<std::string> const& files,
                                 std::string const& source_path,
                                 std::vector<std::int64_t> const& counts,
                                 std::string const& units) {
    h5::require_new_objects(*impl_, path);
    require(!files.empty() && files.size() == counts.size(), ExitCode::internal,
            "{}: {} source files and {} row counts", path, files.size(), counts.size());
    // At least one column, so that an extent exists when no source has a row.
    std::int64_t const widest =
        std::max<std::int64_t>(*std::max_element(counts.begin(), counts.end()), 1);
    hsize_t const dims[2] = {files.size(), static_cast<hsize_t>(widest)};
    h5::SpaceId const space(
        h5::check(*impl_, H5Screate_simple(2, dims, nullptr), path, "make its space"));
    h5::TypeId const type = h5::record_type(*impl_, columns);
    h5::PropertiesId const create = h5::properties(*impl_, H5P_DATASET_CREATE);
    // A row without a record, and a missing source, read as all bits one: step = 0xffffffff.
    std::vector<unsigned char> const fill(h5::record_size(columns),
                                          std::numeric_limits<unsigned char>::max());
    h5::check(*impl_, H5Pset_fill_value(create.get(), type.get(), fill.data()), path,
              "set its fill value");
    h5::check(*impl_, H5Pset_layout(create.get(), H5D_VIRTUAL), path, "make it virtual");
    h5::SpaceId const target(h5::check(*impl_, H5Scopy(space.get()), path, "make its space"));
    for (std::size_t i = 0; i < files.size(); ++i) {
        require(counts[i] >= 0, ExitCode::internal, "{}: {} rows in {}", path, counts[i], files[i]);
        if (counts[i] > 0) {
            h5::map_source(*impl_, path, create.get(), target.get(), i, files[i], source_path,
                           static_cast<hsize_t>(counts[i]));
        }
    }
    h5::SetId const set = h5::create_dataset(*impl_, path, type.get(), space.get(), create.get());
    h5::write_attribute(*impl_, path, set.get(), "units", units);
}

void H5File::overwrite(std::string const& path, std::span<float const> data) {
    h5::require_writable(*impl_, path);
    h5::SetId const set = h5::open_dataset(*impl_, path);
    std::int64_t count = 1;
    for (std::int64_t const d : h5::extent(*impl_, path, set.get())) {
        count *= d;
    }
    require(static_cast<std::uint64_t>(count) == data.size(), ExitCode::internal,
            "{}: {} values for an extent of {}", path, data.size(), count);
    if (count > 0) {
        h5::check(*impl_,
                  H5Dwrite(set.get(), H5T_IEEE_F32LE, H5S_ALL, H5S_ALL, H5P_DEFAULT, data.data()),
                  path, "write it");
    }
}

}  // namespace cpstep
