#define BOOST_TEST_MODULE h5
#include <sys/resource.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <csignal>
#include <cstring>
#include <limits>
#include <numeric>

#include "io/h5.hpp"
#include "tests/scratch.hpp"

namespace {
namespace fs = std::filesystem;
using namespace cpstep;
using cpstep::test::check_fails;
using cpstep::test::contents;
using cpstep::test::Folder;
using cpstep::test::put;

template <class T>
void check_same(std::vector<T> const& got, std::vector<T> const& want) {
    BOOST_REQUIRE_EQUAL(got.size(), want.size());
    BOOST_TEST(
        (want.empty() || std::memcmp(got.data(), want.data(), want.size() * sizeof(T)) == 0));
}

std::vector<float> ramp(std::size_t count) {
    std::vector<float> values(count);
    std::iota(values.begin(), values.end(), 0.5F);
    return values;
}

struct Row {  // no padding
    std::uint32_t step;
    std::int16_t stream;
    std::uint16_t kind;
    std::int64_t time;
};

std::vector<H5Column> const row_columns{{"step", H5Column::Type::u32},
                                        {"stream", H5Column::Type::i16},
                                        {"kind", H5Column::Type::u16},
                                        {"time", H5Column::Type::i64}};

std::vector<Row> rows_of(std::vector<std::byte> const& bytes) {
    std::vector<Row> rows(bytes.size() / sizeof(Row));
    BOOST_REQUIRE_EQUAL(rows.size() * sizeof(Row), bytes.size());
    if (!rows.empty()) {
        std::memcpy(rows.data(), bytes.data(), bytes.size());
    }
    return rows;
}

}  // namespace

BOOST_AUTO_TEST_CASE(every_number_type_comes_back_bit_for_bit) {
    Folder const folder;
    fs::path const path = folder.path / "a.h5";
    std::vector<float> const f32{1.5F,
                                 -0.0F,
                                 std::numeric_limits<float>::quiet_NaN(),
                                 std::numeric_limits<float>::infinity(),
                                 1e-45F,
                                 3.0F};
    std::vector<double> const f64{1.0 / 3.0, -1e-320, 1e300};
    std::vector<std::int64_t> const i64{std::numeric_limits<std::int64_t>::min(), -1, 1LL << 40};
    std::vector<std::int32_t> const i32{-5, 0, 2147483647};
    std::vector<std::uint8_t> const u8{0, 1, 255};
    {
        H5File out = H5File::create(path);
        out.write("/deep/er/f32", f32, {2, 3}, "nat");
        out.write("/f64", f64, {3}, "s");
        out.write("/i64", i64, {3, 1, 1}, "ns");
        out.write("/i32", i32, {3}, "1");
        out.write("/u8", u8, {3}, "1");
        out.write("/one", std::vector<double>{7.0}, {}, "1");
        out.close();
    }
    H5File const in = H5File::open(path);
    check_same(in.read_f32("/deep/er/f32"), f32);
    check_same(in.dims("/deep/er/f32"), {2, 3});
    check_same(in.read_f64("/f64"), f64);
    check_same(in.read_i64("/i64"), i64);
    check_same(in.dims("/i64"), {3, 1, 1});
    check_same(in.read_i32("/i32"), i32);
    check_same(in.read_u8("/u8"), u8);
    check_same(in.read_f64("/one"), {7.0});
    BOOST_TEST(in.dims("/one").empty());
    BOOST_TEST(std::get<std::string>(in.read_attribute("/deep/er/f32", "units")) == "nat");
    BOOST_TEST(in.exists("/deep/er"));
    BOOST_TEST(in.exists("/"));
    BOOST_TEST(!in.exists("/deep/no/f32"));
}

BOOST_AUTO_TEST_CASE(many_chunks_and_empty_axes_keep_their_shape) {
    Folder const folder;
    fs::path const path = folder.path / "a.h5";
    std::vector<float> const big = ramp(3 * 300001);
    {
        H5File out = H5File::create(path);
        out.write("/rows", big, {3, 300001}, "1");
        out.write("/columns", big, {300001, 3}, "1");
        out.write("/none", std::vector<float>{}, {0}, "1");
        out.write("/none2", std::vector<std::int64_t>{}, {4, 0, 2}, "1");
        out.close();
    }
    H5File const in = H5File::open(path);
    check_same(in.read_f32("/rows"), big);
    check_same(in.read_f32("/columns"), big);
    check_same(in.dims("/none"), {0});
    BOOST_TEST(in.read_f32("/none").empty());
    check_same(in.dims("/none2"), {4, 0, 2});
    BOOST_TEST(in.read_i64("/none2").empty());
}

