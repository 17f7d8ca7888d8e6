#define BOOST_TEST_MODULE fault_table
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "app/fault_table.hpp"

using namespace cpstep;

namespace {

/// Enumerators of Fault in the order of their values. The source is read because a compiler cannot
/// list them, and a fault that is forgotten in the table is one that nobody plants.
std::vector<std::string> enumerators() {
    std::ifstream file(CPSTEP_SOURCE_DIR "/cuda/fault.hpp");
    std::stringstream text;
    text << file.rdbuf();
    std::string const source = text.str();
    std::size_t const begin = source.find("enum class Fault");
    BOOST_TEST_REQUIRE(begin != std::string::npos);
    std::size_t const open = source.find('{', begin);
    std::string const body = source.substr(open + 1, source.find('}', open) - open - 1);
    std::regex const name("[a-z0-9_]+");
    return {std::sregex_token_iterator(body.begin(), body.end(), name), {}};
}

std::string kebab(std::string name) {
    std::ranges::replace(name, '_', '-');
    return name;
}

}  // namespace

BOOST_AUTO_TEST_CASE(every_fault_but_none_stands_once_under_its_own_name) {
    std::vector<std::string> const names = enumerators();
    BOOST_TEST_REQUIRE(names.size() > 1U);
    BOOST_TEST(names.front() == "none");
    BOOST_TEST(fault_table().size() == names.size() - 1);
    for (std::size_t value = 0; value < names.size(); ++value) {
        auto const fault = static_cast<Fault>(value);
        BOOST_TEST_CONTEXT(names[value]) {
            BOOST_TEST(std::ranges::count(fault_table(), fault, &FaultSpec::fault) ==
                       (fault == Fault::none ? 0 : 1));
            auto const row = std::ranges::find(fault_table(), fault, &FaultSpec::fault);
            BOOST_TEST((row == fault_table().end() || row->name == kebab(names[value])));
        }
    }
}

BOOST_AUTO_TEST_CASE(names_are_unique_and_in_kebab_case) {
    std::regex const kebab_case("[a-z0-9]+(-[a-z0-9]+)*");
    std::set<std::string_view> names;
    for (FaultSpec const& spec : fault_table()) {
        BOOST_TEST(std::regex_match(spec.name.begin(), spec.name.end(), kebab_case), spec.name);
        BOOST_TEST(names.insert(spec.name).second, spec.name);
        BOOST_TEST(spec.name.size() <= 32U, spec.name << " is wider than the report's column");
    }
}

BOOST_AUTO_TEST_CASE(what_a_fault_is_fits_into_a_line_beside_its_name) {
    for (FaultSpec const& spec : fault_table()) {
        BOOST_TEST(!spec.what.empty());
        BOOST_TEST(spec.what.size() <= 48U, spec.name << ": " << spec.what);
        BOOST_TEST(spec.what.find_first_of("\n\t") == std::string_view::npos, spec.name);
        BOOST_TEST(spec.what.back() != '.', spec.name);
    }
}

BOOST_AUTO_TEST_CASE(faults_that_break_a_wire_stand_last) {
    auto const table = fault_table();
    BOOST_TEST((table.back().fault == Fault::collective_skipped));
    BOOST_TEST((table[table.size() - 2].fault == Fault::ring_direction_flipped));
}

BOOST_AUTO_TEST_CASE(a_planted_fault_is_gone_at_the_end_of_its_scope_however_it_is_left) {
    BOOST_TEST(planted(Fault::none));
    {
        PlantedFault const fault(Fault::dkv_doubled);
        BOOST_TEST(planted(Fault::dkv_doubled));
        BOOST_TEST(!planted(Fault::none));
        BOOST_TEST(!planted(Fault::ring_step_missing));
    }
    BOOST_TEST(planted(Fault::none));
    try {
        PlantedFault const fault(Fault::dkv_doubled);
        throw 1;
    } catch (int) {
        BOOST_TEST(planted(Fault::none));
    }
}
