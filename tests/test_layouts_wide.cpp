// Groups of more than four ranks, and several groups of several ranks at once.
#define BOOST_TEST_MODULE layouts_wide
#include "tests/step_bench.hpp"

using namespace cpstep;
using namespace cpstep::test;

namespace {

/// 8 query heads, so that a2a may scatter them over 8 ranks, four of which share a key head.
struct EightRanks {
    EightRanks() : bench(eight_ranks_case()), first(bench.variant({})), base(bench.run(*first)) {
        BOOST_TEST_REQUIRE(test_world().size() == 8);
        BOOST_TEST(base.metrics.grad_norm > 0.0);
    }

    static Case eight_ranks_case() {
        Case c = gspo_case();
        c.config = small_config(true, 8, 2);
        c.samples = edge_samples(true, 16);
        return c;
    }

    void agrees_on_every_loss_path(CpConfig config) {
        for (LossComm const loss : loss_paths) {
            config.loss = loss;
            BOOST_TEST_CONTEXT(described(config)) {
                agrees_with(base, bench, config);
            }
        }
    }

    Bench bench;
    std::unique_ptr<Variant> first;
    VariantResult base;
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(eight_ranks, EightRanks)

BOOST_AUTO_TEST_CASE(four_groups_of_two_agree_with_cp1) {
    agrees_on_every_loss_path({.size = 2});
    agrees_on_every_loss_path({.size = 2, .method = CpMethod::all_gather});
}

BOOST_AUTO_TEST_CASE(two_groups_of_two_by_two_agree_with_cp1) {
    agrees_on_every_loss_path({.size = 4, .method = CpMethod::a2a_p2p, .a2a = 2});
}

BOOST_AUTO_TEST_CASE(one_ring_of_eight_agrees_with_cp1) {
    agrees_on_every_loss_path({.size = 8});
    agrees_on_every_loss_path({.size = 8, .layout = CpLayout::contiguous});
}

BOOST_AUTO_TEST_CASE(one_gather_of_eight_agrees_with_cp1) {
    agrees_on_every_loss_path({.size = 8, .method = CpMethod::all_gather});
}

BOOST_AUTO_TEST_CASE(heads_scattered_over_all_eight_or_some_agree_with_cp1) {
    agrees_on_every_loss_path({.size = 8, .method = CpMethod::a2a, .a2a = 8});
    agrees_on_every_loss_path({.size = 8, .method = CpMethod::a2a_p2p, .a2a = 2});
    agrees_on_every_loss_path({.size = 8, .method = CpMethod::a2a_p2p, .a2a = 4});
}

BOOST_AUTO_TEST_SUITE_END()