BOOST_AUTO_TEST_CASE(strings_keep_their_utf8_and_their_length) {
    Folder const folder;
    fs::path const path = folder.path / "a.h5";
    std::vector<std::string> const words{"", "kurz", "größer", "日本"};
    {
        H5File out = H5File::create(path);
        out.write_strings("/words", words);
        out.write_strings("/nothing", {});
        out.write_text("/config", std::string(100000, 'x') + "é");
        out.write_text("/blank", "");
        out.close();
    }
    H5File const in = H5File::open(path);
    BOOST_TEST(in.read_strings("/words") == words);
    BOOST_TEST(in.read_strings("/nothing").empty());
    BOOST_TEST(in.read_strings("/config").at(0).size() == 100002U);
    BOOST_TEST(in.read_strings("/blank").at(0).empty());
    BOOST_TEST(in.dims("/config").empty());
}

BOOST_AUTO_TEST_CASE(attributes_of_groups_datasets_and_root_are_read_back_and_replaced) {
    Folder const folder;
    fs::path const path = folder.path / "a.h5";
    {
        H5File out = H5File::create(path);
        out.attribute("/", "version", std::int64_t{1LL << 50});
        out.attribute("/variants/cp1", "loss", 0.1);
        out.attribute("/variants/cp1", "loss", 0.25);
        out.attribute("/", "empty", std::string());
        out.write("/u8", std::vector<std::uint8_t>{1}, {1}, "1");
        out.attribute("/u8", "long_name", std::string("größe"));
        out.close();
    }
    H5File const in = H5File::open(path);
    BOOST_TEST(std::get<std::int64_t>(in.read_attribute("/", "version")) == 1LL << 50);
    BOOST_TEST(std::get<double>(in.read_attribute("/variants/cp1", "loss")) == 0.25);
    BOOST_TEST(std::get<std::string>(in.read_attribute("/", "empty")).empty());
    BOOST_TEST(std::get<std::string>(in.read_attribute("/u8", "long_name")) == "größe");
    check_fails(ExitCode::input_data, "/u8@nope: no such attribute",
                [&] { in.read_attribute("/u8", "nope"); });
    check_fails(ExitCode::input_data, "/nope: no such object",
                [&] { in.read_attribute("/nope", "units"); });
}

BOOST_AUTO_TEST_CASE(tables_grow_by_appending_and_convert_columns_by_name) {
    Folder const folder;
    fs::path const path = folder.path / "a.h5";
    std::vector<Row> rows;
    for (std::uint32_t i = 0; i < 20000; ++i) {
        rows.push_back({i, static_cast<std::int16_t>(-static_cast<int>(i % 7)), 3, 1000LL * i});
    }
    {
        H5File out = H5File::create(path);
        out.create_table("/t", row_columns, "ns");
        out.append_records("/t", rows.data(), 3);
        out.append_records("/t", rows.data(), 0);
        out.append_records("/t", rows.data() + 3, 19997);
        out.create_string_table("/names", 8);
        out.append_strings("/names", std::vector<std::string>{"one", "exactly8"});
        out.append_strings("/names", std::vector<std::string>{"three"});
        check_fails(ExitCode::internal, "over 8 bytes",
                    [&] { out.append_strings("/names", std::vector<std::string>{"nine byte"}); });
        out.close();
    }
    H5File const in = H5File::open(path);
    std::vector<Row> const got = rows_of(in.read_records("/t", row_columns));
    check_same(got, rows);
    BOOST_TEST(in.read_strings("/names") == (std::vector<std::string>{"one", "exactly8", "three"}));
    // A narrower, reordered view; 1000 * i leaves 16 bits.
    BOOST_TEST(in.read_records("/t", {{"stream", H5Column::Type::i32}}).size() == 20000U * 4U);
    check_fails(ExitCode::input_data, "does not fit",
                [&] { in.read_records("/t", {{"time", H5Column::Type::u16}}); });
    check_fails(ExitCode::input_data, "has no column wrong",
                [&] { in.read_records("/t", {{"wrong", H5Column::Type::u16}}); });
}

