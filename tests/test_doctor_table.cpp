#define BOOST_TEST_MODULE doctor_table
#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>

#include "app/doctor/table.hpp"
#include "doctor_job.hpp"
#include "errors.hpp"

using namespace cpstep;
using namespace cpstep::doctor;
using namespace cpstep::test;

BOOST_AUTO_TEST_CASE(table_and_json_say_the_same) {
    JobFacts job = good_job();
    job.ranks[1].gpu.nvml.mig = known(1);
    job.wires[0].rates = {{.op = "ring", .bytes = 4096, .seconds = 2e-6, .bus_gb_per_s = 2.048}};
    std::vector<Row> const rows = judge(job);
    std::string const text = text_of(rows, job);
    nlohmann::json const json = nlohmann::json::parse(json_of(rows, job));
    BOOST_TEST(json["exit_code"] == 3);
    BOOST_TEST(json["verdict"] == "not ready");
    BOOST_TEST(json["checks"].size() == rows.size());
    for (auto const& check : json["checks"]) {
        for (char const* key : {"check", "status", "value", "wanted", "fix"}) {
            BOOST_TEST(test::contains(text, check[key].get<std::string>()), check[key]);
        }
    }
    BOOST_TEST(json["wires"][0]["rates"][0]["bus_gb_per_s"] == 2.048);
    BOOST_TEST(test::contains(text, "4 KiB          2.0        2.048"));
    BOOST_TEST(test::contains(text, "1 failed"));
    BOOST_TEST(test::contains(text, "not ready (exit 3)"));
    BOOST_TEST(test::contains(text, "peers of host0"));
}

BOOST_AUTO_TEST_CASE(the_plot_has_a_curve_for_each_wire_and_operation) {
    JobFacts job = good_job();
    BOOST_TEST(rates_svg(job.wires).empty());
    for (WireFacts& wire : job.wires) {
        for (std::int64_t bytes = 4096; bytes <= largest_message; bytes *= 4) {
            wire.rates.push_back({"ring", bytes, 1e-5, 1e-4 * static_cast<double>(bytes)});
            wire.rates.push_back({"all_reduce", bytes, 1e-5, 2e-4 * static_cast<double>(bytes)});
        }
    }
    std::string const svg = rates_svg(job.wires);
    std::size_t curves = 0;
    for (std::size_t at = svg.find("<polyline"); at != std::string::npos;
         at = svg.find("<polyline", at + 1)) {
        ++curves;
    }
    BOOST_TEST(curves == 4U);
    for (char const* word : {"mpi ring", "nccl all_reduce", "256 MiB", "bus GB/s"}) {
        BOOST_TEST(test::contains(svg, word), word);
    }
    BOOST_TEST(!test::contains(svg, "nan"));
    job.wires[0].rates = {{"ring", 4096, 1e-5, 1.0}};  // one point
    job.wires[1].rates.clear();
    BOOST_TEST(!test::contains(rates_svg(job.wires), "nan"));
}
