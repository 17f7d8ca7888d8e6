#define BOOST_TEST_MODULE variant
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <numeric>
#include <vector>

#include "app/variant.hpp"
#include "tests/cases.hpp"
#include "tests/close.hpp"
#include "tests/scratch.hpp"

using namespace cpstep;
using cpstep::test::make_rollout;
using cpstep::test::small_config;

namespace {

Rollout eight_samples() {
    return make_rollout({{29, 17}, {2, 1}, {3, 2}, {70, 1}, {24, 20}, {40, 39}, {11, 4}, {64, 32}});
}

Options dynamic(std::int64_t max_tokens) {
    Options options;
    options.use_dynamic_batch_size = true;
    options.max_tokens_per_gpu = max_tokens;
    return options;
}

VariantSpec sized(int cp) {
    return {fmt::format("cp{}", cp), {.size = cp}};
}

std::vector<int> const worlds{1, 2, 3, 4, 6, 8};

std::int64_t tokens_of(Rollout const& rollout, std::vector<std::int64_t> const& samples) {
    return std::accumulate(
        samples.begin(), samples.end(), std::int64_t{0},
        [&](std::int64_t sum, std::int64_t sample) { return sum + rollout.total_length(sample); });
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_plan_names_its_cp_size_and_fills_the_world) {
    for (int const world : worlds) {
        for (int const cp : valid_cp_sizes(world)) {
            VariantPlan const plan =
                plan_variant(dynamic(64), small_config(), eight_samples(), world, sized(cp));
            BOOST_TEST(plan.name == fmt::format("cp{}", cp));
            BOOST_TEST(plan.grid.world == world);
            BOOST_TEST(plan.grid.cp == cp);
            BOOST_TEST(std::ssize(plan.schedule) == world / cp);
        }
    }
}

BOOST_AUTO_TEST_CASE(a_cp_size_that_does_not_divide_the_world_is_a_usage_error) {
    test::check_fails(ExitCode::usage, "4", [] {
        plan_variant(dynamic(64), small_config(), eight_samples(), 4, sized(3));
    });
}

BOOST_AUTO_TEST_CASE(each_sample_is_scheduled_once_whatever_the_batching) {
    Rollout const rollout = eight_samples();
    for (int const world : {1, 2, 4, 8}) {
        for (int const cp : valid_cp_sizes(world)) {
            for (bool const is_dynamic : {false, true}) {
                Options options = dynamic(is_dynamic ? 50 : 0);
                options.use_dynamic_batch_size = is_dynamic;
                options.balance_data = is_dynamic;
                VariantPlan const plan =
                    plan_variant(options, small_config(), rollout, world, sized(cp));
                std::vector<std::int64_t> seen;
                for (auto const& dp : plan.schedule) {
                    BOOST_TEST(dp.size() == plan.schedule.front().size());
                    for (auto const& samples : dp) {
                        BOOST_TEST(!samples.empty());
                        seen.insert(seen.end(), samples.begin(), samples.end());
                    }
                }
                std::sort(seen.begin(), seen.end());
                BOOST_TEST(seen == (std::vector<std::int64_t>{0, 1, 2, 3, 4, 5, 6, 7}),
                           boost::test_tools::per_element());
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(a_bins_capacity_grows_with_cp) {
    Rollout const rollout = eight_samples();
    for (int const cp : {1, 2, 4}) {
        VariantPlan const plan = plan_variant(dynamic(70), small_config(), rollout, cp, sized(cp));
        for (auto const& samples : plan.schedule.front()) {
            BOOST_TEST(tokens_of(rollout, samples) <= 70 * cp);
        }
        // 243 tokens: capacity 70 needs four bins or more, 280 needs one.
        BOOST_TEST((cp == 4) == (plan.schedule.front().size() == 1U));
    }
}

BOOST_AUTO_TEST_CASE(ranks_of_a_cp_group_share_samples_and_dp_ranks_do_not) {
    Rollout const rollout = eight_samples();
    Reduction const reduction = make_reduction(rollout, false);
    VariantPlan const plan = plan_variant(dynamic(50), small_config(), rollout, 6, sized(3));
    std::vector<int> held(static_cast<std::size_t>(rollout.response_tokens()));
    for (int rank = 0; rank < 6; ++rank) {
        auto const batches = make_micro_batches(plan, rollout, reduction, rank);
        BOOST_REQUIRE(batches.size() == plan.schedule[rank / 3].size());
        for (std::size_t m = 0; m < batches.size(); ++m) {
            BOOST_TEST(batches[m].samples == plan.schedule[rank / 3][m],
                       boost::test_tools::per_element());
            BOOST_TEST(batches[m].plan.config.size == 3);
            BOOST_TEST(batches[m].plan.rank == rank % 3);
            for (std::int64_t const index : batches[m].own.index) {
                held[index] += 1;
            }
        }
    }
    BOOST_TEST(std::count(held.begin(), held.end(), 1) == std::ssize(held));
}

BOOST_AUTO_TEST_CASE(capacity_is_the_largest_of_each_kind_over_micro_batches) {
    Rollout const rollout = make_rollout({{40, 1}, {12, 11}});
    Reduction const reduction = make_reduction(rollout, false);
    std::vector<std::int64_t> const first{0};
    std::vector<std::int64_t> const second{1};
    std::vector<MicroBatch> const batches{
        make_micro_batch(rollout, first, reduction, {.size = 2}, 0),
        make_micro_batch(rollout, second, reduction, {.size = 2}, 0)};
    // Rank 0 of 2: 40 tokens are chunks of 10 and 10, of which the last two rows hold one response
    // row; 12 tokens are chunks of 3 and 3, rows 0..2 and 9..10 respond.
    BOOST_TEST(capacity_of(batches, heads_of(small_config())).rows == 20);
    BOOST_TEST(capacity_of(batches, heads_of(small_config())).response_rows == 5);
    BOOST_TEST(capacity_of({}, heads_of(small_config())).rows == 0);
}

BOOST_AUTO_TEST_CASE(the_workspace_is_that_of_the_hungriest_micro_batch) {
    Rollout const rollout = make_rollout({{5, 1}, {40, 3}});
    Reduction const reduction = make_reduction(rollout, false);
    HeadShape const heads = heads_of(small_config());
    std::vector<MicroBatch> batches;
    std::int64_t most = 0;
    for (std::int64_t const sample : {0, 1}) {
        std::vector<std::int64_t> const one{sample};
        batches.push_back(make_micro_batch(rollout, one, reduction, {.size = 4}, 1));
        most = std::max(most, attention_workspace_bytes(batches.back().plan, heads, DType::f32));
    }
    BOOST_TEST(most > 0);
    BOOST_TEST(workspace_of(batches, heads) == most);
    BOOST_TEST(workspace_of({}, heads) == 0);
}

BOOST_AUTO_TEST_CASE(forward_flops_are_two_a_weight_and_token_plus_causal_attention) {
    // s tokens: 2 s (weights of the matrices) + L 2 s^2 q, half of 4 s^2 q for scores and their
    // product with V.
    ModelConfig const config = small_config();
    double const matrices = 3 * (24 * 24 * 2 + 24 * 8 * 2 + 3 * 24 * 40) + 61 * 24;
    for (double const s : {1.0, 7.0, 128.0}) {
        double const want = 2 * s * matrices + 3 * 2 * s * s * 24;
        BOOST_TEST(forward_flops(config, static_cast<std::int64_t>(s)) == want);
    }
}