BOOST_AUTO_TEST_CASE(a_virtual_table_shows_every_source_and_marks_missing_rows) {
    Folder const folder;
    std::vector<std::int64_t> const counts{2, 0, 3};
    std::vector<std::string> files;
    for (std::size_t i = 0; i < counts.size(); ++i) {
        files.push_back("ranks/" + std::to_string(i) + ".h5");
        fs::create_directories(folder.path / "ranks");
        H5File out = H5File::create_swmr(folder.path / files.back());
        out.create_table("/events", row_columns, "ns");
        out.start_swmr();
        for (std::int64_t j = 0; j < counts[i]; ++j) {
            Row const row{static_cast<std::uint32_t>(10 * i + std::size_t(j)), 1, 3, j};
            out.append_records("/events", &row, 1);
        }
        out.close();
    }
    {
        H5File out = H5File::create(folder.path / "run.h5");
        out.write_virtual_table("/events", row_columns, files, "/events", counts, "ns");
        out.close();
    }
    fs::rename(folder.path, folder.path.string() + "_moved");  // the sources are named relatively
    fs::rename(folder.path.string() + "_moved", folder.path);
    auto const steps = [&] {
        H5File const in = H5File::open(folder.path / "run.h5");
        check_same(in.dims("/events"), {3, 3});
        std::vector<std::uint32_t> out;
        for (Row const& row : rows_of(in.read_records("/events", row_columns))) {
            out.push_back(row.step);
        }
        return out;
    };
    std::uint32_t const none = 0xffffffffU;
    check_same(steps(), {0, 1, none, none, none, none, 20, 21, 22});
    fs::remove(folder.path / files[2]);  // a lost rank is marked, not an error
    check_same(steps(), {0, 1, none, none, none, none, none, none, none});
    H5File out = H5File::create(folder.path / "empty.h5");
    out.write_virtual_table("/events", row_columns, files, "/events", {0, 0, 0}, "ns");
    check_same(out.dims("/events"), {3, 1});  // one column of fill records
    BOOST_TEST(rows_of(out.read_records("/events", row_columns)).at(2).step == none);
}

BOOST_AUTO_TEST_CASE(types_are_never_reinterpreted_or_clipped) {
    Folder const folder;
    fs::path const path = folder.path / "a.h5";
    {
        H5File out = H5File::create(path);
        out.write("/i64", std::vector<std::int64_t>{1, 1LL << 33}, {2}, "1");
        out.write("/minus", std::vector<std::int32_t>{-1}, {1}, "1");
        out.write("/small", std::vector<std::int64_t>{1, 200}, {2}, "1");
        out.write("/f64", std::vector<double>{0.5}, {1}, "1");
        out.close();
    }
    H5File const in = H5File::open(path);
    check_fails(ExitCode::input_data, "/i64: holds 64-bit integer, expected floating-point",
                [&] { in.read_f32("/i64"); });
    check_fails(ExitCode::input_data, "/f64: holds 64-bit float, expected integers",
                [&] { in.read_i32("/f64"); });
    check_fails(ExitCode::input_data, "expected text", [&] { in.read_strings("/f64"); });
    check_fails(ExitCode::input_data, "/i64: a value does not fit", [&] { in.read_i32("/i64"); });
    check_fails(ExitCode::input_data, "/minus: a value does not fit",
                [&] { in.read_u8("/minus"); });
    check_fails(ExitCode::input_data, "/nope: no such dataset", [&] { in.read_u8("/nope"); });
    check_same(in.read_u8("/small"), {1, 200});
    check_same(in.read_f32("/f64"), {0.5F});
}

