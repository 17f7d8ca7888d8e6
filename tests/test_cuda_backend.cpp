// Memory, copies, queues and failures of the CUDA backend.
#define BOOST_TEST_MODULE cuda_backend
#include <algorithm>
#include <atomic>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cuda/cuda_backend.hpp"
#include "tests/errors.hpp"
#include "tests/gpu_fixture.hpp"

using namespace cpstep;
using namespace cpstep::test;
using namespace std::chrono_literals;

namespace {

constexpr std::int64_t mebi = std::int64_t{1} << 20;

std::vector<std::int32_t> count_up(std::int64_t n, std::int32_t from = 0) {
    std::vector<std::int32_t> values(static_cast<std::size_t>(n));
    std::iota(values.begin(), values.end(), from);
    return values;
}

std::vector<std::int32_t> integers(Backend& backend, Tensor from) {
    std::vector<std::int32_t> values(static_cast<std::size_t>(from.elements()));
    backend.download(values.data(), from);
    return values;
}

Buffer floats(Backend& backend, std::int64_t count) {
    return Buffer(backend, count, 1, DType::f32);
}

/// Work on the compute queue that lasts until open() is called.
class Gate {
  public:
    explicit Gate(cudaStream_t stream) { CUDA_CHECK(cudaLaunchHostFunc(stream, wait, this)); }
    Gate(Gate const&) = delete;
    Gate& operator=(Gate const&) = delete;
    ~Gate() {
        open();
        while (!passed_) {
            std::this_thread::yield();
        }
    }
    void open() { open_ = true; }

  private:
    static void wait(void* self) {
        auto& gate = *static_cast<Gate*>(self);
        while (!gate.open_) {
            std::this_thread::sleep_for(1ms);
        }
        gate.passed_ = true;
    }

    std::atomic<bool> open_ = false, passed_ = false;
};

struct Watcher final : QueueWatcher {
    void check() override { require(!fails, ExitCode::communication, "the wire broke"); }
    std::string pending() const override { return gave_up ? "" : "exchange 'test' with rank 1"; }
    void give_up() noexcept override { gave_up = true; }
    void settle() override { ++settled; }

    int settled = 0;
    bool fails = false;
    bool gave_up = false;
};

}  // namespace

BOOST_AUTO_TEST_CASE(a_failed_call_is_told_with_its_name_and_the_code_it_leads_to) {
    auto const error = [](cudaError_t rc) {
        return error_of([&] { check_cuda(rc, "cudaMalloc(&p, 8)"); });
    };
    BOOST_CHECK_NO_THROW(check_cuda(cudaSuccess, "cudaMalloc(&p, 8)"));
    BOOST_TEST((error(cudaErrorMemoryAllocation).code() == ExitCode::input_data));
    BOOST_TEST((error(cudaErrorNoDevice).code() == ExitCode::environment));
    BOOST_TEST((error(cudaErrorInvalidValue).code() == ExitCode::internal));
    BOOST_TEST(contains(error(cudaErrorInvalidValue).what(), "cudaMalloc: "));
    BOOST_TEST(!contains(error(cudaErrorInvalidValue).what(), "&p"));
    BOOST_TEST((error(cudaErrorIllegalAddress).code() == ExitCode::internal));
    BOOST_TEST(contains(error(cudaErrorIllegalAddress).what(), "the device context is lost"));
    BOOST_TEST((error(cudaErrorNoKernelImageForDevice).code() == ExitCode::environment));
    BOOST_TEST(contains(error(cudaErrorNoKernelImageForDevice).what(), "sm_"));
    BOOST_TEST(contains(error(cudaErrorNoKernelImageForDevice).what(), "CMAKE_CUDA_ARCHITECTURES"));
}

BOOST_AUTO_TEST_CASE(reports_name_the_device_the_precision_and_the_libraries) {
    if (!gpu_present()) {
        return;
    }
    CudaDeviceInfo const info = cuda_device_info(0);
    BOOST_TEST(info.capability >= 80);
    BOOST_TEST(info.memory_bytes > 1024 * mebi);
    BOOST_TEST(info.free_bytes > 0);
    BOOST_TEST(!info.pci_bus_id.empty());
    for (Precision const precision : {Precision::fp32, Precision::bf16}) {
        Backend& backend = gpu(precision);
        std::string const text = backend.description();
        BOOST_TEST_MESSAGE(text << " | " << cuda_versions());
        for (std::string const& part :
             {info.name, fmt::format("(device 0, sm_{})", info.capability),
              std::string(precision == Precision::bf16 ? "bf16" : "fp32"),
              std::string(", attention "), std::string("cuBLASLt ")}) {
            BOOST_TEST(contains(text, part), "'" << part << "' is not in: " << text);
        }
        BOOST_TEST((backend.compute_dtype() == dtype_of_precision(precision)));
        BOOST_REQUIRE(backend.queues() != nullptr);
        BOOST_TEST(backend.queues()->ordinal() == 0);
        BOOST_TEST(backend.peak_bytes() >= 32 * mebi);
    }
    BOOST_TEST(contains(cuda_versions(), "CUDA "));
}

