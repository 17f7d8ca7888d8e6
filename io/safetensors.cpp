#include "io/safetensors.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <string_view>

#include "cuda/error.hpp"
#include "io/file_descriptor.hpp"
#include "io/json_text.hpp"

namespace cpstep {
namespace {

using nlohmann::json;

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // of the format's own reader
constexpr std::size_t kBlockBytes = std::size_t{4} << 20;
constexpr JsonLimits kHeaderLimits{.depth = 8, .keys = 4'000'000};

struct DTypeName {
    std::string_view name;
    std::uint64_t bits;
    FileDType dtype;
};

/// Every dtype the format defines, by its header name; `other` can be present but not be read.
constexpr std::array kDTypes{
    DTypeName{"F32", 32, FileDType::f32},      DTypeName{"F16", 16, FileDType::f16},
    DTypeName{"BF16", 16, FileDType::bf16},    DTypeName{"F64", 64, FileDType::other},
    DTypeName{"BOOL", 8, FileDType::other},    DTypeName{"U8", 8, FileDType::other},
    DTypeName{"I8", 8, FileDType::other},      DTypeName{"U16", 16, FileDType::other},
    DTypeName{"I16", 16, FileDType::other},    DTypeName{"U32", 32, FileDType::other},
    DTypeName{"I32", 32, FileDType::other},    DTypeName{"U64", 64, FileDType::other},
    DTypeName{"I64", 64, FileDType::other},    DTypeName{"C64", 64, FileDType::other},
    DTypeName{"F4", 4, FileDType::other},      DTypeName{"F6_E2M3", 6, FileDType::other},
    DTypeName{"F6_E3M2", 6, FileDType::other}, DTypeName{"F8_E5M2", 8, FileDType::other},
    DTypeName{"F8_E4M3", 8, FileDType::other}, DTypeName{"F8_E8M0", 8, FileDType::other},
};

FileDescriptor open_file(std::filesystem::path const& path) {
    // Non-blocking, so that a FIFO put in place of the file cannot hang the program.
    FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    require(static_cast<bool>(file), ExitCode::input_data, "{}: cannot be opened: {}",
            path.string(), std::strerror(errno));
    return file;
}

std::uint64_t file_bytes(FileDescriptor const& file, std::filesystem::path const& path) {
    struct stat info{};
    require(::fstat(file.get(), &info) == 0 && S_ISREG(info.st_mode), ExitCode::input_data,
            "{}: not a regular file", path.string());
    return static_cast<std::uint64_t>(info.st_size);
}

void read_at(FileDescriptor const& file, std::filesystem::path const& path, std::uint64_t offset,
             std::span<char> out) {
    std::size_t done = 0;
    while (done < out.size()) {
        ssize_t const got = ::pread(file.get(), out.data() + done, out.size() - done,
                                    static_cast<off_t>(offset + done));
        if (got < 0 && errno == EINTR) {
            continue;
        }
        require(got >= 0, ExitCode::input_data, "{}: read error at byte {}: {}", path.string(),
                offset + done, std::strerror(errno));
        require(got > 0, ExitCode::input_data,
                "{}: ends at byte {}; it became shorter while in use", path.string(),
                offset + done);
        done += static_cast<std::size_t>(got);
    }
}

/// The header text: 8 bytes of little-endian length, then that many bytes of JSON.
std::string read_header(FileDescriptor const& file, std::filesystem::path const& path,
                        std::uint64_t size) {
    require(size >= 8, ExitCode::input_data,
            "{}: {} bytes, shorter than the 8-byte header length of a safetensors file",
            path.string(), size);
    std::array<char, 8> raw{};
    read_at(file, path, 0, raw);
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < raw.size(); ++i) {
        length |= std::uint64_t{static_cast<unsigned char>(raw[i])} << (8 * i);
    }
    require(
        length <= kMaxHeaderBytes, ExitCode::input_data,
        "{}: byte 0: header length {} is over the format's limit of {}; not a safetensors file?",
        path.string(), length, kMaxHeaderBytes);
    require(length <= size - 8, ExitCode::input_data,
            "{}: byte 0: header length {} reaches past the end of the file ({} bytes); truncated?",
            path.string(), length, size);
    std::string header(length, '\0');
    read_at(file, path, 8, header);
    require(header.starts_with('{'), ExitCode::input_data,
            "{}: byte 8: the header must start with '{{'", path.string());
    return header;
}

/// A non-negative integer of the header; floats and negative numbers are refused.
std::uint64_t header_integer(json const& value, std::string const& where, std::string_view field) {
    require(value.is_number_unsigned() &&
                value.get<std::uint64_t>() <=
                    static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()),
            ExitCode::input_data, "{}: {} must hold non-negative integers below 2^63", where,
            field);
    return value.get<std::uint64_t>();
}

