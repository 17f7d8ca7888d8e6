#define BOOST_TEST_MODULE estimate
#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "app/estimate.hpp"
#include "app/step.hpp"
#include "tests/cases.hpp"
#include "tests/scratch.hpp"

using namespace cpstep;
using cpstep::test::make_rollout;
using cpstep::test::small_config;

namespace {

[[noreturn]] void unexpected() {
    fail(ExitCode::internal, "this backend only counts memory");
}

/// Counts the bytes that live in it; it computes nothing. upload is ignored: constant inputs go in
/// by it.
class CountingBackend final : public Backend {
  public:
    std::int64_t live() const { return live_; }

    std::string description() const override { return "counting"; }
    void* allocate(std::size_t bytes, std::string_view /*name*/) override {
        void* const pointer = std::malloc(bytes);
        blocks_[pointer] = static_cast<std::int64_t>(bytes);
        live_ += static_cast<std::int64_t>(bytes);
        return pointer;
    }
    void release(void* pointer) noexcept override {
        live_ -= blocks_[pointer];
        blocks_.erase(pointer);
        std::free(pointer);
    }
    std::int64_t peak_bytes() const override { return live_; }
    void upload(Tensor, void const*) override {}

    void download(void*, Tensor) override { unexpected(); }
    void copy(Tensor, Tensor) override { unexpected(); }
    void zero(Tensor) override { unexpected(); }
    void add(Tensor, Tensor) override { unexpected(); }
    void synchronize() override { unexpected(); }
    void embedding_forward(Tensor, Tensor, Tensor) override { unexpected(); }
    void embedding_backward(Tensor, Tensor, Tensor) override { unexpected(); }
    void rmsnorm_forward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, double) override {
        unexpected();
    }
    void rmsnorm_backward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor) override { unexpected(); }
    void linear_forward(Tensor, Tensor, Tensor, Tensor) override { unexpected(); }
    void linear_backward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool) override {
        unexpected();
    }
    void rope(Tensor, Tensor, std::int64_t, double, Rotation) override { unexpected(); }
    void swiglu_forward(Tensor, Tensor) override { unexpected(); }
    void swiglu_backward(Tensor, Tensor, Tensor) override { unexpected(); }
    void gather_rows(Tensor, Tensor, Tensor) override { unexpected(); }
    void scatter_add_rows(Tensor, Tensor, Tensor) override { unexpected(); }
    void attention_forward(Tensor, Tensor, Tensor, Tensor, Tensor, HeadShape,
                           std::span<Segment const>, Accumulate) override {
        unexpected();
    }
    void attention_backward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                            HeadShape, std::span<Segment const>, Accumulate) override {
        unexpected();
    }
    void lm_head_forward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor) override {
        unexpected();
    }
    void lm_head_backward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                          Tensor) override {
        unexpected();
    }
    void sequence_kl_partial(Tensor, Tensor, Tensor, PolicyTensors const&,
                             PolicyLossOptions const&) override {
        unexpected();
    }
    void policy_loss(Tensor, Tensor, Tensor, Tensor, PolicyTensors const&,
                     PolicyLossOptions const&) override {
        unexpected();
    }
    void sequence_kl_backward(Tensor, Tensor, Tensor, Tensor, Tensor) override { unexpected(); }
    Mark mark(Queue) override { unexpected(); }
    double squared_norm(Tensor) override { unexpected(); }
    void norm(Tensor, Tensor) override { unexpected(); }
    void adamw(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, std::span<ParameterRange const>,
               AdamWOptions const&) override {
        unexpected();
    }

  private:
    std::int64_t live_ = 0;
    std::map<void*, std::int64_t> blocks_;
};

/// 64 samples of 4 to 130 tokens.
Rollout many_samples() {
    std::vector<test::SampleShape> shapes;
    for (std::int64_t j = 0; j < 64; ++j) {
        shapes.push_back({4 + 2 * j, 1 + j});
    }
    return make_rollout(shapes);
}

std::vector<VariantPlan> plans_for(Rollout const& rollout, int world, std::vector<int> const& sizes,
                                   CpMethod method = CpMethod::p2p) {
    Options options;
    options.use_dynamic_batch_size = true;
    options.max_tokens_per_gpu = 200;
    std::vector<VariantPlan> plans;
    for (int const cp : sizes) {
        CpConfig const config{.size = cp, .method = cp > 1 ? method : CpMethod::p2p};
        plans.push_back(plan_variant(options, small_config(), rollout, world,
                                     {fmt::format("cp{}", cp), config}));
    }
    return plans;
}

