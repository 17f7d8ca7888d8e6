// Rank 1 fails while the others wait for it in an exchange: the job must end at once, with one
// message.
#include "mpi/grid.hpp"

namespace {

using namespace cpstep;

void run(World& world) {
    auto const backend = make_host_backend(1);
    auto const wires = make_wires(world, *backend, {});
    Grid grid(world, make_grid_shape(world.size(), world.size()), *wires);
    std::vector<float> send(1 << 16, 1.0F);
    std::vector<float> recv(send.size());
    Comm& cp = grid.cp();
    auto const rows = static_cast<std::int64_t>(send.size());
    for (int step = 0; step < 4; ++step) {
        require(world.rank() != 1 || step < 2, ExitCode::nonfinite, "planted failure");
        cp.end_call(cp.begin_exchange(
            "cp.kv", {send.data(), DType::f32, rows, 1, 1}, (cp.rank() + 1) % cp.size(),
            {recv.data(), DType::f32, rows, 1, 1}, (cp.rank() + cp.size() - 1) % cp.size()));
    }
}

}  // namespace

int main(int argc, char** argv) {
    World world(argc, argv);
    try {
        run(world);
        return 0;
    } catch (Error const& error) {
        world.abort(error.code(), error.what());
    } catch (std::exception const& error) {
        world.abort(ExitCode::internal, error.what());
    }
}
