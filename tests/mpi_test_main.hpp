// A test that runs on several ranks. A rank whose test fails ends the job at once, because its
// peers may wait for it. Define BOOST_TEST_MODULE before including this.
#pragma once

#include <boost/test/results_collector.hpp>
#include <boost/test/tree/observer.hpp>
#include <boost/test/unit_test.hpp>

#include "mpi/world.hpp"

namespace cpstep::test {

/// Lives as long as the tests run: MPI's begin and end, and the end of all ranks at the first
/// failure.
class MpiSession : public boost::unit_test::test_observer {
  public:
    MpiSession()
        : world_(boost::unit_test::framework::master_test_suite().argc,
                 boost::unit_test::framework::master_test_suite().argv) {
        world_.set_deadline(std::chrono::seconds(30));
        current_ = this;
        boost::unit_test::framework::register_observer(*this);
    }
    MpiSession(MpiSession const&) = delete;
    MpiSession& operator=(MpiSession const&) = delete;
    ~MpiSession() override { boost::unit_test::framework::deregister_observer(*this); }

    void test_unit_finish(boost::unit_test::test_unit const& unit, unsigned long) override {
        if (unit.p_type == boost::unit_test::TUT_CASE &&
            !boost::unit_test::results_collector.results(unit.p_id).passed()) {
            world_.abort(ExitCode::internal, "test " + unit.full_name() + " failed");
        }
    }
    int priority() override { return 100; }  // after the results and the log

    static World& world() { return current_->world_; }

  private:
    World world_;
    static inline MpiSession* current_ = nullptr;
};

/// The one World of the program.
inline World& test_world() {
    return MpiSession::world();
}

}  // namespace cpstep::test

using MpiSession = cpstep::test::MpiSession;
BOOST_TEST_GLOBAL_FIXTURE(MpiSession);
