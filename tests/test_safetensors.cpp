#define BOOST_TEST_MODULE safetensors
#include <unistd.h>

#include <bit>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <fstream>
#include <limits>
#include <set>

#include "cuda/error.hpp"
#include "io/safetensors.hpp"
#include "tests/close.hpp"

using namespace cpstep;
namespace fs = std::filesystem;

namespace {

struct Folder {
    Folder() {
        static int count = 0;
        path =
            fs::temp_directory_path() / fmt::format("cpstep_safetensors_{}_{}", getpid(), count++);
        fs::create_directories(path);
    }
    Folder(Folder const&) = delete;
    Folder& operator=(Folder const&) = delete;
    ~Folder() { fs::remove_all(path); }
    fs::path path;
};

void write_bytes(fs::path const& file, std::string const& bytes) {
    std::ofstream(file, std::ios::binary | std::ios::trunc) << bytes;
}

std::string length_bytes(std::uint64_t n) {
    std::string bytes(8, '\0');
    for (std::size_t i = 0; i < 8; ++i) {
        bytes[i] = static_cast<char>((n >> (8 * i)) & 0xff);
    }
    return bytes;
}

/// A safetensors file of any header and data, right or wrong.
std::string file_of(std::string const& header, std::string const& data) {
    return length_bytes(header.size()) + header + data;
}

struct Piece {
    std::string name;
    std::string shape;
    std::size_t floats;
};

/// A correct F32 file: each tensor is filled with its index plus 1.
std::string float_file(std::vector<Piece> const& pieces) {
    std::string header = "{";
    std::string data;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
        std::size_t const begin = data.size();
        std::vector<float> const values(pieces[i].floats, static_cast<float>(i + 1));
        data.append(reinterpret_cast<char const*>(values.data()), values.size() * sizeof(float));
        header +=
            fmt::format(R"({}"{}":{{"dtype":"F32","shape":{},"data_offsets":[{},{}]}})",
                        i == 0 ? "" : ",", pieces[i].name, pieces[i].shape, begin, data.size());
    }
    return file_of(header + "}", data);
}

/// The error text of `action`, which must be one line of Error(input_data) unless `lines`.
template <class Action>
std::string refusal(Action const& action, bool lines = false) {
    try {
        action();
    } catch (Error const& e) {
        BOOST_TEST((e.code() == ExitCode::input_data));
        std::string const text = e.what();
        BOOST_TEST((lines || text.find('\n') == std::string::npos), text);
        return text;
    }
    return "(nothing was refused)";
}

std::string refused_file(std::string const& bytes) {
    Folder const folder;
    write_bytes(folder.path / "x.safetensors", bytes);
    return refusal([&] { SafetensorsFile const file(folder.path / "x.safetensors"); });
}

bool holds(std::string const& text, std::string const& part) {
    return text.find(part) != std::string::npos;
}

void check_refused(std::string const& bytes, std::string const& cause) {
    std::string const text = refused_file(bytes);
    BOOST_TEST(holds(text, cause), "wanted \"" << cause << "\", got \"" << text << "\"");
}

std::string entry(std::string const& dtype, std::string const& shape, std::string const& offsets) {
    return fmt::format(R"({{"dtype":"{}","shape":{},"data_offsets":{}}})", dtype, shape, offsets);
}

std::string one(std::string const& dtype, std::string const& shape, std::string const& offsets) {
    return R"({"a":)" + entry(dtype, shape, offsets) + "}";
}

std::string two(std::string const& a, std::string const& b) {
    return fmt::format(R"({{"a":{},"b":{}}})", entry("U8", "[4]", a), entry("U8", "[4]", b));
}

std::vector<float> read_all(std::string const& dtype, std::vector<std::uint16_t> const& bits) {
    Folder const folder;
    std::string const data(reinterpret_cast<char const*>(bits.data()), bits.size() * 2);
    write_bytes(folder.path / "x", file_of(one(dtype, fmt::format("[{}]", bits.size()),
                                               fmt::format("[0,{}]", data.size())),
                                           data));
    SafetensorsFile const file(folder.path / "x");
    std::vector<float> out(bits.size());
    file.read(file.entries().at(0), out);
    return out;
}