/// Bytes that dtype and shape ask for, every product checked.
std::uint64_t shape_bytes(TensorEntry const& entry, std::uint64_t bits, std::string const& where) {
    std::uint64_t product = 1;
    bool overflow = false;
    for (std::int64_t const n : entry.shape) {
        overflow |= __builtin_mul_overflow(product, static_cast<std::uint64_t>(n), &product);
    }
    overflow |= __builtin_mul_overflow(product, bits, &product);
    require(!overflow, ExitCode::input_data, "{}: the product of its shape overflows", where);
    require(product % 8 == 0, ExitCode::input_data, "{}: {} elements do not fill whole bytes",
            where, entry.dtype_name);
    return product / 8;
}

/// One header entry; offsets stay relative to the data section.
TensorEntry parse_entry(std::string const& name, json const& value, std::string const& where) {
    require(value.is_object() && value.size() == 3 && value.contains("dtype") &&
                value.contains("shape") && value.contains("data_offsets"),
            ExitCode::input_data, "{}: needs exactly dtype, shape and data_offsets", where);
    TensorEntry entry{.name = name, .dtype_name = {}, .shape = {}};
    json const& dtype = value["dtype"];
    require(dtype.is_string(), ExitCode::input_data, "{}: dtype must be a string", where);
    entry.dtype_name = dtype.get<std::string>();
    auto const* const known = std::find_if(kDTypes.begin(), kDTypes.end(), [&](DTypeName const& d) {
        return d.name == entry.dtype_name;
    });
    require(known != kDTypes.end(), ExitCode::input_data, "{}: unknown dtype \"{}\"", where,
            entry.dtype_name.substr(0, 40));
    entry.dtype = known->dtype;

    require(value["shape"].is_array(), ExitCode::input_data, "{}: shape must be a list", where);
    for (json const& n : value["shape"]) {
        entry.shape.push_back(static_cast<std::int64_t>(header_integer(n, where, "shape")));
    }
    json const& offsets = value["data_offsets"];
    require(offsets.is_array() && offsets.size() == 2, ExitCode::input_data,
            "{}: data_offsets must be a list of two", where);
    entry.begin = header_integer(offsets[0], where, "data_offsets");
    entry.end = header_integer(offsets[1], where, "data_offsets");
    require(entry.begin <= entry.end, ExitCode::input_data, "{}: data_offsets [{}, {}] descend",
            where, entry.begin, entry.end);
    std::uint64_t const bytes = shape_bytes(entry, known->bits, where);
    require(bytes == entry.end - entry.begin, ExitCode::input_data,
            "{}: data_offsets span {} bytes, dtype and shape ask for {}", where,
            entry.end - entry.begin, bytes);
    return entry;
}

void check_metadata(json const& value, std::string const& file) {
    bool strings = value.is_object();
    for (auto const& item : value) {
        strings = strings && item.is_string();
    }
    require(strings, ExitCode::input_data, "{}: __metadata__ must map strings to strings", file);
}

/// The tensors must follow each other without overlap or hole and end with the file.
void check_cover(std::vector<TensorEntry> const& entries, std::uint64_t data_bytes,
                 std::string const& file) {
    std::uint64_t at = 0;
    std::string_view before = "the header";
    for (TensorEntry const& entry : entries) {
        require(entry.end <= data_bytes, ExitCode::input_data,
                "{}: tensor {} ends at data byte {}, the file has {}; truncated?", file, entry.name,
                entry.end, data_bytes);
        require(entry.begin >= at, ExitCode::input_data,
                "{}: tensor {} starts at data byte {} and overlaps {}, which ends at {}", file,
                entry.name, entry.begin, before, at);
        require(entry.begin == at, ExitCode::input_data,
                "{}: hole of {} bytes at data byte {}, between {} and tensor {}", file,
                entry.begin - at, at, before, entry.name);
        at = entry.end;
        before = entry.name;
    }
    require(at == data_bytes, ExitCode::input_data,
            "{}: {} trailing bytes after the last tensor (data byte {})", file, data_bytes - at,
            at);
}

