// The MPI job: ranks, control messages outside the measured step, and the end of all ranks
// together.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cuda/error.hpp"
#include "mpi/comm.hpp"

namespace cpstep {

/// A failure that every rank knows and throws alike: rank 0 prints it, all finalise and leave with
/// the code.
class AgreedError : public Error {
  public:
    using Error::Error;
};

/// Initialises MPI (FUNNELED, MPI_ERRORS_RETURN) and finalises it when destroyed; the first object
/// of main. Every wait polls with a deadline and yields the core between polls, so idle ranks do
/// not starve others on a small machine.
class World {
  public:
    World(int& argc, char**& argv);
    World(World const&) = delete;
    World& operator=(World const&) = delete;
    ~World();

    int rank() const { return rank_; }
    int size() const { return size_; }
    int local_rank() const { return local_rank_; }  ///< rank among those of this host
    int local_size() const { return local_size_; }
    std::string const& host() const { return host_; }
    bool root() const { return rank_ == 0; }
    /// Library version string, one line.
    static std::string mpi_version();

    /// Longest time one wait may take (default 120 s); past it Error(communication).
    void set_deadline(std::chrono::milliseconds deadline) { deadline_ = deadline; }
    std::chrono::milliseconds deadline() const { return deadline_; }

    void barrier();
    double max(double value);
    /// Elementwise sum over ranks into every rank's array.
    void sum(std::span<double> values);
    /// Every rank's string on every rank, in rank order.
    std::vector<std::string> gather(std::string const& text);
    /// Rank 0's string on every rank.
    std::string broadcast(std::string const& text);

    /// Run `work` on every rank; if it throws on any, all ranks throw one AgreedError with the text
    /// and code of the lowest failing rank, prefixed by "[rank r host] " when size > 1 and not all
    /// ranks failed alike. For set-up work without communication inside.
    void collectively(std::function<void()> const& work);

    /// Print "cpstep: [rank r/n host] text" and end every rank with the code. Never returns.
    [[noreturn]] void abort(ExitCode code, std::string const& text) noexcept;

    /// A wire over MPI for host memory among `members` (world ranks, in group order); all members
    /// call it with the same list. Groups of one get the silent wire.
    std::unique_ptr<Comm> make_host_comm(std::vector<int> const& members);

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
    int rank_ = 0;
    int size_ = 1;
    int local_rank_ = 0;
    int local_size_ = 1;
    std::string host_;
    std::chrono::milliseconds deadline_{120'000};
};

}  // namespace cpstep