HeadShape heads() {
    return {6, 2, 4};
}

}  // namespace

BOOST_AUTO_TEST_CASE(the_models_formula_is_what_the_model_allocates) {
    CountingBackend backend;
    Trace trace;
    for (ModelCapacity const capacity :
         {ModelCapacity{1, 1}, ModelCapacity{37, 20, 4096}, ModelCapacity{200, 3}}) {
        for (bool const tied : {true, false}) {
            ModelConfig const config = small_config(tied);
            Model const model(backend, trace, config, capacity);
            BOOST_TEST(backend.live() == Model::buffer_bytes(config, capacity, {}));
        }
    }
    BOOST_TEST(backend.live() == 0);
}

BOOST_AUTO_TEST_CASE(logits_are_dropped_above_their_limit_and_the_formula_knows) {
    CountingBackend backend;
    Trace trace;
    ModelConfig config = small_config();
    config.vocab_size = 1 << 20;
    // A row of logits is 4 MiB: 128 rows are at the limit of 512 MiB, 129 above.
    std::int64_t const at_limit = Backend::host_logits_limit_bytes / (4 * config.vocab_size);
    BOOST_REQUIRE(at_limit == 128);
    std::vector<std::int64_t> bytes;
    for (std::int64_t const rows : {at_limit, at_limit + 1}) {
        Model const model(backend, trace, config, {rows, rows});
        BOOST_TEST(backend.live() == Model::buffer_bytes(config, {rows, rows}, {}));
        bytes.push_back(backend.live());
    }
    BOOST_TEST(bytes[0] > Backend::host_logits_limit_bytes);
    BOOST_TEST(bytes[1] < Backend::host_logits_limit_bytes);
}

BOOST_AUTO_TEST_CASE(a_training_step_allocates_its_state_beside_the_model) {
    ParameterLayout const layout(small_config());
    CountingBackend backend;
    Trace trace;
    Options const options;
    SampleSet const samples;
    ModelCapacity const capacity{37, 20};
    std::vector<float> const weights(static_cast<std::size_t>(layout.size));
    for (bool const ref : {false, true}) {
        TrainStep const step(backend, trace, options, layout, samples, capacity, weights,
                             ref ? weights : std::vector<float>{});
        BOOST_TEST(backend.live() == TrainStep::state_bytes(layout.size, ref, DType::f32) +
                                         4 * (metric_count + 1) +
                                         Model::buffer_bytes(layout.config, capacity, {}));
    }
}

BOOST_AUTO_TEST_CASE(the_estimate_is_the_largest_rank_of_what_is_allocated) {
    Rollout const rollout = many_samples();
    Reduction const reduction = make_reduction(rollout, false);
    ParameterLayout const layout(small_config());
    for (CpMethod const method : {CpMethod::p2p, CpMethod::all_gather}) {
        auto const plans = plans_for(rollout, 4, {1, 2, 4}, method);
        MemoryEstimate const estimate = estimate_memory(layout, plans, rollout, reduction, true);
        std::int64_t activations = 0;
        std::int64_t wires = 0;
        CountingBackend backend;
        Trace trace;
        for (int rank = 0; rank < 4; ++rank) {
            ModelCapacity capacity;
            std::int64_t rank_wires = 0;
            for (VariantPlan const& plan : plans) {
                std::int64_t workspace = 0;
                for (MicroBatch const& batch : make_micro_batches(plan, rollout, reduction, rank)) {
                    capacity.rows = std::max(capacity.rows, batch.rows());
                    capacity.response_rows =
                        std::max(capacity.response_rows, batch.response_count());
                    capacity.kept_bytes = std::max(
                        capacity.kept_bytes, attention_kept_bytes(batch.plan, heads(), DType::f32));
                    workspace = std::max(
                        workspace, attention_workspace_bytes(batch.plan, heads(), DType::f32));
                }
                rank_wires += workspace;
            }
            wires = std::max(wires, rank_wires);
            Model const model(backend, trace, layout.config, capacity);
            activations = std::max(activations, backend.live());
        }
        BOOST_TEST(wires > 0);
        BOOST_TEST(estimate.activations == activations);
        BOOST_TEST(estimate.wires == wires);
        BOOST_TEST(estimate.total() == estimate.state + activations + wires + estimate.inputs +
                                           estimate.copy + estimate.results);
    }
}