BOOST_AUTO_TEST_CASE(a_device_that_is_not_there_is_an_error_of_the_environment) {
    if (!gpu_present()) {
        return;
    }
    for (int const ordinal : {-1, 99}) {
        Error const error = error_of([&] { (void)make_cuda_backend({.ordinal = ordinal}); });
        BOOST_TEST((error.code() == ExitCode::environment));
        BOOST_TEST(contains(error.what(), fmt::format("no CUDA device {}", ordinal)));
    }
}

BOOST_AUTO_TEST_CASE(uploads_and_downloads_of_any_size_and_stride_are_exact) {
    if (!gpu_present()) {
        return;
    }
    Backend& backend = gpu(Precision::fp32);
    struct Shape {
        std::int64_t rows, cols, stride;
    };
    // One element; strided; more than the staging memory: contiguous, in rows, in one wide row.
    for (Shape const& s : {Shape{1, 1, 1},
                           {3, 5, 5},
                           {37, 11, 13},
                           {1, 5 * mebi + 3, 5 * mebi + 3},
                           {3000, 999, 1024},
                           {3, 2 * mebi + 1, 2 * mebi + 8},
                           {0, 4, 4}}) {
        Buffer const whole(backend, std::max<std::int64_t>(s.rows, 1), s.stride, DType::i32);
        std::int64_t const all = whole.tensor().elements();
        backend.upload(whole, std::vector<std::int32_t>(static_cast<std::size_t>(all), -7).data());
        Tensor const view = whole.tensor().row_range(0, s.rows).columns(0, s.cols);
        auto values = count_up(s.rows * s.cols);
        auto const want = values;
        backend.upload(view, values.data());
        std::fill(values.begin(), values.end(), -1);  // the upload is over, or has its own copy
        BOOST_TEST((integers(backend, view) == want));
        auto const everything = integers(backend, whole);
        auto const untouched = std::count(everything.begin(), everything.end(), -7);
        BOOST_TEST(untouched == all - s.rows * s.cols);
    }
    backend.upload(Tensor{}, nullptr);
    backend.download(nullptr, Tensor{});
    backend.copy(Tensor{}, Tensor{});
    backend.zero(Tensor{});
    backend.add(Tensor{}, Tensor{});
}

BOOST_AUTO_TEST_CASE(an_upload_does_not_wait_for_the_device_and_keeps_its_own_copy) {
    if (!gpu_present()) {
        return;
    }
    Backend& backend = gpu(Precision::fp32);
    std::int64_t const n = 1000, pieces = 200;
    Buffer const all(backend, pieces, n, DType::i32);
    {
        Gate gate(backend.queues()->compute());
        for (std::int64_t i = 0; i < pieces; ++i) {
            backend.upload(all.tensor().row_range(i, 1),
                           count_up(n, static_cast<std::int32_t>(i * n)).data());
        }
    }
    BOOST_TEST((integers(backend, all) == count_up(n * pieces)));
}

BOOST_AUTO_TEST_CASE(copies_convert_and_sums_add) {
    if (!gpu_present()) {
        return;
    }
    Backend& backend = gpu(Precision::bf16);
    auto const values = random_values(35, 1);
    DeviceMatrix const f(backend, values, 5, 7, DType::f32, 9);
    DeviceMatrix const h(backend, 5, 7, DType::bf16, 8);
    backend.copy(h, f);
    BOOST_TEST((h.values() == rounded(values, DType::bf16)));
    backend.add(f, h);
    auto want = values;
    for (float& value : want) {
        value += from_bf16(to_bf16(value));
    }
    BOOST_TEST((f.values() == want));
    backend.zero(h);
    BOOST_TEST((h.values() == std::vector<float>(35, 0.0F)));
    BOOST_TEST(f.gaps_untouched());
    BOOST_TEST(h.gaps_untouched());
}

