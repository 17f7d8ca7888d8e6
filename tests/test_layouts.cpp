#define BOOST_TEST_MODULE layouts
#include "tests/step_bench.hpp"

using namespace cpstep;
using namespace cpstep::test;

namespace {

/// Every method at a CP size; with 4 ranks the heads are also shared in two pairs.
std::vector<CpConfig> methods_of(int size) {
    std::vector<CpConfig> methods{{.size = size}};
    if (size > 1) {
        methods.push_back({.size = size, .method = CpMethod::all_gather});
        methods.push_back({.size = size, .method = CpMethod::a2a, .a2a = size});
    }
    if (size == 4) {
        methods.push_back({.size = size, .method = CpMethod::a2a_p2p, .a2a = 2});
    }
    return methods;
}

void every_configuration_agrees(std::int64_t kv_heads) {
    Case c = gspo_case();
    c.config = small_config(true, 12, kv_heads);
    Bench bench(c);
    auto const first = bench.variant({});
    VariantResult const base = bench.run(*first);
    BOOST_TEST(base.metrics.grad_norm > 0.0);
    for (int const size : valid_cp_sizes(test_world().size())) {
        for (CpConfig config : methods_of(size)) {
            for (CpLayout const layout : {CpLayout::zigzag, CpLayout::contiguous}) {
                for (LossComm const loss : loss_paths) {
                    config.layout = layout;
                    config.loss = loss;
                    BOOST_TEST_CONTEXT(described(config)) {
                        agrees_with(base, bench, config);
                    }
                }
            }
        }
    }
}

}  // namespace

BOOST_AUTO_TEST_CASE(every_method_loss_path_and_layout_agrees_with_cp1) {
    every_configuration_agrees(12);
}

// a2a over 2 ranks divides the 2 key heads, over 3 repeats them for each query head, over 4 gives
// each to two ranks.
BOOST_AUTO_TEST_CASE(every_method_loss_path_and_layout_agrees_with_cp1_with_few_key_heads) {
    every_configuration_agrees(2);
}
