// The group of one: Comm's public calls never come this far.
#include "mpi/comm_bodies.hpp"

namespace cpstep {
namespace {

class SelfComm final : public Comm {
  public:
    explicit SelfComm(int world_rank) : Comm(0, 1), world_rank_(world_rank) {}

    int world_rank_of(int /*group_rank*/) const override { return world_rank_; }

  private:
    void do_all_reduce_sum(std::string_view label, Tensor) override { refuse(label); }
    int do_begin_all_gather(std::string_view label, Tensor, Tensor,
                            std::span<std::int64_t const>) override {
        refuse(label);
    }
    int do_begin_reduce_scatter_sum(std::string_view label, Tensor, Tensor,
                                    std::span<std::int64_t const>) override {
        refuse(label);
    }
    void do_all_to_all(std::string_view label, Tensor, Tensor, std::span<std::int64_t const>,
                       std::span<std::int64_t const>) override {
        refuse(label);
    }
    int do_begin_exchange(std::string_view label, Tensor, int, Tensor, int) override {
        refuse(label);
    }
    void do_end_call(int) override { refuse("end_call"); }

    [[noreturn]] static void refuse(std::string_view what) {
        fail(ExitCode::internal, "'{}' reached the wire of a group of one", what);
    }

    int world_rank_;
};

}  // namespace

std::unique_ptr<Comm> make_self_comm(int world_rank) {
    return std::make_unique<SelfComm>(world_rank);
}

}  // namespace cpstep