BOOST_AUTO_TEST_CASE(memory_is_aligned_and_pieces_do_not_overlap) {
    if (!gpu_present()) {
        return;
    }
    Backend& backend = gpu(Precision::fp32);
    std::vector<Buffer> pieces;
    std::set<std::uintptr_t> places;
    std::int32_t value = 0;
    for (std::int64_t const n : {0L, 1L, 63L, 65L, 1000L, 250'001L, 262'145L, 3'000'000L}) {
        for (int i = 0; i < 3; ++i, ++value) {
            Buffer const& piece = pieces.emplace_back(backend, n, 1, DType::i32);
            auto const place = reinterpret_cast<std::uintptr_t>(piece.tensor().data);
            BOOST_TEST(place % 256 == 0U);
            BOOST_TEST(places.insert(place).second);
            std::vector<std::int32_t> const same(static_cast<std::size_t>(n), value);
            backend.upload(piece, same.data());
        }
    }
    value = 0;
    for (Buffer const& piece : pieces) {
        std::vector<std::int32_t> const want(static_cast<std::size_t>(piece.tensor().rows), value);
        BOOST_TEST((integers(backend, piece) == want));
        ++value;
    }
}

BOOST_AUTO_TEST_CASE(
    too_much_memory_is_an_error_that_names_the_block_and_leaves_the_device_usable) {
    if (!gpu_present()) {
        return;
    }
    Backend& backend = gpu(Precision::fp32);
    auto const total = static_cast<std::size_t>(cuda_device_info(0).memory_bytes);
    // More than there is; all of it, of which some is taken.
    for (std::size_t const bytes : {std::size_t{1} << 62, total}) {
        Error const error = error_of([&] { (void)backend.allocate(bytes, "all the samples"); });
        BOOST_TEST((error.code() == ExitCode::input_data));
        for (std::string const& part :
             {std::string("device memory is short"), fmt::format("{} bytes", bytes),
              std::string("for all the samples"), std::string("--max-tokens-per-gpu")}) {
            BOOST_TEST(contains(error.what(), part), part << " is not in: " << error.what());
        }
    }
    Buffer const small = floats(backend, 10);
    backend.zero(small);
    BOOST_TEST(backend.squared_norm(small) == 0.0);
}

BOOST_AUTO_TEST_CASE(released_memory_is_used_again_but_never_under_queued_work) {
    if (!gpu_present()) {
        return;
    }
    Backend& backend = gpu(Precision::fp32);
    CudaQueues& queues = *backend.queues();
    std::int64_t const n = 100'000, turns = 400;  // 160 MB of small pieces, five slabs at once
    Buffer const by_compute(backend, turns, n, DType::i32), by_wire(backend, turns, n, DType::i32);
    std::int64_t const before = backend.peak_bytes();
    for (std::int64_t i = 0; i < turns; ++i) {
        Buffer const piece(backend, 1, n, DType::i32);
        backend.upload(piece, count_up(n, static_cast<std::int32_t>(i)).data());
        backend.copy(by_compute.tensor().row_range(i, 1), piece);
        queues.wire_after_compute();
        Tensor const to = by_wire.tensor().row_range(i, 1);
        CUDA_CHECK(cudaMemcpyAsync(to.data, piece.tensor().data, to.bytes(),
                                   cudaMemcpyDeviceToDevice, queues.wire()));
    }  // released while both queues may still read it
    backend.synchronize();
    for (std::int64_t i = 0; i < turns; ++i) {
        auto const want = count_up(n, static_cast<std::int32_t>(i));
        BOOST_TEST((integers(backend, by_compute.tensor().row_range(i, 1)) == want));
        BOOST_TEST((integers(backend, by_wire.tensor().row_range(i, 1)) == want));
    }
    for (int i = 0; i < 50; ++i) {
        Buffer const large = floats(backend, 16 * mebi);
        backend.zero(large);
    }
    BOOST_TEST(backend.peak_bytes() <= before + (64 + 32) * mebi);
}

BOOST_AUTO_TEST_CASE(what_a_start_takes_for_a_moment_is_not_in_the_peak) {
    if (!gpu_present()) {
        return;
    }
    auto const backend =
        make_cuda_backend({.precision = Precision::fp32, .attention = AttentionBackend::reference});
    BOOST_TEST(backend->peak_bytes() == (32 + 32) * mebi);  // a slab, the workspace of products
}

