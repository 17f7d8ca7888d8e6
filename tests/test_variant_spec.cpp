#define BOOST_TEST_MODULE variant_spec
#include <boost/test/unit_test.hpp>
#include <numeric>
#include <set>
#include <string>

#include "app/variant_spec.hpp"
#include "options_fixture.hpp"

namespace {

using namespace cpstep;
using namespace cpstep::test;

using Specs = std::vector<VariantSpec>;
using Names = std::vector<std::string>;

constexpr HeadShape kQwenSmall{14, 2, 64};  // Qwen2.5-0.5B
constexpr HeadShape kTiny{4, 2, 16};
constexpr HeadShape kQwen7{28, 4, 128};
constexpr HeadShape kLlama8{32, 8, 128};
constexpr HeadShape kModels[]{kQwenSmall, kTiny, kQwen7, kLlama8};
constexpr int kWorlds[]{1, 2, 3, 4, 5, 6, 7, 8, 14, 64};

Specs specs_of(std::string const& line, HeadShape heads, int world) {
    return variant_specs(parse(with(words(line))), heads, world);
}

/// The CP configuration of the one variant beside the baseline.
CpConfig config_of(std::string const& line, HeadShape heads, int world) {
    Specs const specs = specs_of(line, heads, world);
    BOOST_TEST_REQUIRE(specs.size() == 2U);
    return specs.back().cp;
}

Names names_of(Specs const& specs) {
    Names names;
    for (VariantSpec const& spec : specs) {
        names.push_back(spec.name);
    }
    return names;
}

std::string error(std::string const& line, HeadShape heads, int world) {
    return usage_error([&] { specs_of(line, heads, world); });
}

bool is_baseline(VariantSpec const& spec) {
    return spec.name == "cp1" && spec.cp == CpConfig{};
}

/// The rule of the default first factor in other words: the largest proper factor common to the
/// size and the KV heads, else to the size and the query heads; 0 without one.
int expected_first_factor(int size, HeadShape heads) {
    for (std::int64_t const count : {heads.kv_heads, heads.heads}) {
        auto const common = static_cast<int>(std::gcd(std::int64_t{size}, count));
        for (int u = size - 1; u > 1; --u) {
            if (size % u == 0 && common % u == 0) {
                return u;
            }
        }
    }
    return 0;
}

}  // namespace

