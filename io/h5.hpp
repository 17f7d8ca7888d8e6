// HDF5 (serial C API) under RAII: the only folder that sees hdf5.h is io/, in h5*.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

namespace cpstep {

/// Attribute values.
using H5Value = std::variant<std::int64_t, double, std::string>;

/// One column of a compound table.
struct H5Column {
    enum class Type : std::uint8_t { u16, i16, u32, i32, u64, i64 };
    std::string name;
    Type type;
};

/// An open HDF5 file. Paths are absolute ("/a/b"); missing groups are made. Every dataset is
/// chunked with fletcher32. Each failure is an Error with the library's own reason: input_data when
/// reading, output when writing (with free bytes when the disk is full).
class H5File {
  public:
    static H5File open(std::filesystem::path const& file);  ///< read only; also of a crashed writer
    static H5File create(std::filesystem::path const& file);       ///< truncates
    static H5File create_swmr(std::filesystem::path const& file);  ///< libver V110, see start_swmr
    H5File(H5File&&) noexcept;
    H5File& operator=(H5File&&) noexcept;
    H5File(H5File const&) = delete;
    H5File& operator=(H5File const&) = delete;
    ~H5File();

    // Writing. `units` is stored as the attribute "units" of the dataset.
    void write(std::string const& path, std::span<float const> data,
               std::vector<std::int64_t> const& dims, std::string const& units);
    void write(std::string const& path, std::span<double const> data,
               std::vector<std::int64_t> const& dims, std::string const& units);
    void write(std::string const& path, std::span<std::int64_t const> data,
               std::vector<std::int64_t> const& dims, std::string const& units);
    void write(std::string const& path, std::span<std::int32_t const> data,
               std::vector<std::int64_t> const& dims, std::string const& units);
    void write(std::string const& path, std::span<std::uint8_t const> data,
               std::vector<std::int64_t> const& dims, std::string const& units);
    /// Fixed-length UTF-8 strings, or one scalar string with an empty dims.
    void write_strings(std::string const& path, std::vector<std::string> const& data);
    void write_text(std::string const& path, std::string const& text);
    /// On a group or dataset; the group is made if missing. "/" is the root.
    void attribute(std::string const& path, std::string const& name, H5Value const& value);

    /// An extensible table of packed records (no padding between columns), and of fixed-length
    /// strings.
    void create_table(std::string const& path, std::vector<H5Column> const& columns,
                      std::string const& units);
    void append_records(std::string const& path, void const* records, std::int64_t count);
    void create_string_table(std::string const& path, std::int64_t width);
    void append_strings(std::string const& path, std::span<std::string const> rows);
    /// A virtual dataset [source, row] over the tables `path` of files (paths relative to this
    /// file).
    void write_virtual_table(std::string const& path, std::vector<H5Column> const& columns,
                             std::vector<std::string> const& files, std::string const& source_path,
                             std::vector<std::int64_t> const& counts, std::string const& units);

    void start_swmr();  ///< after all objects and attributes exist; then only data are written
    /// All of an existing f32 dataset.
    void overwrite(std::string const& path, std::span<float const> data);
    void flush();
    void close();  ///< errors are reported here; the destructor is silent

    // Reading.
    bool exists(std::string const& path) const;
    std::vector<std::int64_t> dims(std::string const& path) const;
    std::vector<float> read_f32(std::string const& path) const;
    std::vector<double> read_f64(std::string const& path) const;
    std::vector<std::int64_t> read_i64(std::string const& path) const;
    std::vector<std::int32_t> read_i32(std::string const& path) const;
    std::vector<std::uint8_t> read_u8(std::string const& path) const;
    std::vector<std::string> read_strings(std::string const& path) const;
    H5Value read_attribute(std::string const& path, std::string const& name) const;
    std::vector<std::byte> read_records(std::string const& path,
                                        std::vector<H5Column> const& columns) const;
    /// Rows [first, first + count) of a table.
    std::vector<std::byte> read_records(std::string const& path,
                                        std::vector<H5Column> const& columns, std::int64_t first,
                                        std::int64_t count) const;
    /// Rows [first, first + count) of the first axis, with all of the others.
    std::vector<double> read_f64(std::string const& path, std::int64_t first,
                                 std::int64_t count) const;

    // What there is.
    std::vector<std::string> children(std::string const& path) const;  ///< of a group, by name
    std::vector<std::string> attribute_names(std::string const& path) const;
    bool is_group(std::string const& path) const;

  private:
    struct Impl;
    explicit H5File(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

/// Version of the loaded library, "1.10.8".
std::string h5_version();

}  // namespace cpstep