BOOST_AUTO_TEST_CASE(a_piece_tells_its_block_and_no_two_blocks_share_an_id) {
    if (!gpu_present()) {
        return;
    }
    Backend& backend = gpu(Precision::fp32);
    CudaQueues const& queues = *backend.queues();
    std::set<std::uint64_t> ids;
    for (std::int64_t const n : {10L, 4 * mebi}) {
        for (int i = 0; i < 3; ++i) {
            Buffer const piece = floats(backend, n);
            auto* const data = static_cast<std::byte*>(piece.tensor().data);
            IpcBlock const block = queues.block_of(data);
            auto* const base = static_cast<std::byte*>(block.base);
            BOOST_TEST((base <= data));
            BOOST_TEST((data + piece.tensor().bytes() <= base + block.bytes));
            BOOST_TEST(queues.block_of(data + piece.tensor().bytes() - 1).id == block.id);
            BOOST_TEST(block.bytes % (2 * mebi) == 0U);
            BOOST_TEST(block.id > 0U);
            BOOST_TEST(ids.insert(block.id).second == (n > 10 || i == 0));
        }
    }
    int outside = 0;
    BOOST_CHECK_THROW((void)queues.block_of(&outside), Error);
    BOOST_CHECK_THROW((void)queues.block_of(nullptr), Error);
}

BOOST_AUTO_TEST_CASE(the_squared_norm_is_summed_in_double) {
    if (!gpu_present()) {
        return;
    }
    for (Precision const precision : {Precision::fp32, Precision::bf16}) {
        Backend& backend = gpu(precision);
        for (std::int64_t const n : {1L, 1000L, 1'000'003L}) {
            auto const values = random_values(n, 9);
            double want = 0;
            for (float const value : values) {
                want += static_cast<double>(value) * value;
            }
            DeviceMatrix const x(backend, values, n, 1, DType::f32);
            BOOST_TEST(std::abs(backend.squared_norm(x) - want) <= 1e-12 * want);
        }
        BOOST_TEST(backend.squared_norm(floats(backend, 0)) == 0.0);
    }
}

BOOST_AUTO_TEST_CASE(a_wait_past_the_deadline_names_what_is_pending_and_lets_wires_give_up) {
    if (!gpu_present()) {
        return;
    }
    for (bool const watched : {true, false}) {
        auto const backend = make_cuda_backend({.precision = Precision::fp32, .deadline = 60s});
        backend->set_deadline(300ms);
        Watcher watcher;
        if (watched) {
            backend->queues()->watch(&watcher);
        }
        Gate gate(backend->queues()->compute());
        auto const start = std::chrono::steady_clock::now();
        Error const error = error_of([&] { backend->synchronize(); });
        auto const waited = std::chrono::steady_clock::now() - start;
        BOOST_TEST((error.code() == ExitCode::communication));
        BOOST_TEST(contains(error.what(), "timed out after 0.3 s"));
        BOOST_TEST(contains(error.what(), watched ? "waits for exchange 'test' with rank 1"
                                                  : "with no transfer open"));
        BOOST_TEST(watcher.gave_up == watched);
        BOOST_TEST((waited >= 300ms && waited < 10s));
        backend->queues()->unwatch(&watcher);
    }
}

BOOST_AUTO_TEST_CASE(a_wire_settles_before_its_queue_is_used_or_waited_for) {
    if (!gpu_present()) {
        return;
    }
    Backend& backend = gpu(Precision::fp32);
    Watcher watcher;
    backend.queues()->watch(&watcher);
    backend.queues()->wire_after_compute();
    BOOST_TEST(watcher.settled == 1);
    backend.queues()->compute_after_wire();
    BOOST_TEST(watcher.settled == 2);
    backend.synchronize();
    BOOST_TEST(watcher.settled == 3);
    backend.queues()->unwatch(&watcher);
}

BOOST_AUTO_TEST_CASE(a_wait_ends_with_the_error_of_a_wire_that_broke) {
    if (!gpu_present()) {
        return;
    }
    auto const backend = make_cuda_backend({.precision = Precision::fp32, .deadline = 60s});
    Watcher watcher;
    backend->queues()->watch(&watcher);
    backend->synchronize();
    BOOST_TEST(!watcher.gave_up);
    watcher.fails = true;
    Gate gate(backend->queues()->compute());
    Error const error = error_of([&] { backend->synchronize(); });
    BOOST_TEST(contains(error.what(), "the wire broke"));
    BOOST_TEST(watcher.gave_up);
    backend->queues()->unwatch(&watcher);
}
