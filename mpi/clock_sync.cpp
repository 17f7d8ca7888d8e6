#include "mpi/clock_sync.hpp"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <sstream>

#include "mpi/comm_bodies.hpp"
#include "mpi/mpi_group.hpp"

namespace cpstep {
namespace {

constexpr int rounds = 200;
constexpr int clock_tag = 32766;  // on MPI_COMM_WORLD, which groups are formed on with 32767

/// One message to or from a peer: a stamp, which questions leave empty.
class StampMail {
  public:
    StampMail(World const& world, int peer)
        : world_(world), peer_(peer), stamp_(std::make_unique<std::int64_t>(0)) {}

    void send(std::int64_t stamp) {
        *stamp_ = stamp;
        MPI_Request request = MPI_REQUEST_NULL;
        MPI_CHECK(MPI_Isend(stamp_.get(), sizeof(std::int64_t), MPI_BYTE, peer_, clock_tag,
                            MPI_COMM_WORLD, &request));
        finish(request);
    }
    std::int64_t receive() {
        MPI_Request request = MPI_REQUEST_NULL;
        MPI_CHECK(MPI_Irecv(stamp_.get(), sizeof(std::int64_t), MPI_BYTE, peer_, clock_tag,
                            MPI_COMM_WORLD, &request));
        finish(request);
        return *stamp_;
    }

  private:
    void finish(MPI_Request request) {
        auto const done = [&] {
            int flag = 0;
            MPI_CHECK(MPI_Test(&request, &flag, MPI_STATUS_IGNORE));
            return flag != 0;
        };
        wait_for(
            done, world_.deadline(), [&] { return fmt::format("the clock of rank {}", peer_); },
            stamp_);
    }

    World const& world_;
    int peer_;
    std::unique_ptr<std::int64_t> stamp_;
};

ClockReading ask(World const& world, int server, std::function<std::int64_t()> const& clock) {
    StampMail mail(world, server);
    std::vector<ClockSample> samples(rounds);
    for (ClockSample& sample : samples) {
        sample.sent_ns = clock();
        mail.send(0);
        sample.remote_ns = mail.receive();
        sample.received_ns = clock();
    }
    return best_reading(samples);
}

void answer(World const& world, int client, std::function<std::int64_t()> const& clock) {
    StampMail mail(world, client);
    for (int i = 0; i < rounds; ++i) {
        (void)mail.receive();
        mail.send(clock());
    }
}

}  // namespace

ClockReading best_reading(std::span<ClockSample const> samples) {
    require(!samples.empty(), ExitCode::internal, "a clock reading without samples");
    auto const trip = [](ClockSample const& s) { return s.received_ns - s.sent_ns; };
    ClockSample const& best = *std::ranges::min_element(samples, {}, trip);
    std::int64_t const middle = best.sent_ns + trip(best) / 2;
    return {
        .at_ns = middle, .offset_ns = best.remote_ns - middle, .bound_ns = (trip(best) + 1) / 2};
}

double RankClock::drift_ppb() const {
    std::int64_t const passed = end.at_ns - start.at_ns;
    return passed > 0 ? 1e9 * static_cast<double>(end.offset_ns - start.offset_ns) /
                            static_cast<double>(passed)
                      : 0.0;
}

std::int64_t RankClock::bound_ns() const {
    return std::max(start.bound_ns, end.bound_ns + std::abs(end.offset_ns - start.offset_ns));
}

std::int64_t pair_bound_ns(std::span<RankClock const> clocks) {
    std::int64_t largest = 0;
    std::int64_t second = 0;
    for (RankClock const& clock : clocks) {
        second = std::max(second, std::min(largest, clock.bound_ns()));
        largest = std::max(largest, clock.bound_ns());
    }
    return largest + second;
}

std::vector<int> clock_servers(std::vector<std::string> const& hosts, int flat_up_to) {
    std::vector<int> servers(hosts.size(), 0);
    std::map<std::string, int> leaders;
    for (int rank = 0; rank < std::ssize(hosts); ++rank) {
        auto const [leader, first] = leaders.emplace(hosts[static_cast<std::size_t>(rank)], rank);
        bool const flat = std::ssize(hosts) <= flat_up_to;
        servers[static_cast<std::size_t>(rank)] = flat || first ? 0 : leader->second;
    }
    servers.front() = -1;
    return servers;
}

std::vector<ClockReading> chained(std::vector<ClockReading> readings,
                                  std::vector<int> const& servers) {
    std::vector<ClockReading> const direct = readings;
    for (std::size_t rank = 0; rank < readings.size(); ++rank) {
        for (int via = servers[rank]; via > 0; via = servers[static_cast<std::size_t>(via)]) {
            readings[rank].offset_ns += direct[static_cast<std::size_t>(via)].offset_ns;
            readings[rank].bound_ns += direct[static_cast<std::size_t>(via)].bound_ns;
        }
    }
    return readings;
}

std::vector<ClockReading> read_clocks(World& world, std::vector<int> const& servers,
                                      std::function<std::int64_t()> const& clock) {
    ClockReading own{.at_ns = clock()};
    int const server = servers[static_cast<std::size_t>(world.rank())];
    // A rank asks before it answers: no two wait for each other.
    if (server >= 0) {
        own = ask(world, server, clock);
    }
    for (int client = 0; client < world.size(); ++client) {
        if (servers[static_cast<std::size_t>(client)] == world.rank()) {
            answer(world, client, clock);
        }
    }
    std::vector<ClockReading> readings;
    for (std::string const& text :
         world.gather(fmt::format("{} {} {}", own.at_ns, own.offset_ns, own.bound_ns))) {
        ClockReading& reading = readings.emplace_back();
        std::istringstream(text) >> reading.at_ns >> reading.offset_ns >> reading.bound_ns;
    }
    return chained(std::move(readings), servers);
}

std::vector<ClockReading> read_clocks(World& world) {
    return read_clocks(world, clock_servers(world.gather(world.host())));
}

}  // namespace cpstep
