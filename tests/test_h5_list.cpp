#define BOOST_TEST_MODULE h5_list
#include <boost/test/unit_test.hpp>
#include <cstring>

#include "io/h5.hpp"
#include "io/trace_records.hpp"
#include "tests/scratch.hpp"

namespace {

using namespace cpstep;
using cpstep::test::check_fails;
using cpstep::test::Folder;

std::filesystem::path sample_file(Folder const& folder) {
    std::filesystem::path const path = folder.path / "sample.h5";
    H5File file = H5File::create(path);
    std::vector<float> values(12);
    for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = static_cast<float>(i);
    }
    file.write("/b/matrix", std::span<float const>(values), {4, 3}, "1");
    file.write_text("/b/text", "words");
    file.attribute("/a", "loss", 0.5);
    file.attribute("/a", "count", std::int64_t{3});
    file.create_table("/events", event_columns(), event_units);
    std::vector<Event> events(250);
    for (std::size_t i = 0; i < events.size(); ++i) {
        events[i].step = static_cast<std::uint32_t>(i);
    }
    file.append_records("/events", events.data(), 250);
    file.close();
    return path;
}

}  // namespace

BOOST_AUTO_TEST_CASE(groups_list_their_names_and_objects_their_attributes) {
    Folder const folder;
    H5File const file = H5File::open(sample_file(folder));
    BOOST_TEST(file.children("/") == (std::vector<std::string>{"a", "b", "events"}));
    BOOST_TEST(file.children("/b") == (std::vector<std::string>{"matrix", "text"}));
    BOOST_TEST(file.children("/a").empty());
    BOOST_TEST(file.attribute_names("/a") == (std::vector<std::string>{"count", "loss"}));
    BOOST_TEST((file.is_group("/a") && !file.is_group("/b/matrix")));
    check_fails(ExitCode::input_data, "/none", [&] { (void)file.children("/none"); });
    check_fails(ExitCode::input_data, "/b/matrix", [&] { (void)file.children("/b/matrix"); });
}

BOOST_AUTO_TEST_CASE(rows_of_a_dataset_are_read_without_the_others) {
    Folder const folder;
    H5File const file = H5File::open(sample_file(folder));
    BOOST_TEST(file.read_f64("/b/matrix", 1, 2) == (std::vector<double>{3, 4, 5, 6, 7, 8}));
    BOOST_TEST(file.read_f64("/b/matrix", 3, 1) == (std::vector<double>{9, 10, 11}));
    for (auto const& [first, count] : {std::pair{3, 2}, std::pair{-1, 1}, std::pair{0, 5}}) {
        check_fails(ExitCode::input_data, "has no rows",
                    [&, f = first, c = count] { (void)file.read_f64("/b/matrix", f, c); });
    }
}

BOOST_AUTO_TEST_CASE(records_are_read_across_pages) {
    Folder const folder;
    H5File const file = H5File::open(sample_file(folder));
    std::vector<std::byte> const bytes = file.read_records("/events", event_columns(), 97, 120);
    BOOST_REQUIRE_EQUAL(bytes.size(), 120 * sizeof(Event));
    std::vector<Event> events(120);
    std::memcpy(events.data(), bytes.data(), bytes.size());
    BOOST_TEST(events.front().step == 97U);
    BOOST_TEST(events.back().step == 216U);
    BOOST_TEST(file.read_records("/events", event_columns(), 250, 0).empty());
    check_fails(ExitCode::input_data, "has no rows",
                [&] { (void)file.read_records("/events", event_columns(), 200, 51); });
}