/// Row 40's model: GQA, one layer, tied head.
ModelConfig small_model() {
    return {.vocab_size = 5,
            .hidden_size = 4,
            .intermediate_size = 3,
            .num_hidden_layers = 1,
            .num_attention_heads = 2,
            .num_key_value_heads = 1,
            .head_dim = 2,
            .max_position_embeddings = 8,
            .tie_word_embeddings = true,
            .torch_dtype = {}};
}

std::vector<Piece> pieces_of(std::vector<TensorSpec> const& specs) {
    std::vector<Piece> pieces;
    for (TensorSpec const& s : specs) {
        pieces.push_back(
            {s.name,
             s.vector ? fmt::format("[{}]", s.cols) : fmt::format("[{},{}]", s.rows, s.cols),
             static_cast<std::size_t>(s.rows * s.cols)});
    }
    return pieces;
}

void write_index(fs::path const& folder, std::string const& weight_map) {
    write_bytes(folder / "model.safetensors.index.json",
                R"({"metadata":{"total_size":1},"weight_map":)" + weight_map + "}");
}

std::string refused_checkpoint(fs::path const& folder) {
    return refusal([&] { Checkpoint const checkpoint(folder); }, true);
}

}  // namespace

BOOST_AUTO_TEST_CASE(short_files_and_lying_header_lengths_are_refused) {
    check_refused("", "0 bytes, shorter than the 8-byte");
    check_refused("1234567", "7 bytes, shorter than the 8-byte");
    check_refused(length_bytes(3) + "{}", "byte 0: header length 3 reaches past the end");
    check_refused(length_bytes(100'000'001) + "{}", "100000001 is over the format's limit");
    check_refused(length_bytes(~std::uint64_t{0}) + "{}", "18446744073709551615 is over");
    check_refused(length_bytes(99'999'999) + "{}", "reaches past the end of the file (10 bytes)");
    BOOST_TEST(
        holds(refusal([] { SafetensorsFile const f("/nonexistent/x"); }), "cannot be opened"));
    BOOST_TEST(holds(refusal([] { SafetensorsFile const f(fs::temp_directory_path()); }),
                     "not a regular file"));
}

BOOST_AUTO_TEST_CASE(headers_that_are_not_a_strict_json_object_are_refused_with_the_offset) {
    check_refused(file_of("", ""), "byte 8: the header must start with '{'");
    check_refused(file_of(" {}", ""), "must start with '{'");
    check_refused(file_of("[]", ""), "must start with '{'");
    check_refused(file_of("{\"a\":", ""), "byte 13: header: ");
    check_refused(file_of("{\"\xff\":1}", ""), "byte 10: header: ");
    check_refused(file_of(std::string("{}\0\0", 4), ""), "byte 10: header: NUL byte");
    check_refused(file_of("{} x", ""), "byte 11: header: ");
    check_refused(file_of("{\"a\":" + std::string(100'000, '[') + "}", ""),
                  "byte 20: header: nested");
    std::string const a = entry("U8", "[0]", "[0,0]");
    check_refused(file_of("{\"a\":" + a + ",\"a\":" + a + "}", ""), "duplicate key \"a\"");
    check_refused(
        file_of(R"({"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})", ""),
        "duplicate key \"dtype\"");
    check_refused(file_of(R"({"__metadata__":{"format":1}})", ""), "must map strings to strings");
}

BOOST_AUTO_TEST_CASE(entries_with_other_fields_or_numbers_are_refused_by_name) {
    check_refused(file_of(R"({"a":{"dtype":"U8","shape":[]}})", ""), "tensor a: needs exactly");
    check_refused(file_of(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}})", ""),
                  "tensor a: needs exactly");
    check_refused(file_of(R"({"a":3})", ""), "tensor a: needs exactly");
    check_refused(file_of(R"({"a":{"dtype":7,"shape":[0],"data_offsets":[0,0]}})", ""),
                  "dtype must be a string");
    check_refused(file_of(one("F31", "[1]", "[0,4]"), "1234"), "tensor a: unknown dtype \"F31\"");
    for (std::string const shape : {"[1.0]", "[-1]", "[\"1\"]", "[1e0]", "[9223372036854775808]",
                                    "[99999999999999999999]", "[true]"}) {
        check_refused(file_of(one("F32", shape, "[0,4]"), "1234"), "shape must hold non-negative");
    }
    check_refused(file_of(one("F32", "4", "[0,4]"), "1234"), "shape must be a list");
    check_refused(file_of(one("F32", "[1]", "[0,4.0]"), "1234"), "data_offsets must hold");
    check_refused(file_of(one("F32", "[1]", "[-4,0]"), "1234"), "data_offsets must hold");
    check_refused(file_of(one("F32", "[1]", "[0,2,4]"), "1234"), "a list of two");
}

