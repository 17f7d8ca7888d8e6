// The group of one: Comm's public calls never come this far.
#include "mpi/comm_bodies.hpp"

namespace cpstep {
namespace {

class SelfComm final : public Comm {
  public:
    SelfComm() : Comm(0, 1) {}

  private:
    void do_all_reduce_sum(std::string_view label, Tensor) override { refuse(label); }
    void do_all_gather(std::string_view label, Tensor, Tensor,
                       std::span<std::int64_t const>) override {
        refuse(label);
    }
    void do_reduce_scatter_sum(std::string_view label, Tensor, Tensor,
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
    void do_end_exchange(int) override { refuse("end_exchange"); }
    int world_rank_of(int) const override { refuse("world_rank_of"); }

    [[noreturn]] static void refuse(std::string_view what) {
        fail(ExitCode::internal, "'{}' reached the wire of a group of one", what);
    }
};

}  // namespace

std::unique_ptr<Comm> make_self_comm() {
    return std::make_unique<SelfComm>();
}

}  // namespace cpstep