BOOST_AUTO_TEST_CASE(misuse_of_the_writer_is_named) {
    Folder const folder;
    H5File out = H5File::create_swmr(folder.path / "a.h5");
    out.write("/x", ramp(4), {4}, "1");
    check_fails(ExitCode::internal, "4 values for an extent of 5",
                [&] { out.write("/y", ramp(4), {5}, "1"); });
    check_fails(ExitCode::output, "already exists", [&] { out.write("/x", ramp(4), {4}, "1"); });
    out.start_swmr();
    check_fails(ExitCode::internal, "before start_swmr",
                [&] { out.write("/z", ramp(1), {1}, "1"); });
    check_fails(ExitCode::internal, "before start_swmr",
                [&] { out.attribute("/", "late", std::int64_t{1}); });
    check_fails(ExitCode::internal, "3 values for an extent of 4",
                [&] { out.overwrite("/x", ramp(3)); });
    out.overwrite("/x", std::vector<float>{4, 3, 2, 1});
    out.close();
    out.close();
    check_fails(ExitCode::internal, "used after close", [&] { out.flush(); });
    H5File in = H5File::open(folder.path / "a.h5");
    check_same(in.read_f32("/x"), {4, 3, 2, 1});
    check_fails(ExitCode::internal, "open for reading only", [&] { in.overwrite("/x", ramp(4)); });
}

BOOST_AUTO_TEST_CASE(bad_files_give_one_line_each) {
    Folder const folder;
    fs::path const good = folder.path / "good.h5";
    fs::path const bad = folder.path / "bad.h5";
    {
        H5File out = H5File::create(good);
        out.write("/x", ramp(5000), {5000}, "1");
        out.attribute("/", "format", std::string("x"));
        out.close();
    }
    std::string const bytes = contents(good);
    auto const read = [&] { H5File::open(bad).read_f32("/x"); };
    check_fails(ExitCode::input_data, "bad.h5: no such file", read);
    put(bad, "");
    check_fails(ExitCode::input_data, "bad.h5: the file is empty", read);
    put(bad, std::string(5000, 'g'));
    check_fails(ExitCode::input_data, "bad.h5: cannot open as HDF5: file signature not found",
                read);
    for (std::size_t const keep : {std::size_t{1}, std::size_t{8}, std::size_t{60},
                                   std::size_t{900}, bytes.size() / 2, bytes.size() - 1}) {
        put(bad, bytes.substr(0, keep));
        check_fails(ExitCode::input_data, "bad.h5: cannot open as HDF5: ", read);
    }
    check_fails(ExitCode::input_data, "not a regular file", [&] { H5File::open(folder.path); });
}

BOOST_AUTO_TEST_CASE(a_flipped_bit_in_a_chunk_is_found_by_its_checksum) {
    Folder const folder;
    fs::path const path = folder.path / "a.h5";
    std::vector<float> const values = ramp(5000);
    {
        H5File out = H5File::create(path);
        out.write("/x", values, {5000}, "1");
        out.write("/y", std::vector<float>{1.0F}, {1}, "1");
        out.close();
    }
    std::string bytes = contents(path);
    std::string const needle(reinterpret_cast<char const*>(values.data() + 2000), 64);
    auto const at = bytes.find(needle);
    BOOST_REQUIRE(at != std::string::npos);
    bytes[at + 5] = static_cast<char>(bytes[at + 5] ^ 4);
    put(path, bytes);
    H5File const in = H5File::open(path);
    check_fails(ExitCode::input_data,
                "/x: cannot read it: data error detected by Fletcher32 checksum",
                [&] { in.read_f32("/x"); });
    check_same(in.read_f32("/y"), {1.0F});  // the others are still readable
}

BOOST_AUTO_TEST_CASE(an_extent_that_no_file_could_hold_is_refused_before_memory_is_taken) {
    Folder const folder;
    fs::path const path = folder.path / "a.h5";
    std::int64_t const honest = 0x123456;
    {
        H5File out = H5File::create(path);
        out.write("/x", std::vector<std::uint8_t>(honest, 1), {honest}, "1");
        out.close();
    }
    std::string bytes = contents(path);
    std::string const claim(reinterpret_cast<char const*>(&honest), sizeof honest);
    std::int64_t const huge = 1LL << 50;
    std::string const more(reinterpret_cast<char const*>(&huge), sizeof huge);
    for (auto at = bytes.find(claim); at != std::string::npos; at = bytes.find(claim, at + 8)) {
        bytes.replace(at, more.size(), more);
    }
    put(path, bytes);
    check_fails(ExitCode::input_data, "/x: claims 1125899906842624 elements of 1 bytes",
                [&] { H5File::open(path).read_u8("/x"); });
}

