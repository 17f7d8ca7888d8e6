// What breaks under way on a device: a kernel that leaves its memory, a peer whose NCCL is gone.
// The last rank fails in its second step; each rank's trace must hold the first.
//
// usage: fault_device kernel|peer DIR
#include <chrono>
#include <filesystem>
#include <string_view>
#include <thread>

#include "cuda/clock.hpp"
#include "cuda/cuda_device.hpp"
#include "io/trace.hpp"
#include "mpi/grid.hpp"

namespace {

using namespace cpstep;
using namespace std::chrono_literals;

constexpr std::int64_t rows = 256;
constexpr std::int64_t cols = 1024;

std::unique_ptr<Backend> make_backend(World const& world) {
    std::string why;
    int const count = cuda_device_count(why);
    require(count > 0, ExitCode::environment, "no CUDA device: {}", why);
    return make_cuda_backend({.ordinal = world.local_rank() % count,
                              .precision = Precision::fp32,
                              .attention = AttentionBackend::reference,
                              .deadline = world.deadline()});
}

/// Rows far behind the last allocation.
void read_outside(Backend& backend, Tensor source) {
    Buffer const target(backend, 1, cols, DType::f32);
    Buffer const index = uploaded<std::int32_t>(backend, {1 << 30});
    backend.gather_rows(target, source, index);
    backend.synchronize();
}

/// One exchange with the neighbours in a traced step.
void step(Trace& trace, Backend& backend, Comm& cp, Tensor recv, Tensor send) {
    trace.begin_step("cp2");
    {
        Span const span = trace.span(SpanKind::pass, "exchange");
        cp.end_call(cp.begin_exchange("cp.kv", send, (cp.rank() + 1) % cp.size(), recv,
                                      (cp.rank() + cp.size() - 1) % cp.size()));
        backend.synchronize();
    }
    trace.end_step();
}

void run(World& world, bool peer, std::filesystem::path const& output) {
    world.set_deadline(20s);
    auto const backend = make_backend(world);
    RankFileInfo info;
    info.rank = world.rank();
    info.world = world.size();
    info.epoch_ns = now_ns();
    Trace trace(output, info, {}, {});
    trace.set_backend(backend.get());
    bool const last = world.rank() + 1 == world.size();
    try {
        auto const wires = make_wires(world, *backend,
                                      {.transport = peer ? Transport::nccl : Transport::automatic,
                                       .allow_gpu_sharing = true});
        Grid grid(world, make_grid_shape(world.size(), world.size()), *wires);
        grid.set_observer(&trace);
        Buffer const send(*backend, rows, cols, DType::f32);
        Buffer const recv(*backend, rows, cols, DType::f32);
        backend->zero(send);
        step(trace, *backend, grid.cp(), recv, send);
        require(!last || !peer, ExitCode::nonfinite, "NCCL is given up while the stack unwinds");
        if (last) {
            read_outside(*backend, send);
        }
        step(trace, *backend, grid.cp(), recv, send);
    } catch (Error const& error) {
        if (error.code() != ExitCode::nonfinite) {
            throw;
        }
        std::this_thread::sleep_for(60s);  // MPI still lives; the others end the job
    }
}

}  // namespace

int main(int argc, char** argv) {
    World world(argc, argv);
    try {
        require(argc == 3, ExitCode::usage, "usage: fault_device kernel|peer DIR");
        run(world, std::string_view(argv[1]) == "peer", argv[2]);
        return 0;
    } catch (Error const& error) {
        world.abort(error.code(), error.what());
    } catch (std::exception const& error) {
        world.abort(ExitCode::internal, error.what());
    }
}
