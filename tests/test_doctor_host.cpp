#define BOOST_TEST_MODULE doctor_host
#include <unistd.h>

#include <boost/test/unit_test.hpp>

#include "app/doctor/doctor.hpp"
#include "app/doctor/host_facts.hpp"
#include "errors.hpp"
#include "scratch.hpp"

using namespace cpstep;
using namespace cpstep::doctor;
namespace fs = std::filesystem;

namespace {

void add(fs::path const& root, std::string const& file, std::string const& text) {
    fs::create_directories((root / file).parent_path());
    test::put(root / file, text);
}

}  // namespace

BOOST_AUTO_TEST_CASE(cpu_lists_are_read_to_their_end_or_first_fault) {
    BOOST_TEST((cpu_list("0-3,8,10-11") == std::vector{0, 1, 2, 3, 8, 10, 11}));
    BOOST_TEST((cpu_list("5\n") == std::vector{5}));
    BOOST_TEST(cpu_list("").empty());
    BOOST_TEST(cpu_list("x").empty());
    BOOST_TEST((cpu_list("1-") == std::vector<int>{}));
    BOOST_TEST(cpu_list("0-999999999").size() < 100'000U);
}

BOOST_AUTO_TEST_CASE(ports_interfaces_nodes_and_modules_come_from_sys) {
    test::Folder const folder;
    fs::path const& root = folder.path;
    add(root, "sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n");
    add(root, "sys/class/infiniband/mlx5_0/ports/1/rate", "400 Gb/sec (4X NDR)\n");
    add(root, "sys/class/infiniband/mlx5_1/ports/1/state", "1: DOWN\n");
    add(root, "sys/class/net/lo/operstate", "unknown\n");
    add(root, "sys/class/net/eth0/operstate", "up\n");
    add(root, "sys/devices/system/node/node0/cpulist", "0-99999\n");
    add(root, "sys/devices/system/node/node1/cpulist", "\n");
    add(root, "sys/module/nvidia_peermem/version", "1\n");
    add(root, "sys/bus/pci/devices/0000:1b:00.0/numa_node", "1\n");
    HostFacts const facts = read_host_facts(root);
    BOOST_REQUIRE(facts.ib.size() == 2U);
    BOOST_TEST(facts.ib[0].name == "mlx5_0/1");
    BOOST_TEST(facts.ib[0].state == "4: ACTIVE");
    BOOST_TEST(facts.ib[0].rate == "400 Gb/sec (4X NDR)");
    BOOST_TEST(facts.ib[1].state == "1: DOWN");
    BOOST_TEST((facts.interfaces == std::vector<std::string>{"eth0 (up)"}));
    BOOST_TEST((facts.numa_nodes == std::vector{0}));
    BOOST_TEST(facts.peer_memory_module);
    BOOST_TEST(*numa_node_of("0000:1B:00.0", root).value == 1);
    BOOST_TEST(test::contains(numa_node_of("0000:2B:00.0", root).why, "0000:2b:00.0"));
}

BOOST_AUTO_TEST_CASE(an_empty_tree_is_no_error) {
    test::Folder const folder;
    HostFacts const facts = read_host_facts(folder.path);
    BOOST_TEST(facts.ib.empty());
    BOOST_TEST(!facts.shm_bytes.known());
    BOOST_TEST(test::contains(facts.shm_bytes.why, "/dev/shm"));
    BOOST_TEST(!facts.xids.known());
}

BOOST_AUTO_TEST_CASE(xids_in_the_log_are_counted) {
    test::Folder const folder;
    add(folder.path, "dev/kmsg", "a NVRM: Xid (PCI:0000:1b:00): 79\nb NVRM: Xid 48\n");
    BOOST_TEST(*read_host_facts(folder.path).xids.value == 2);
}

BOOST_AUTO_TEST_CASE(this_machine_has_cpus_and_limits) {
    HostFacts const facts = read_host_facts();
    BOOST_TEST(!facts.cpus.empty());
    BOOST_TEST(facts.open_files != 0);
}

BOOST_AUTO_TEST_CASE(options_are_read_and_misspelt_ones_refused) {
    DoctorOptions const options = parse_doctor_options({"--json", "--output", "x", "--full"});
    BOOST_TEST(options.json);
    BOOST_TEST(options.full);
    BOOST_TEST(options.output.string() == "x");
    BOOST_TEST(parse_doctor_options({"--output=y"}).output.string() == "y");
    BOOST_TEST(parse_doctor_options({}).output.string() == "out");
    test::check_fails(ExitCode::usage, "'--jsno'; did you mean '--json'",
                      [] { (void)parse_doctor_options({"--jsno"}); });
    test::check_fails(ExitCode::usage, "'--output' is missing",
                      [] { (void)parse_doctor_options({"--output"}); });
    test::check_fails(ExitCode::usage, "'--output' needs a value, but '--json' follows",
                      [] { (void)parse_doctor_options({"--output", "--json"}); });
    test::check_fails(ExitCode::usage, "'12345678'",
                      [] { (void)parse_doctor_options({"12345678"}); });
}
