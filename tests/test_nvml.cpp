#define BOOST_TEST_MODULE nvml
#include <dlfcn.h>

#include <boost/test/unit_test.hpp>

#include "cuda/nvml.hpp"
#include "errors.hpp"

using namespace cpstep;
using cpstep::test::contains;

namespace {

constexpr char const* bus = "0000:1B:00.0";

}  // namespace

BOOST_AUTO_TEST_CASE(without_the_library_every_fact_says_so) {
    Nvml const nvml("libno-such-nvml.so.1");
    BOOST_TEST(!nvml.driver_version().known());
    NvmlFacts const facts = nvml.device(bus);
    for (std::string const& why :
         {nvml.driver_version().why, facts.uuid.why, facts.mig.why, facts.processes.why,
          facts.ecc_uncorrected.why, facts.clock_reasons.why, facts.power_w.why, facts.nvlinks.why,
          nvml.peer_status(bus, bus).why, nvml.common_ancestor(bus, bus).why}) {
        BOOST_TEST(why == "libno-such-nvml.so.1 is not there (no NVIDIA driver)");
    }
}

BOOST_AUTO_TEST_CASE(facts_are_those_of_the_library) {
    Nvml const nvml(CPSTEP_FAKE_NVML);
    BOOST_TEST(*nvml.driver_version().value == "550.54.15");
    NvmlFacts const facts = nvml.device(bus);
    BOOST_TEST(*facts.uuid.value == "GPU-abc");
    BOOST_TEST(*facts.compute_mode.value == 3);
    BOOST_TEST(*facts.processes.value == 2);  // by the older of two names
    BOOST_TEST(*facts.ecc_uncorrected.value == 5);
    BOOST_TEST(*facts.remap_pending.value == 1);
    BOOST_TEST(*facts.remap_failed.value == 0);
    BOOST_TEST(*facts.clock_reasons.value == 0x48);  // by the older of two names
    BOOST_TEST(*facts.power_w.value == 123.4, boost::test_tools::tolerance(1e-12));
    BOOST_TEST(*facts.nvlinks.value == 3);
    BOOST_TEST(*facts.nvlink_version.value == 4);
    BOOST_TEST(*facts.nvlink_switch.value == 1);
    BOOST_TEST(*nvml.peer_status(bus, bus).value == "IOH topology not supported");
    BOOST_TEST(*nvml.common_ancestor(bus, bus).value == "one host bridge");
}

BOOST_AUTO_TEST_CASE(clocks_alone_are_those_among_all_facts) {
    Nvml const nvml(CPSTEP_FAKE_NVML);
    NvmlFacts const clocks = nvml.clocks(bus);
    BOOST_TEST(*clocks.clock_reasons.value == *nvml.device(bus).clock_reasons.value);
    BOOST_TEST(*clocks.power_w.value == 123.4, boost::test_tools::tolerance(1e-12));
    BOOST_TEST(!clocks.uuid.known());
    BOOST_TEST(nvml.clocks("0000:2B:00.0").power_w.why ==
               "nvmlDeviceGetHandleByPciBusId_v2: Not Found");
}

BOOST_AUTO_TEST_CASE(reasons_have_names) {
    BOOST_TEST(clock_reason::names(0x1) == "");  // idle
    BOOST_TEST(clock_reason::names(0x60) == "too hot");
    BOOST_TEST(clock_reason::names(0x8c) == "hardware slowdown, power brake, power limit");
}

BOOST_AUTO_TEST_CASE(what_it_lacks_or_refuses_is_unknown_with_the_reason) {
    Nvml const nvml(CPSTEP_FAKE_NVML);
    NvmlFacts const facts = nvml.device(bus);
    BOOST_TEST(facts.mig.why == "nvmlDeviceGetMigMode: Not Supported");
    BOOST_TEST(facts.persistence.why == "this NVML has no nvmlDeviceGetPersistenceMode");
    BOOST_TEST(!facts.temperature_c.known());
    NvmlFacts const other = nvml.device("0000:2B:00.0");
    BOOST_TEST(other.uuid.why == "nvmlDeviceGetHandleByPciBusId_v2: Not Found");
    BOOST_TEST(other.nvlinks.why == other.uuid.why);
    BOOST_TEST(nvml.peer_status(bus, "0000:2B:00.0").why == other.uuid.why);
}

BOOST_AUTO_TEST_CASE(it_is_ended_as_often_as_it_was_begun) {
    Nvml const kept(CPSTEP_FAKE_NVML);
    {
        Nvml const nvml(CPSTEP_FAKE_NVML);
    }
    void* const library = dlopen(CPSTEP_FAKE_NVML, RTLD_NOW);
    BOOST_REQUIRE(library != nullptr);
    auto* const begun = reinterpret_cast<int (*)()>(dlsym(library, "fake_nvml_begun"));
    BOOST_TEST(begun() == 1);
    (void)dlclose(library);
}