BOOST_AUTO_TEST_CASE(shapes_whose_size_overflows_or_differs_from_the_offsets_are_refused) {
    check_refused(file_of(one("F32", "[4294967296,4294967296]", "[0,0]"), ""), "overflows");
    check_refused(file_of(one("F32", "[4611686018427387904]", "[0,0]"), ""), "overflows");
    check_refused(file_of(one("F32", "[2]", "[0,4]"), "1234"),
                  "span 4 bytes, dtype and shape ask for 8");
    check_refused(file_of(one("F4", "[3]", "[0,2]"), "12"), "do not fill whole bytes");
}

BOOST_AUTO_TEST_CASE(offsets_that_do_not_cover_the_data_exactly_are_refused) {
    check_refused(file_of(two("[0,4]", "[2,6]"), "123456"), "overlaps a");
    check_refused(file_of(two("[0,4]", "[0,4]"), "1234"), "overlaps");
    check_refused(file_of(two("[0,4]", "[5,9]"), "123456789"), "hole of 1 bytes at data byte 4");
    check_refused(file_of(two("[1,5]", "[5,9]"), "123456789"), "hole of 1 bytes at data byte 0");
    check_refused(file_of(two("[4,0]", "[4,8]"), "12345678"), "descend");
    check_refused(file_of(two("[0,4]", "[4,8]"), "1234567"), "tensor b ends at data byte 8");
    check_refused(file_of(two("[0,4]", "[4,8]"), "123456789"), "1 trailing bytes");
    check_refused(file_of("{}", "x"), "1 trailing bytes");
}

BOOST_AUTO_TEST_CASE(a_file_cut_at_any_byte_is_refused) {
    std::string const whole = float_file({{"a", "[2,2]", 4}, {"b", "[3]", 3}});
    for (std::size_t size = 0; size < whole.size(); ++size) {
        BOOST_TEST(!holds(refused_file(whole.substr(0, size)), "nothing was refused"),
                   "size " << size);
    }
    BOOST_TEST(refused_file(whole) == "(nothing was refused)");
}

BOOST_AUTO_TEST_CASE(empty_tensors_scalars_metadata_and_any_order_are_accepted) {
    Folder const folder;
    std::string const header =
        R"({"__metadata__":{"format":"pt"},"z":)" + entry("I64", "[]", "[4,12]") + R"(,"empty":)" +
        entry("F32", "[0,7]", "[4,4]") + R"(,"s":)" + entry("F32", "[]", "[0,4]") + "}   ";
    float const value = 2.5f;
    std::string const data(reinterpret_cast<char const*>(&value), 4);
    write_bytes(folder.path / "x", file_of(header, data + "12345678"));
    SafetensorsFile const file(folder.path / "x");
    BOOST_REQUIRE(file.entries().size() == 3U);
    TensorEntry const& scalar = file.entries()[0];
    BOOST_TEST(scalar.name == "s");
    BOOST_TEST(scalar.elements() == 1);
    BOOST_TEST(scalar.begin == 8 + header.size());
    std::vector<float> out(1);
    file.read(scalar, out);
    BOOST_TEST(out[0] == 2.5f);
    BOOST_TEST(file.entries()[1].elements() == 0);
    file.read(file.entries()[1], {});
    BOOST_TEST(
        holds(refusal([&] { file.read(file.entries()[2], out); }), "tensor z has dtype I64"));
    BOOST_CHECK_THROW(file.read(scalar, {}), Error);
}

