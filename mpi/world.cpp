#include "mpi/world.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <exception>
#include <limits>
#include <optional>

#include "mpi/comm_bodies.hpp"
#include "mpi/mpi_group.hpp"

namespace cpstep {
namespace {

/// Memory that MPI reads and writes until a call has finished.
template <class T>
using Message = std::unique_ptr<std::vector<T>>;

template <class T>
Message<T> make_message(std::size_t count) {
    return std::make_unique<std::vector<T>>(count);
}

/// Wait for `request`, which reads and writes `messages`.
template <class... T>
void finish(MPI_Request request, World const& world, std::string_view what,
            Message<T>&... messages) {
    auto const done = [&] {
        int flag = 0;
        MPI_CHECK(MPI_Test(&request, &flag, MPI_STATUS_IGNORE));
        return flag != 0;
    };
    wait_for(
        done, world.deadline(), [&] { return fmt::format("{} ({} ranks)", what, world.size()); },
        messages...);
}

int to_count(std::size_t bytes) {
    require(bytes <= static_cast<std::size_t>(std::numeric_limits<int>::max()), ExitCode::internal,
            "a control message of {} bytes exceeds 2 GiB", bytes);
    return static_cast<int>(bytes);
}

/// What stopped `work`; nothing if it went through.
std::optional<Error> failure_of(std::function<void()> const& work) {
    try {
        work();
    } catch (Error const& error) {
        return error;
    } catch (std::exception const& error) {
        return Error(ExitCode::internal, error.what());
    }
    return std::nullopt;
}

std::sig_atomic_t volatile code_of_alarm = 0;

extern "C" void leave_on_alarm(int) {
    _exit(code_of_alarm);
}

/// MPI_Abort can hang when the launcher is gone: leave after `seconds` whatever happens.
void leave_within(unsigned seconds, int code) noexcept {
    code_of_alarm = code;
    (void)std::signal(SIGALRM, leave_on_alarm);
    sigset_t alarm_only;
    sigemptyset(&alarm_only);
    sigaddset(&alarm_only, SIGALRM);
    sigprocmask(SIG_UNBLOCK, &alarm_only, nullptr);
    alarm(seconds);
}

}  // namespace

void fail_timed_out(std::chrono::milliseconds deadline, std::string_view what) {
    fail(
        ExitCode::communication,
        "timed out after {:g} s waiting for {}; a peer has died, skipped this call or needs longer "
        "(--comm-timeout)",
        std::chrono::duration<double>(deadline).count(), what);
}

struct World::Impl {
    MPI_Comm control = MPI_COMM_NULL;  // keeps control messages apart from those of the wires
};

World::World(int& argc, char**& argv) : impl_(std::make_unique<Impl>()) {
    try {
        int provided = MPI_THREAD_SINGLE;
        MPI_CHECK(MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided));
        MPI_CHECK(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
        MPI_CHECK(MPI_Comm_rank(MPI_COMM_WORLD, &rank_));
        MPI_CHECK(MPI_Comm_size(MPI_COMM_WORLD, &size_));
        std::array<char, MPI_MAX_PROCESSOR_NAME> name{};
        int length = 0;
        MPI_CHECK(MPI_Get_processor_name(name.data(), &length));
        host_ = name.data();
        require(provided >= MPI_THREAD_FUNNELED, ExitCode::environment,
                "this MPI library does not allow threads beside MPI calls (MPI_THREAD_FUNNELED); "
                "use one built with thread support");
        MPI_CHECK(MPI_Comm_dup(MPI_COMM_WORLD, &impl_->control));
        // Not SLURM_LOCALID, which is 0 for every rank under mpirun.
        MPI_Comm here = MPI_COMM_NULL;
        MPI_CHECK(
            MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &here));
        MPI_CHECK(MPI_Comm_rank(here, &local_rank_));
        MPI_CHECK(MPI_Comm_size(here, &local_size_));
        MPI_CHECK(MPI_Comm_free(&here));
    } catch (Error const& error) {
        abort(error.code(), error.what());
    }
}

World::~World() {
    if (std::uncaught_exceptions() > 0) {
        return;  // MPI_Finalize would wait for peers that wait for this rank
    }
    try {
        barrier();  // MPI_Finalize itself waits without a deadline, and spins
        MPI_CHECK(MPI_Comm_free(&impl_->control));
        MPI_CHECK(MPI_Finalize());
    } catch (Error const& error) {
        abort(error.code(), error.what());
    }
}

std::string World::mpi_version() {
    std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
    int length = 0;
    MPI_CHECK(MPI_Get_library_version(text.data(), &length));
    std::string const version(text.data());
    return version.substr(0, version.find('\n'));
}

void World::barrier() {
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_CHECK(MPI_Ibarrier(impl_->control, &request));
    finish(request, *this, "a barrier");
}