BOOST_AUTO_TEST_CASE(by_default_the_baseline_meets_the_whole_world) {
    for (HeadShape const heads : kModels) {
        for (int const world : kWorlds) {
            Specs const specs = specs_of("", heads, world);
            BOOST_TEST(specs.size() == (world == 1 ? 1U : 2U));
            BOOST_TEST(is_baseline(specs.front()));
            if (world > 1) {
                BOOST_TEST(specs.back().name == fmt::format("cp{}", world));
                BOOST_TEST((specs.back().cp == CpConfig{.size = world}));
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(a_world_of_one_has_only_the_baseline_whatever_the_lists_say) {
    Specs const specs = specs_of(
        "--cp-comm-type a2a+p2p,a2a --cp-layout contiguous --cp-loss-comm gather", kQwenSmall, 1);
    BOOST_TEST_REQUIRE(specs.size() == 1U);
    BOOST_TEST(is_baseline(specs.front()));
}

BOOST_AUTO_TEST_CASE(all_combinations_come_in_the_order_of_the_lists) {
    Specs const specs = specs_of(
        "--context-parallel-size 4,2 --cp-comm-type all_gather,p2p --cp-loss-comm gather,scalar "
        "--cp-layout contiguous,zigzag",
        kTiny, 4);
    BOOST_TEST(
        (names_of(specs) ==
         Names{"cp1", "cp2-all_gather-gather-contiguous", "cp2-all_gather-gather-zigzag",
               "cp2-all_gather-scalar-contiguous", "cp2-all_gather-scalar-zigzag",
               "cp2-p2p-gather-contiguous", "cp2-p2p-gather-zigzag", "cp2-p2p-scalar-contiguous",
               "cp2-p2p-scalar-zigzag", "cp4-all_gather-gather-contiguous",
               "cp4-all_gather-gather-zigzag", "cp4-all_gather-scalar-contiguous",
               "cp4-all_gather-scalar-zigzag", "cp4-p2p-gather-contiguous", "cp4-p2p-gather-zigzag",
               "cp4-p2p-scalar-contiguous", "cp4-p2p-scalar-zigzag"}));
    BOOST_TEST(is_baseline(specs.front()));
    BOOST_TEST((specs[3].cp == CpConfig{.size = 2,
                                        .method = CpMethod::all_gather,
                                        .layout = CpLayout::contiguous,
                                        .loss = LossComm::scalar}));
    BOOST_TEST((specs[14].cp == CpConfig{.size = 4, .loss = LossComm::gather}));
}

BOOST_AUTO_TEST_CASE(a_name_shows_only_what_varies) {
    BOOST_TEST((names_of(specs_of("--cp-comm-type a2a,a2a+p2p --cp-layout contiguous", kTiny, 4)) ==
                Names{"cp1", "cp4-a2a", "cp4-a2a+p2p"}));
    BOOST_TEST((names_of(specs_of("--cp-loss-comm padded,gather", kTiny, 4)) ==
                Names{"cp1", "cp4-padded", "cp4-gather"}));
    BOOST_TEST((names_of(specs_of("--cp-layout zigzag,contiguous", kTiny, 4)) ==
                Names{"cp1", "cp4-zigzag", "cp4-contiguous"}));
    BOOST_TEST((config_of("--cp-comm-type all_gather --cp-layout contiguous --cp-loss-comm padded",
                          kTiny, 4) == CpConfig{.size = 4,
                                                .method = CpMethod::all_gather,
                                                .layout = CpLayout::contiguous,
                                                .loss = LossComm::padded}));
    BOOST_TEST((names_of(specs_of("--context-parallel-size 1", kTiny, 4)) == Names{"cp1"}));
}

BOOST_AUTO_TEST_CASE(names_of_the_product_are_unique) {
    Specs const specs = specs_of(
        "--context-parallel-size 4,8,16 --cp-comm-type p2p,all_gather,a2a,a2a+p2p --cp-loss-comm "
        "scalar,padded,gather --cp-layout zigzag,contiguous",
        kLlama8, 16);
    Names const names = names_of(specs);
    BOOST_TEST(specs.size() == 1U + 3 * 4 * 3 * 2);
    BOOST_TEST((std::set<std::string>(names.begin(), names.end()).size() == names.size()));
}

BOOST_AUTO_TEST_CASE(a2a_exchanges_heads_in_the_whole_group_and_only_where_they_divide) {
    for (HeadShape const heads : kModels) {
        for (int const world : kWorlds) {
            if (world == 1) {
                continue;
            }
            if (heads.heads % world == 0) {
                CpConfig const cp = config_of("--cp-comm-type a2a", heads, world);
                BOOST_TEST((cp.a2a == world && cp.method == CpMethod::a2a));
            } else {
                expect(error("--cp-comm-type a2a", heads, world),
                       fmt::format("variant cp{}: a2a needs a CP size that divides the {} query",
                                   world, heads.heads));
            }
        }
    }
    BOOST_TEST(error("--cp-comm-type p2p,a2a", kQwenSmall, 4) ==
               "variant cp4-a2a: a2a needs a CP size that divides the 14 query heads: 1, 2, 7, 14; "
               "use p2p, all_gather or a2a+p2p for others");
    expect(error("--variant mine:cp-comm-type=a2a", kTiny, 8),
           "variant mine: a2a needs a CP size that divides the 4 query heads: 1, 2, 4; ");
}

BOOST_AUTO_TEST_CASE(p2p_and_all_gather_fit_any_size_and_exchange_no_heads) {
    for (HeadShape const heads : kModels) {
        for (int const world : kWorlds) {
            for (VariantSpec const& spec :
                 specs_of("--cp-comm-type p2p,all_gather", heads, world)) {
                BOOST_TEST(spec.cp.a2a == 1);
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(the_first_factor_is_the_largest_that_replicates_no_kv_head) {
    for (HeadShape const heads : kModels) {
        for (int const world : kWorlds) {
            int const expected = expected_first_factor(world, heads);
            if (world > 1 && expected > 0) {
                BOOST_TEST(config_of("--cp-comm-type a2a+p2p", heads, world).a2a == expected);
            } else if (world > 1) {
                expect(error("--cp-comm-type a2a+p2p", heads, world), "a2a+p2p needs a CP size");
            }
        }
    }
    auto const factor = [](HeadShape heads, int world) {
        return config_of("--cp-comm-type a2a+p2p", heads, world).a2a;
    };
    BOOST_TEST((factor(kQwenSmall, 4) == 2 && factor(kQwenSmall, 8) == 2));
    BOOST_TEST((factor(kQwenSmall, 14) == 2 && factor(kQwenSmall, 64) == 2));
    BOOST_TEST((factor(kQwenSmall, 49) == 7));  // no common factor with 2 KV heads
    BOOST_TEST((factor(kQwen7, 8) == 4 && factor(kQwen7, 64) == 4 && factor(kQwen7, 14) == 2));
    BOOST_TEST((factor(kLlama8, 8) == 4 && factor(kLlama8, 64) == 8 && factor(kLlama8, 6) == 2));
}

BOOST_AUTO_TEST_CASE(a_size_without_two_factors_names_those_that_work) {
    BOOST_TEST(error("--context-parallel-size 2 --cp-comm-type p2p,a2a+p2p", kQwenSmall, 8) ==
               "variant cp2-a2a+p2p: a2a+p2p needs a CP size of two factors above 1 whose first "
               "divides the 14 query heads, not 2; sizes that work with 8 ranks: 4, 8; use p2p or "
               "all_gather for others");
    expect(error("--cp-comm-type a2a+p2p", kQwenSmall, 7), "not 7; no size works with 7 ranks; ");
    expect(error("--cp-comm-type a2a+p2p", kTiny, 2), "not 2; no size works with 2 ranks; ");
    expect(error("--cp-comm-type a2a+p2p", kTiny, 9), "not 9; no size works with 9 ranks; ");
    expect(error("--context-parallel-size 7 --cp-comm-type a2a+p2p", kQwen7, 56),
           "not 7; sizes that work with 56 ranks: 4, 8, 14, 28, 56; ");
    expect(error("--variant one:context-parallel-size=1,cp-comm-type=a2a+p2p", kTiny, 4),
           "variant one: a2a+p2p needs a CP size of two factors above 1 whose first divides the 4 "
           "query heads, not 1; sizes that work with 4 ranks: 4; ");
}

BOOST_AUTO_TEST_CASE(hierarchical_sizes_apply_to_the_size_they_make) {
    std::string const sizes = "--hierarchical-context-parallel-sizes ";
    Specs const specs = specs_of(
        sizes + "2,4 --context-parallel-size 4,8 --cp-comm-type a2a+p2p,a2a,p2p", kLlama8, 8);
    BOOST_TEST((names_of(specs) == Names{"cp1", "cp4-a2a+p2p", "cp4-a2a", "cp4-p2p", "cp8-a2a+p2p",
                                         "cp8-a2a", "cp8-p2p"}));
    BOOST_TEST((specs[1].cp.a2a == 2 && specs[2].cp.a2a == 4 && specs[3].cp.a2a == 1));
    BOOST_TEST((specs[4].cp.a2a == 2 && specs[5].cp.a2a == 8 && specs[6].cp.a2a == 1));
    BOOST_TEST(config_of(sizes + "4,2 --cp-comm-type a2a+p2p", kLlama8, 8).a2a == 4);
    BOOST_TEST(config_of(sizes + "2,2 --cp-comm-type a2a+p2p", kLlama8, 8).a2a == 4);
    BOOST_TEST(config_of(sizes + "7,2 --cp-comm-type a2a+p2p", kQwenSmall, 14).a2a == 7);
    BOOST_TEST(config_of(sizes + "3,2", kQwenSmall, 6).a2a == 1);
}

BOOST_AUTO_TEST_CASE(a_first_factor_that_does_not_divide_the_heads_is_refused) {
    auto const failure = [](std::string const& sizes, HeadShape heads, int world) {
        return error("--cp-comm-type a2a+p2p --hierarchical-context-parallel-sizes " + sizes, heads,
                     world);
    };
    BOOST_TEST(failure("4,2", kQwenSmall, 8) ==
               "variant cp8: the first of the hierarchical sizes 4x2 must divide the 14 query "
               "heads; valid first factors of CP size 8: 2");
    expect(failure("16,4", kQwen7, 64),
           "must divide the 28 query heads; valid first factors of CP "
           "size 64: 2, 4");
    expect(failure("3,3", kTiny, 9),
           "sizes 3x3 must divide the 4 query heads; CP size 9 has no "
           "such factor, use p2p or all_gather");
}

BOOST_AUTO_TEST_CASE(named_variants_and_the_baseline_run_in_the_order_given) {
    Specs const specs = specs_of(
        "--context-parallel-size 2,4 --cp-comm-type all_gather,p2p --cp-loss-comm padded,scalar "
        "--cp-layout contiguous,zigzag --variant z --variant a:context-parallel-size=2,"
        "cp-comm-type=a2a,cp-loss-comm=gather,cp-layout=zigzag --variant z2 --variant one:"
        "context-parallel-size=1,cp-comm-type=a2a",
        kTiny, 8);
    BOOST_TEST((names_of(specs) == Names{"cp1", "z", "a", "z2", "one"}));
    BOOST_TEST(is_baseline(specs[0]));
    CpConfig const defaults{.size = 4,
                            .method = CpMethod::all_gather,
                            .layout = CpLayout::contiguous,
                            .loss = LossComm::padded};
    BOOST_TEST((specs[1].cp == defaults && specs[3].cp == defaults));
    BOOST_TEST((specs[2].cp == CpConfig{.size = 2,
                                        .method = CpMethod::a2a,
                                        .layout = CpLayout::zigzag,
                                        .loss = LossComm::gather,
                                        .a2a = 2}));
    BOOST_TEST((specs[4].cp.size == 1 && specs[4].cp.a2a == 1));
}

BOOST_AUTO_TEST_CASE(a_named_variant_without_a_size_takes_the_world_unless_a_size_is_given) {
    for (int const world : kWorlds) {
        BOOST_TEST(config_of("--variant a", kTiny, world).size == world);
        BOOST_TEST(config_of("--variant a --context-parallel-size 1", kTiny, world).size == world);
        BOOST_TEST(config_of("--variant a --context-parallel-size 2,3", kTiny, world).size == 3);
    }
}

BOOST_AUTO_TEST_CASE(a_named_variant_takes_its_own_factors_then_the_global_ones) {
    std::string const global = "--hierarchical-context-parallel-sizes 4,2 --variant ";
    auto const factor = [&](std::string const& keys) {
        return config_of(global + "a:cp-comm-type=a2a+p2p" + keys, kLlama8, 16).a2a;
    };
    BOOST_TEST(factor(",context-parallel-size=8") == 4);
    BOOST_TEST(factor(",context-parallel-size=8,hierarchical-context-parallel-sizes=2x4") == 2);
    BOOST_TEST(factor("") == 8);
    BOOST_TEST(factor(",hierarchical-context-parallel-sizes=4x4") == 4);
}

BOOST_AUTO_TEST_CASE(factors_of_a_named_variant_must_make_its_size_and_have_a_use) {
    BOOST_TEST(error("--variant a:cp-comm-type=a2a+p2p,hierarchical-context-parallel-sizes=2x2",
                     kLlama8, 8) ==
               "variant a: hierarchical sizes 2x2 make a CP size of 4, not 8; set "
               "context-parallel-size=4 or other factors");
    expect(error("--variant a:hierarchical-context-parallel-sizes=2x4", kLlama8, 8),
           "variant a: hierarchical-context-parallel-sizes is for cp-comm-type=a2a+p2p, not p2p; ");
    expect(error("--variant a:cp-comm-type=a2a+p2p,hierarchical-context-parallel-sizes=4x2",
                 kQwenSmall, 8),
           "variant a: the first of the hierarchical sizes 4x2 must divide the 14 query heads");
    // The product does not fit 32 bits.
    expect(error("--variant a:cp-comm-type=a2a+p2p,hierarchical-context-parallel-sizes="
                 "1048576x4096",
                 kLlama8, 8),
           "make a CP size of 4294967296, not 8");
}

BOOST_AUTO_TEST_CASE(a_named_variant_may_trace_its_timed_steps_otherwise_than_the_run) {
    Specs const specs =
        specs_of("--trace-detail layers --variant a:trace-detail=off,cp-comm-type=p2p --variant b",
                 kTiny, 2);
    BOOST_TEST_REQUIRE(specs.size() == 3U);
    BOOST_TEST(!specs[0].trace_detail.has_value());
    BOOST_TEST((specs[1].trace_detail == TraceDetail::off));
    BOOST_TEST(!specs[2].trace_detail.has_value());
    expect(error("--variant a:trace-detail=none", kTiny, 2),
           "trace-detail: 'none' is not available; choose from: layers, passes, off");
}

BOOST_AUTO_TEST_CASE(a_description_names_what_differs_between_variants) {
    BOOST_TEST(description({}) == "");
    BOOST_TEST(description({.size = 2}) == " (p2p, zigzag, scalar)");
    BOOST_TEST(description({.size = 8,
                            .method = CpMethod::a2a_p2p,
                            .layout = CpLayout::contiguous,
                            .loss = LossComm::gather,
                            .a2a = 2}) == " (a2a+p2p 2x4, contiguous, gather)");
}
