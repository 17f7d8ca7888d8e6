// A build without CUDA says so wherever a device is asked for.
#define BOOST_TEST_MODULE cuda_device_none
#include <boost/test/unit_test.hpp>
#include <string>

#include "cuda/cuda_device.hpp"
#include "tests/errors.hpp"

using namespace cpstep;
using namespace cpstep::test;

BOOST_AUTO_TEST_CASE(there_are_no_devices_and_the_reason_names_the_remedy) {
    std::string why;
    BOOST_TEST(cuda_device_count(why) == 0);
    BOOST_TEST(contains(why, "make cuda"));
    BOOST_TEST(cuda_versions().empty());
}

BOOST_AUTO_TEST_CASE(asking_for_one_is_an_error_of_the_environment) {
    for (Error const& error : {error_of([] { (void)cuda_device_info(0); }),
                               error_of([] { (void)make_cuda_backend({}); })}) {
        BOOST_TEST((error.code() == ExitCode::environment));
        BOOST_TEST(contains(error.what(), "make cuda"));
    }
}
