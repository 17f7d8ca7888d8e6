#define BOOST_TEST_MODULE processor
#include <cstdlib>

#include "app/processor.hpp"
#include "tests/errors.hpp"
#include "tests/mpi_test_main.hpp"

using namespace cpstep;
using cpstep::test::contains;
using cpstep::test::error_of;
using cpstep::test::test_world;

namespace {

/// Also a machine with GPUs shows none here. Before CUDA is first asked.
int const hidden = setenv("CUDA_VISIBLE_DEVICES", "", 1);

Error refused(Options const& options) {
    return error_of([&] { make_processor(test_world(), options); });
}

Options parsed(std::vector<std::string> more) {
    more.insert(more.begin(), {"--hf-checkpoint", "model", "--rollout-file", "samples.h5"});
    return parse_run_options(more, {});
}

}  // namespace

BOOST_AUTO_TEST_CASE(ranks_are_bound_to_devices_by_what_they_see) {
    for (int rank = 0; rank < 4; ++rank) {
        BOOST_TEST(device_of_rank(1, rank, 4, false) == 0);  // a scheduler gave each its own
        BOOST_TEST(device_of_rank(4, rank, 4, false) == rank);
        BOOST_TEST(device_of_rank(8, rank, 4, true) == rank);
        BOOST_TEST(device_of_rank(2, rank, 4, true) == rank % 2);
        Error const error = error_of([&] { device_of_rank(2, rank, 4, false); });
        BOOST_TEST((error.code() == ExitCode::usage));
        BOOST_TEST(contains(error.what(), "4 ranks of a host see 2 CUDA devices"));
        BOOST_TEST(contains(error.what(), "--allow-gpu-sharing"));
    }
}

BOOST_AUTO_TEST_CASE(without_a_device_auto_computes_on_the_host) {
    BOOST_REQUIRE(hidden == 0);
    Options const options = parsed({"--threads", "3"});
    Processor const processor = make_processor(test_world(), options);
    BOOST_TEST(processor.on_host());
    BOOST_TEST((processor.precision == Precision::fp32));
    BOOST_TEST(processor.device == "host");
    BOOST_TEST(contains(processor.note, "step times say nothing about a GPU"));
    BOOST_TEST(contains(processor.backend->description(), "3 threads"));
    auto const reference = make_reference_backend(test_world(), processor, options);
    BOOST_TEST(reference != nullptr);
}

BOOST_AUTO_TEST_CASE(cuda_by_name_without_a_device_says_why_on_every_rank) {
    Error const error = refused(parsed({"--device", "cuda"}));
    BOOST_TEST((error.code() == ExitCode::environment));
    BOOST_TEST(contains(error.what(), "--device cuda: no CUDA device can be used: "));
    BOOST_TEST(contains(error.what(), "--device cpu"));
    BOOST_TEST(!contains(error.what(), "\n"));
    BOOST_TEST(!contains(error.what(), "[rank"));
}

BOOST_AUTO_TEST_CASE(what_only_a_gpu_does_is_refused_where_auto_finds_none) {
    for (std::vector<std::string> const& more :
         {std::vector<std::string>{"--precision", "bf16"}, {"--transport", "ipc"}}) {
        Error const error = refused(parsed(more));
        BOOST_TEST((error.code() == ExitCode::usage));
        BOOST_TEST(contains(error.what(), more[0] + " " + more[1] + " needs a GPU (none here: "),
                   error.what());
    }
}

BOOST_AUTO_TEST_CASE(a_rank_on_another_processor_stops_all) {
    if (test_world().size() == 1) {
        return;
    }
    Options options = parsed({});
    options.device = test_world().root() ? DeviceKind::cuda : DeviceKind::automatic;
    Error const error = refused(options);
    BOOST_TEST((error.code() == ExitCode::environment));
    BOOST_TEST(contains(error.what(), "[rank 0 "), error.what());
}

BOOST_AUTO_TEST_CASE(wires_are_told_what_the_options_say) {
    WireOptions const wires = wire_options(
        parsed({"--transport", "nccl", "--allow-gpu-sharing", "--nccl-max-ctas", "4"}));
    BOOST_TEST((wires.transport == Transport::nccl));
    BOOST_TEST(wires.allow_gpu_sharing);
    BOOST_TEST(wires.nccl_max_ctas == 4);
}