BOOST_AUTO_TEST_CASE(every_half_precision_bit_pattern_equals_its_definition) {
    std::vector<std::uint16_t> bits(65536);
    for (std::size_t i = 0; i < bits.size(); ++i) {
        bits[i] = static_cast<std::uint16_t>(i);
    }
    auto const halves = read_all("F16", bits);
    for (std::size_t i = 0; i < bits.size(); ++i) {
        int const exponent = static_cast<int>((i >> 10) & 31);
        double const fraction = static_cast<double>(i & 1023) / 1024;
        double want = exponent == 0    ? std::ldexp(fraction, -14)
                      : exponent == 31 ? (fraction == 0 ? INFINITY : NAN)
                                       : std::ldexp(1 + fraction, exponent - 15);
        want = i >= 32768 ? -want : want;
        bool const same = std::isnan(want)
                              ? std::isnan(halves[i])
                              : halves[i] == want && std::signbit(halves[i]) == (i >= 32768);
        BOOST_REQUIRE_MESSAGE(same, "F16 bits " << i << " gave " << halves[i] << ", want " << want);
    }
    auto const brains = read_all("BF16", bits);
    for (std::size_t i = 0; i < bits.size(); ++i) {
        BOOST_REQUIRE(std::bit_cast<std::uint32_t>(brains[i]) == i << 16);
    }
}

BOOST_AUTO_TEST_CASE(tensors_longer_than_a_read_block_come_whole) {
    Folder const folder;
    std::size_t const count = (std::size_t{5} << 20) / 4 + 3;
    std::vector<float> const want = test::random_values<float>(count, 1);
    std::string const data(reinterpret_cast<char const*>(want.data()), count * 4);
    write_bytes(
        folder.path / "x",
        file_of(one("F32", fmt::format("[{}]", count), fmt::format("[0,{}]", data.size())), data));
    SafetensorsFile const file(folder.path / "x");
    std::vector<float> got(count);
    file.read(file.entries()[0], got);
    BOOST_TEST((got == want));
    fs::resize_file(folder.path / "x", 1000);
    BOOST_TEST(holds(refusal([&] { file.read(file.entries()[0], got); }), "ends at byte 1000"));
}

BOOST_AUTO_TEST_CASE(a_folder_without_weights_is_refused) {
    Folder const folder;
    BOOST_TEST(holds(refused_checkpoint(folder.path), "neither model.safetensors nor"));
    BOOST_TEST(holds(refused_checkpoint(folder.path / "none"), "not a folder"));
}

BOOST_AUTO_TEST_CASE(shards_are_read_through_the_index) {
    Folder const folder;
    write_bytes(folder.path / "m-1", float_file({{"a", "[2]", 2}}));
    write_bytes(folder.path / "m-2", float_file({{"b", "[1]", 1}, {"c", "[3]", 3}}));
    write_index(folder.path, R"({"a":"m-1","b":"m-2","c":"m-2"})");
    Checkpoint const checkpoint(folder.path);
    BOOST_TEST((checkpoint.names() == std::vector<std::string>{"a", "b", "c"}));
    std::vector<float> out(3);
    checkpoint.read("c", out);
    BOOST_TEST((out == std::vector<float>{2, 2, 2}));
    BOOST_TEST(checkpoint.find("d") == nullptr);
    BOOST_TEST(holds(refusal([&] { checkpoint.read("d", out); }), "no tensor d"));
}

BOOST_AUTO_TEST_CASE(all_missing_shards_are_listed) {
    Folder const folder;
    write_bytes(folder.path / "m-1", float_file({{"a", "[2]", 2}}));
    write_index(folder.path, R"({"a":"m-1","b":"m-2","c":"m-3"})");
    std::string const text = refused_checkpoint(folder.path);
    BOOST_TEST(holds(text, "2 of 3 shards missing"), text);
    BOOST_TEST(holds(text, "m-2"));
    BOOST_TEST(holds(text, "m-3"));
}

BOOST_AUTO_TEST_CASE(every_disagreement_of_index_and_shards_is_listed) {
    Folder const folder;
    write_bytes(folder.path / "m-1", float_file({{"a", "[2]", 2}, {"twice", "[1]", 1}}));
    write_bytes(folder.path / "m-2",
                float_file({{"b", "[1]", 1}, {"twice", "[1]", 1}, {"unlisted", "[1]", 1}}));
    write_index(folder.path, R"({"a":"m-2","b":"m-2","twice":"m-1","gone":"m-1"})");
    std::string const text = refused_checkpoint(folder.path);
    BOOST_TEST(holds(text, "4 differences"), text);
    BOOST_TEST(holds(text, "twice: in 2 shards: m-1, m-2"), text);
    BOOST_TEST(holds(text, "unlisted: in shard m-2 but not in the index"), text);
    BOOST_TEST(holds(text, "gone: not in m-1"), text);
    BOOST_TEST(holds(text, "a: the index names m-2, it is in m-1"), text);
}