BOOST_AUTO_TEST_CASE(a_full_disk_is_an_output_error_with_the_reason) {
    Folder const folder;
    std::signal(SIGXFSZ, SIG_IGN);
    rlimit before{};
    BOOST_REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
    rlimit const tight{100000, before.rlim_max};
    {
        H5File out = H5File::create(folder.path / "a.h5");
        BOOST_REQUIRE(::setrlimit(RLIMIT_FSIZE, &tight) == 0);
        check_fails(ExitCode::output, "File too large", [&] {
            out.write("/x", ramp(100000), {100000}, "1");
            out.close();
        });
    }
    BOOST_REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
    if (fs::exists("/dev/full")) {
        check_fails(ExitCode::output, "bytes free on the file system", [&] {
            H5File out = H5File::create("/dev/full");
            out.write("/x", ramp(1000), {1000}, "1");
            out.close();
        });
    }
    check_fails(ExitCode::output, "No such file or directory",
                [&] { H5File::create(folder.path / "no" / "a.h5"); });
    // The library is still of use after those.
    H5File out = H5File::create(folder.path / "b.h5");
    out.write("/x", ramp(10), {10}, "1");
    out.close();
    check_same(H5File::open(folder.path / "b.h5").read_f32("/x"), ramp(10));
}

BOOST_AUTO_TEST_CASE(a_killed_writer_leaves_what_it_flushed_and_a_live_one_can_be_read) {
    Folder const folder;
    fs::path const path = folder.path / "a.h5";
    ::pid_t const child = ::fork();
    if (child == 0) {
        H5File out = H5File::create_swmr(path);
        out.create_table("/t", row_columns, "ns");
        out.start_swmr();
        std::vector<Row> const rows(10000, Row{7, 1, 3, 2});
        out.append_records("/t", rows.data(), 10000);
        out.flush();
        out.append_records("/t", rows.data(), 10000);
        ::raise(SIGKILL);
    }
    test::wait_for_kill(child);
    std::vector<Row> const rows = rows_of(H5File::open(path).read_records("/t", row_columns));
    BOOST_REQUIRE(rows.size() >= 10000U);
    BOOST_TEST(rows[9999].step == 7U);

    H5File live = H5File::create_swmr(folder.path / "live.h5");
    live.create_string_table("/names", 4);
    live.start_swmr();
    live.append_strings("/names", std::vector<std::string>{"a"});
    live.flush();
    BOOST_TEST(H5File::open(folder.path / "live.h5").read_strings("/names").size() == 1U);
    live.close();
}

BOOST_AUTO_TEST_CASE(marks_of_a_writer_killed_before_swmr_are_cleared) {
    Folder const folder;
    fs::path const path = folder.path / "a.h5";
    ::pid_t const child = ::fork();
    if (child == 0) {
        H5File out = H5File::create_swmr(path);
        out.write("/x", ramp(10), {10}, "1");
        out.flush();
        ::raise(SIGKILL);
    }
    test::wait_for_kill(child);
    check_same(H5File::open(path).read_f32("/x"), ramp(10));
}

BOOST_AUTO_TEST_CASE(links_out_of_the_file_are_refused) {
    Folder const folder;
    fs::path const path = folder.path / "a.h5";
    std::string const script =
        "import h5py,sys; f=h5py.File(sys.argv[1],'w'); f['out']=h5py.ExternalLink('b.h5','/x'); "
        "f['loop']=h5py.SoftLink('/loop'); f['here']=[1.0]; f['soft']=h5py.SoftLink('/here'); "
        "f.close()";
    if (!test::has_h5py()) {
        BOOST_TEST_MESSAGE("SKIPPED: no /usr/bin/python3 with h5py to make the links");
        return;
    }
    std::string const command = "/usr/bin/python3 -c \"" + script + "\" " + path.string();
    BOOST_REQUIRE(std::system(command.c_str()) == 0);
    {
        H5File other = H5File::create(folder.path / "b.h5");
        other.write("/x", ramp(3), {3}, "1");
        other.close();
    }
    H5File const in = H5File::open(path);
    check_same(in.read_f64("/soft"), {1.0});
    check_fails(ExitCode::input_data, "links out of the file are refused",
                [&] { in.read_f32("/out"); });
    check_fails(ExitCode::input_data, "/loop: ", [&] { in.read_f32("/loop"); });
}