double World::max(double value) {
    auto message = make_message<double>(1);
    message->front() = value;
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_CHECK(MPI_Iallreduce(MPI_IN_PLACE, message->data(), 1, MPI_DOUBLE, MPI_MAX, impl_->control,
                             &request));
    finish(request, *this, "a maximum over ranks", message);
    return message->front();
}

void World::sum(std::span<double> values) {
    auto message = make_message<double>(values.size());
    std::ranges::copy(values, message->begin());
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_CHECK(MPI_Iallreduce(MPI_IN_PLACE, message->data(), to_count(values.size()), MPI_DOUBLE,
                             MPI_SUM, impl_->control, &request));
    finish(request, *this, "a sum over ranks", message);
    std::ranges::copy(*message, values.begin());
}

std::vector<std::string> World::gather(std::string const& text) {
    auto const ranks = static_cast<std::size_t>(size_);
    auto sizes = make_message<int>(ranks);
    (*sizes)[static_cast<std::size_t>(rank_)] = to_count(text.size());
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_CHECK(MPI_Iallgather(MPI_IN_PLACE, 1, MPI_INT, sizes->data(), 1, MPI_INT, impl_->control,
                             &request));
    finish(request, *this, "the sizes of all ranks' texts", sizes);

    auto offsets = make_message<int>(ranks);
    std::size_t total = 0;
    for (std::size_t r = 0; r < ranks; ++r) {
        (*offsets)[r] = to_count(total);
        total += static_cast<std::size_t>((*sizes)[r]);
    }
    (void)to_count(total);
    auto bytes = make_message<char>(total);
    std::ranges::copy(text, bytes->begin() + (*offsets)[static_cast<std::size_t>(rank_)]);
    MPI_CHECK(MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_CHAR, bytes->data(), sizes->data(),
                              offsets->data(), MPI_CHAR, impl_->control, &request));
    finish(request, *this, "all ranks' texts", bytes, sizes, offsets);

    std::vector<std::string> texts;
    for (std::size_t r = 0; r < ranks; ++r) {
        auto const begin = bytes->begin() + (*offsets)[r];
        texts.emplace_back(begin, begin + (*sizes)[r]);
    }
    return texts;
}

std::string World::broadcast(std::string const& text) {
    auto size = make_message<int>(1);
    size->front() = to_count(text.size());
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_CHECK(MPI_Ibcast(size->data(), 1, MPI_INT, 0, impl_->control, &request));
    finish(request, *this, "the size of rank 0's text", size);

    int const count = size->front();
    auto bytes = make_message<char>(static_cast<std::size_t>(count));
    if (root()) {
        std::ranges::copy(text, bytes->begin());
    }
    MPI_CHECK(MPI_Ibcast(bytes->data(), count, MPI_CHAR, 0, impl_->control, &request));
    finish(request, *this, "rank 0's text", bytes);
    return {bytes->begin(), bytes->end()};
}

void World::collectively(std::function<void()> const& work) {
    std::optional<Error> const own = failure_of(work);
    // One byte of exit code before the text; empty where the work went through.
    std::string report;
    if (own) {
        report = static_cast<char>(own->code());
        report += own->what();
    }
    std::vector<std::string> const reports = gather(report);
    auto const first = std::ranges::find_if(reports, [](auto const& r) { return !r.empty(); });
    if (first == reports.end()) {
        return;
    }
    auto const code = static_cast<ExitCode>(first->front());
    std::string const text = first->substr(1);
    if (std::ranges::all_of(reports, [&](auto const& r) { return r == *first; })) {
        throw AgreedError(code, text);
    }
    auto const failing = static_cast<std::size_t>(first - reports.begin());
    throw AgreedError(code, fmt::format("[rank {} {}] {}", failing, gather(host_)[failing], text));
}

void World::abort(ExitCode code, std::string const& text) noexcept {
    int const status = static_cast<int>(code);
    leave_within(3, status);
    (void)std::fprintf(stderr, "cpstep: [rank %d/%d %s] %s\n", rank_, size_, host_.c_str(),
                       text.c_str());
    (void)std::fflush(nullptr);
    int begun = 0;
    int ended = 0;
    (void)MPI_Initialized(&begun);
    (void)MPI_Finalized(&ended);
    if (begun != 0 && ended == 0) {
        (void)MPI_Abort(MPI_COMM_WORLD, status);
    }
    _exit(status);
}

std::unique_ptr<Comm> World::make_host_comm(std::vector<int> const& members) {
    require(std::ranges::find(members, rank_) != members.end(), ExitCode::internal,
            "rank {} forms a group that it is not a member of", rank_);
    return members.size() == 1 ? make_self_comm(rank_) : make_mpi_comm(*this, members);
}

}  // namespace cpstep