BOOST_AUTO_TEST_CASE(index_paths_cannot_leave_the_folder) {
    for (std::string const name : {"../m-1", "/etc/passwd", "sub/m-1", "..", ""}) {
        Folder const folder;
        write_index(folder.path, R"({"a":")" + name + R"("})");
        BOOST_TEST(holds(refused_checkpoint(folder.path), "must be a plain file name"), name);
    }
    for (std::string const map : {"{}", "[]", "3"}) {
        Folder const folder;
        write_index(folder.path, map);
        BOOST_TEST(holds(refused_checkpoint(folder.path), "non-empty object weight_map"));
    }
}

BOOST_AUTO_TEST_CASE(a_matching_checkpoint_passes_with_and_without_the_tied_head) {
    Folder const folder;
    auto const specs = model_tensors(small_model());
    auto pieces = pieces_of(specs);
    write_bytes(folder.path / "model.safetensors", float_file(pieces));
    BOOST_CHECK_NO_THROW(Checkpoint(folder.path).require_matches(specs));
    pieces.push_back({"lm_head.weight", "[5,4]", 20});
    write_bytes(folder.path / "model.safetensors", float_file(pieces));
    BOOST_CHECK_NO_THROW(Checkpoint(folder.path).require_matches(specs));
}

BOOST_AUTO_TEST_CASE(all_differences_to_the_model_are_listed) {
    Folder const folder;
    ModelConfig config = small_model();
    config.tie_word_embeddings = false;
    auto const specs = model_tensors(config);
    auto pieces = pieces_of(model_tensors(small_model()));
    std::erase_if(pieces, [](Piece const& p) { return p.name.ends_with("q_proj.bias"); });
    for (Piece& p : pieces) {
        if (p.name.ends_with("k_proj.weight")) {  // as if every query head had its own key head
            p = {p.name, "[4,4]", 16};
        }
    }
    pieces.push_back({"model.layers.1.mlp.up_proj.weight", "[3,4]", 12});
    write_bytes(folder.path / "model.safetensors", float_file(pieces));
    std::string const text = refusal([&] { Checkpoint(folder.path).require_matches(specs); }, true);
    BOOST_TEST(holds(text, "4 differences"), text);
    BOOST_TEST(holds(text, "missing: model.layers.0.self_attn.q_proj.bias [4]"), text);
    BOOST_TEST(holds(text, "missing: lm_head.weight [5, 4]"), text);
    BOOST_TEST(holds(text, "shape: model.layers.0.self_attn.k_proj.weight is [4, 4]"), text);
    BOOST_TEST(holds(text, "extra: model.layers.1.mlp.up_proj.weight [3, 4]"), text);
    BOOST_TEST(std::count(text.begin(), text.end(), '\n') == 4);
}

BOOST_AUTO_TEST_CASE(weights_of_an_unreadable_dtype_are_listed) {
    Folder const folder;
    std::vector<TensorSpec> const specs{{"w", 1, 2, true}};
    write_bytes(folder.path / "model.safetensors",
                file_of(R"({"w":)" + entry("I32", "[2]", "[0,8]") + "}", "12345678"));
    std::string const text = refusal([&] { Checkpoint(folder.path).require_matches(specs); }, true);
    BOOST_TEST(holds(text, "dtype: w is I32"), text);
}

BOOST_AUTO_TEST_CASE(the_golden_checkpoint_matches_its_config) {
    fs::path const model = fs::path(CPSTEP_GOLDEN_DIR) / "model";
    auto const specs = model_tensors(read_model_config(model));
    Checkpoint const checkpoint(model);
    checkpoint.require_matches(specs);
    for (TensorSpec const& spec : specs) {
        std::vector<float> values(static_cast<std::size_t>(spec.rows * spec.cols));
        checkpoint.read(spec.name, values);
        BOOST_TEST(
            std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }),
            spec.name);
        BOOST_TEST(std::set<float>(values.begin(), values.end()).size() > 1, spec.name);
    }
}