BOOST_AUTO_TEST_CASE(state_is_weights_gradients_two_moments_and_perhaps_a_reference) {
    Rollout const rollout = many_samples();
    Reduction const reduction = make_reduction(rollout, false);
    ParameterLayout const layout(small_config());
    auto const plans = plans_for(rollout, 2, {1, 2});
    BOOST_TEST(estimate_memory(layout, plans, rollout, reduction, false).state ==
               4 * 4 * layout.size);
    BOOST_TEST(estimate_memory(layout, plans, rollout, reduction, true).state ==
               4 * 5 * layout.size);
    BOOST_TEST(estimate_memory(layout, plans, rollout, reduction, true).copy == 4 * layout.size);
    BOOST_TEST(estimate_memory(layout, plans, rollout, reduction, true).results ==
               4 * 4 * layout.size);
    auto const three = plans_for(rollout, 4, {1, 2, 4});
    BOOST_TEST(estimate_memory(layout, three, rollout, reduction, true).results ==
               4 * 6 * layout.size);
}

BOOST_AUTO_TEST_CASE(a_host_whose_ranks_do_not_fit_is_refused) {
    MemoryEstimate const estimate{.state = 80,
                                  .activations = 20,
                                  .wires = 1,
                                  .inputs = 1,
                                  .scratch = 1,
                                  .copy = 20,
                                  .results = 50};
    require_memory(estimate, 4, 4 * 123 + 50);
    BOOST_CHECK_EXCEPTION(require_memory(estimate, 4, 4 * 123 + 49), Error, [](Error const& error) {
        return error.code() == ExitCode::input_data &&
               std::string(error.what()).find("4 ranks of this host need up to 542 B") !=
                   std::string::npos;
    });
    BOOST_TEST(available_memory() > 1 << 20);
}

BOOST_AUTO_TEST_CASE(inputs_of_the_micro_batches_are_small_beside_the_activations) {
    Rollout const rollout = many_samples();
    Reduction const reduction = make_reduction(rollout, false);
    auto const plans = plans_for(rollout, 1, {1});
    CountingBackend backend;
    std::vector<BatchBuffers> buffers;
    for (MicroBatch const& batch : make_micro_batches(plans.front(), rollout, reduction, 0)) {
        buffers.emplace_back(backend, batch);
    }
    // 2 numbers a row, 15 a response row and 3 a sample.
    BOOST_TEST(backend.live() == 4 * (2 * rollout.token_offsets.back() +
                                      15 * rollout.response_tokens() + 3 * rollout.samples()));
    ParameterLayout const layout(small_config());
    BOOST_TEST(estimate_memory(layout, plans, rollout, reduction, false).inputs == backend.live());
}

BOOST_AUTO_TEST_CASE(bytes_read_like_sizes) {
    BOOST_TEST(human_bytes(0) == "0 B");
    BOOST_TEST(human_bytes(1023) == "1023 B");
    BOOST_TEST(human_bytes(1024) == "1.0 KiB");
    BOOST_TEST(human_bytes(std::int64_t{3} << 29) == "1.5 GiB");
    BOOST_TEST(human_bytes(std::int64_t{5000} << 40) == "5000.0 TiB");
}

BOOST_AUTO_TEST_CASE(the_description_shows_every_group_with_its_micro_batches_and_tokens) {
    Rollout const rollout = make_rollout({{10, 4}, {20, 5}, {30, 6}, {40, 7}});
    VariantPlan const plan{"cp2", {.size = 2}, {4, 2}, {{{0, 3}}, {{1, 2}}}};
    MemoryEstimate const memory{.state = 1 << 20,
                                .activations = 2 << 20,
                                .wires = 3 << 20,
                                .inputs = 1 << 20,
                                .scratch = 5 << 20,
                                .copy = 6 << 20,
                                .results = 4 << 20};
    std::string const text = describe_plans({plan}, rollout, memory, {}, 5 << 20, "/");
    for (char const* line :
         {"cp2: 4 ranks as DP 2 x CP 2 (p2p, zigzag, scalar)\n",
          "DP rank 0, ranks 0..1: {0,3} = 50 tokens\n",
          "DP rank 1, ranks 2..3: {1,2} = 50 tokens\n", "memory of a rank, at most: 22.0 MiB",
          "model state 1.0 MiB, activations 2.0 MiB, attention wires 3.0 MiB, inputs 1.0 MiB, "
          "scratch 5.0 MiB, initial weights 6.0 MiB, results on rank 0 4.0 MiB",
          "disk, at most: 5.0 MiB in / ("}) {
        BOOST_TEST(text.find(line) != std::string::npos, line << " is not in\n" << text);
    }
}