float from_half(std::uint16_t bits) {
    std::uint32_t const sign = std::uint32_t{bits & 0x8000u} << 16;
    std::uint32_t const exponent = (bits >> 10) & 0x1fu;
    std::uint32_t const mantissa = bits & 0x3ffu;
    if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24, exact in float
        float const value = static_cast<float>(mantissa) * 0x1p-24f;
        return sign != 0 ? -value : value;
    }
    std::uint32_t const wide = exponent == 31 ? 0xffu : exponent + (127 - 15);
    return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

float from_bfloat16(std::uint16_t bits) {
    return std::bit_cast<float>(std::uint32_t{bits} << 16);
}

/// Little-endian elements of `dtype` to float.
void decode(FileDType dtype, char const* bytes, std::span<float> out) {
    static_assert(std::endian::native == std::endian::little);
    if (dtype == FileDType::f32) {
        std::memcpy(out.data(), bytes, out.size_bytes());
        return;
    }
    for (std::size_t i = 0; i < out.size(); ++i) {
        std::uint16_t bits = 0;
        std::memcpy(&bits, bytes + 2 * i, sizeof bits);
        out[i] = dtype == FileDType::f16 ? from_half(bits) : from_bfloat16(bits);
    }
}

}  // namespace

std::int64_t TensorEntry::elements() const {
    std::int64_t product = 1;
    for (std::int64_t const n : shape) {
        product *= n;
    }
    return product;
}

SafetensorsFile::SafetensorsFile(std::filesystem::path path) : path_(std::move(path)) {
    std::string const file_name = path_.string();
    FileDescriptor const file = open_file(path_);
    std::uint64_t const size = file_bytes(file, path_);
    std::string const header = read_header(file, path_, size);
    json parsed;
    try {
        parsed = parse_json(header, kHeaderLimits);
    } catch (JsonError const& e) {
        if (auto const offset = e.offset()) {
            fail(ExitCode::input_data, "{}: byte {}: header: {}", file_name, 8 + *offset, e.what());
        }
        fail(ExitCode::input_data, "{}: header: {}", file_name, e.what());
    }
    for (auto const& [name, value] : parsed.items()) {
        if (name == "__metadata__") {
            check_metadata(value, file_name);
        } else {
            entries_.push_back(
                parse_entry(name, value, fmt::format("{}: tensor {}", file_name, name)));
        }
    }
    std::sort(entries_.begin(), entries_.end(), [](TensorEntry const& a, TensorEntry const& b) {
        return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    std::uint64_t const data = 8 + header.size();
    check_cover(entries_, size - data, file_name);
    for (TensorEntry& entry : entries_) {
        entry.begin += data;
        entry.end += data;
    }
}

void SafetensorsFile::read(TensorEntry const& entry, std::span<float> out) const {
    require(entry.dtype != FileDType::other, ExitCode::input_data,
            "{}: tensor {} has dtype {}; convert it to F32, F16 or BF16", path_.string(),
            entry.name, entry.dtype_name);
    require(static_cast<std::int64_t>(out.size()) == entry.elements(), ExitCode::internal,
            "{}: tensor {} has {} elements, the buffer holds {}", path_.string(), entry.name,
            entry.elements(), out.size());
    std::size_t const width = entry.dtype == FileDType::f32 ? 4 : 2;
    FileDescriptor const file = open_file(path_);
    std::vector<char> block(std::min(kBlockBytes, out.size() * width));
    std::uint64_t offset = entry.begin;
    for (std::size_t done = 0; done < out.size();) {
        std::size_t const count = std::min(block.size() / width, out.size() - done);
        std::span<char> const bytes(block.data(), count * width);
        read_at(file, path_, offset, bytes);
        decode(entry.dtype, bytes.data(), out.subspan(done, count));
        done += count;
        offset += bytes.size();
    }
}

}  // namespace cpstep
