#define BOOST_TEST_MODULE wire_probe
#include "mpi/wire_probe.hpp"
#include "mpi_test_main.hpp"

using namespace cpstep;
using cpstep::test::test_world;

namespace {

/// Rank 0 of a group of two whose other rank is made up; it can spoil one value of each call.
class MadeUpWire final : public Comm {
  public:
    explicit MadeUpWire(bool spoils) : Comm(0, 2), spoils_(spoils) {}
    int world_rank_of(int group_rank) const override { return group_rank; }

  private:
    static float other(std::int64_t i) { return static_cast<float>(i % 251 + 1); }
    void spoil(Matrix<float> values) const {
        if (spoils_) {
            values.data[values.rows - 1] += 1;
        }
    }
    void do_all_reduce_sum(std::string_view, Tensor data) override {
        Matrix<float> const values = data.as<float>();
        for (std::int64_t i = 0; i < values.rows; ++i) {
            values.data[i] += other(i);
        }
        spoil(values);
    }
    int do_begin_exchange(std::string_view, Tensor, int, Tensor recv, int) override {
        Matrix<float> const values = recv.as<float>();
        for (std::int64_t i = 0; i < values.rows; ++i) {
            values.data[i] = other(i);
        }
        spoil(values);
        return 0;
    }
    int do_begin_all_gather(std::string_view, Tensor, Tensor,
                            std::span<std::int64_t const>) override {
        return 0;
    }
    int do_begin_reduce_scatter_sum(std::string_view, Tensor, Tensor,
                                    std::span<std::int64_t const>) override {
        return 0;
    }
    void do_end_call(int) override {}
    void do_all_to_all(std::string_view, Tensor, Tensor, std::span<std::int64_t const>,
                       std::span<std::int64_t const>) override {}

    bool spoils_;
};

std::vector<int> everyone() {
    std::vector<int> ranks;
    for (int rank = 0; rank < test_world().size(); ++rank) {
        ranks.push_back(rank);
    }
    return ranks;
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_spoilt_value_of_each_call_is_counted) {
    auto const backend = make_host_backend(1);
    MadeUpWire right(false);
    BOOST_TEST(wrong_values(*backend, right) == 0);
    MadeUpWire wrong(true);
    BOOST_TEST(wrong_values(*backend, wrong) == 2);
}

BOOST_AUTO_TEST_CASE(the_wire_of_this_machine_is_right) {
    auto const backend = make_host_backend(1);
    auto const wire = test_world().make_host_comm(everyone());
    if (wire->size() > 1) {
        BOOST_TEST(wrong_values(*backend, *wire) == 0);
    }
}

BOOST_AUTO_TEST_CASE(rates_follow_from_time_size_and_ranks) {
    World& world = test_world();
    if (world.size() == 1) {
        return;
    }
    auto const backend = make_host_backend(1);
    auto const wire = world.make_host_comm(everyone());
    std::vector<WireRate> const rates = measure_wire(world, *backend, *wire, 4 * smallest_message);
    BOOST_REQUIRE(rates.size() == 4U);
    double const n = world.size();
    for (WireRate const& rate : rates) {
        double const share = rate.op == "ring" ? 1 : 2 * (n - 1) / n;
        BOOST_TEST(rate.seconds > 0);
        BOOST_TEST(
            rate.bus_gb_per_s == share * static_cast<double>(rate.bytes) / rate.seconds * 1e-9,
            boost::test_tools::tolerance(1e-12));
    }
    BOOST_TEST(rates[0].bytes == smallest_message);
    BOOST_TEST(rates[3].bytes == 4 * smallest_message);
    BOOST_TEST(rates[3].op == "all_reduce");
}
