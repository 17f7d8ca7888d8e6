#include "app/self_test.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "app/parity.hpp"
#include "app/processor.hpp"
#include "app/results.hpp"
#include "app/self_test_case.hpp"
#include "app/step.hpp"
#include "app/variant.hpp"
#include "app/verdict.hpp"

namespace cpstep {

namespace {

using Seconds = std::chrono::duration<double>;

/// One row of the report.
struct Outcome {
    std::string name, variant;
    enum class Kind : std::uint8_t { caught, survived, not_planted, green, red, unresolved } kind;
    std::string by;     ///< the check, or why not
    int exit_code = 0;  ///< a run's, if the fault were in it
};

/// A failed step's exit code and text; the code is pass where the step went through.
struct Failure {
    ExitCode code = ExitCode::pass;
    std::string text;
};

/// One loss with what the baseline computes by it.
struct Probe {
    Options options;
    std::unique_ptr<TrainStep> step;
    VariantResult base;
    std::vector<Check> noise;  ///< of the baseline, by one ulp in every weight
};

class SelfTest {
  public:
    SelfTest(World& world, Wires& wires, Backend& backend, SelfTestCase const& input);
    ExitCode run();

  private:
    /// Of every wait for another rank, on the host and on the device.
    void set_deadline(std::chrono::milliseconds deadline) {
        world_.set_deadline(deadline);
        backend_.set_deadline(deadline);
    }
    std::unique_ptr<Variant> variant(Probe const& probe, CpConfig const& config);
    std::unique_ptr<TrainStep> new_step(Probe const& probe);
    VariantResult collected(Probe& probe, Variant& variant, StepMetrics const& metrics);
    void prepare(ProbeLoss loss);
    CpConfig config_of(FaultSpec const& spec) const;
    std::string why_not(FaultSpec const& spec) const;
    template <class F>
    void for_each_batch(CpConfig const& config, F const& f) const;
    bool splits_a_response(CpConfig const& config) const;
    bool leaves_a_rank_without_rows(CpConfig const& config) const;
    Failure run_step(Probe& probe, Variant& variant, StepMetrics& metrics);
    void judge_result(Probe const& probe, VariantResult const& result, Outcome& outcome) const;
    Outcome outcome_of(FaultSpec const& spec);
    void report(std::vector<Outcome> const& outcomes, ExitCode code) const;

    World& world_;
    SelfTestCase const& input_;
    Reduction reduction_;
    Wires& wires_;
    Backend& backend_;
    Trace trace_;
    ModelCapacity capacity_;
    Probe probes_[2];
    Seconds clean_step_{0};  ///< slowest step without a fault
    std::vector<void const*>
        left_behind_;  ///< never freed: late messages may still be written there
    std::chrono::milliseconds deadline_;
};

/// "log_probs 3.3e+00 > 7.6e-05, 36 more": the failed checks of a report with parity exit code.
std::string failures_text(Report const& report) {
    auto const counts = [&](Check const& check) { return counts_as_failed(report, check); };
    Check const& first = *std::find_if(report.checks.begin(), report.checks.end(), counts);
    std::string text = first.name == "ledger" ? fmt::format("ledger: {}", first.where)
                                              : fmt::format("{} {:.1e} > {:.1e}", first.name,
                                                            first.measured, first.bound);
    auto const failed = std::count_if(report.checks.begin(), report.checks.end(), counts);
    return failed > 1 ? fmt::format("{}, {} more", text, failed - 1) : text;
}

SelfTest::SelfTest(World& world, Wires& wires, Backend& backend, SelfTestCase const& input)
    : world_(world),
      input_(input),
      reduction_(make_reduction(input.samples.rollout, false)),
      wires_(wires),
      backend_(backend),
      deadline_(world.deadline()) {
    HeadShape const heads = heads_of(input.layout.config);
    auto const grow = [&](CpConfig const& config) {
        VariantPlan const plan = plan_variant(input.options, input.layout.config,
                                              input.samples.rollout, world.size(), {"", config});
        capacity_.cover(capacity_of(
            make_micro_batches(plan, input.samples.rollout, reduction_, world.rank()), heads));
    };
    grow({});
    for (FaultSpec const& spec : fault_table()) {
        if (spec.method != CpMethod::a2a || heads.heads % world.size() == 0) {
            PlantedFault const fault(spec.fault);  // some change how many rows a rank has
            grow(config_of(spec));
        }
    }
}

CpConfig SelfTest::config_of(FaultSpec const& spec) const {
    CpConfig config{.size = world_.size(), .method = spec.method, .loss = spec.loss};
    config.a2a = spec.method == CpMethod::a2a ? config.size : 1;
    return config;
}

std::unique_ptr<Variant> SelfTest::variant(Probe const& probe, CpConfig const& config) {
    std::string name = config.size == 1 ? "cp1"
                                        : fmt::format("cp{}-{}-{}", config.size,
                                                      name_of(config.method), name_of(config.loss));
    VariantPlan const plan =
        plan_variant(probe.options, input_.layout.config, input_.samples.rollout, world_.size(),
                     {std::move(name), config});
    return std::make_unique<Variant>(plan, world_, wires_, backend_, trace_, input_.layout.config,
                                     input_.samples.rollout, reduction_);
}

std::unique_ptr<TrainStep> SelfTest::new_step(Probe const& probe) {
    return std::make_unique<TrainStep>(backend_, trace_, probe.options, input_.layout,
                                       input_.samples, capacity_, input_.policy, input_.reference);
}

VariantResult SelfTest::collected(Probe& probe, Variant& variant, StepMetrics const& metrics) {
    return collect_result(world_, backend_, *probe.step, variant, input_.layout,
                          input_.samples.rollout, metrics);
}

/// The baseline of a loss and its noise.
void SelfTest::prepare(ProbeLoss loss) {
    Probe& probe = probes_[static_cast<int>(loss)];
    probe.options = probe_options(input_.options, loss);
    probe.step = new_step(probe);
    auto const baseline = variant(probe, {});
    probe.step->prepare(*baseline);
    probe.step->reset();
    probe.base = collected(probe, *baseline, probe.step->run(*baseline));
    VariantResult const noisy = collected(probe, *baseline, probe.step->run_nudged(*baseline));
    world_.collectively([&] {
        require(probe.base.metrics.grad_norm > 0, ExitCode::inconclusive,
                "the gradient of the self-test's baseline is zero: no fault could show");
    });
    if (world_.root()) {
        probe.noise = compare_results(probe.base, noisy, input_.layout, input_.samples.rollout,
                                      probe.options.adamw, probe.options.clip_grad);
    }
}

/// Why a fault cannot show in this case; "" if it can.
std::string SelfTest::why_not(FaultSpec const& spec) const {
    CpConfig const config = config_of(spec);
    std::int64_t const heads = input_.layout.config.num_attention_heads;
    if (config.a2a > 1 && heads % config.a2a != 0) {
        return fmt::format("{} ranks do not divide the {} query heads", config.a2a, heads);
    }
    if (spec.needs == Needs::three_ranks && world_.size() < 3) {
        return "needs 3 ranks or more: with 2 both directions are the same";
    }
    auto const& mask = input_.samples.rollout.loss_mask;
    if (spec.needs == Needs::masked_tokens &&
        std::find(mask.begin(), mask.end(), 0) == mask.end()) {
        return "every response token of these samples counts";
    }
    if (spec.needs == Needs::split_response && !splits_a_response(config)) {
        return "each sample's response lies on one rank";
    }
    if (spec.needs == Needs::rank_without_rows && !leaves_a_rank_without_rows(config)) {
        return "every rank has response rows of every micro-batch";
    }
    return "";
}

/// f(rank, micro-batch) of all ranks.
template <class F>
void SelfTest::for_each_batch(CpConfig const& config, F const& f) const {
    VariantPlan const plan = plan_variant(input_.options, input_.layout.config,
                                          input_.samples.rollout, world_.size(), {"", config});
    for (int rank = 0; rank < world_.size(); ++rank) {
        for (MicroBatch const& batch :
             make_micro_batches(plan, input_.samples.rollout, reduction_, rank)) {
            f(rank, batch);
        }
    }
}

bool SelfTest::leaves_a_rank_without_rows(CpConfig const& config) const {
    bool found = false;
    for_each_batch(config, [&](int, MicroBatch const& batch) {
        found = found || batch.response_count() == 0;
    });
    return found;
}

bool SelfTest::splits_a_response(CpConfig const& config) const {
    std::map<std::int64_t, std::set<int>> ranks_of;
    for_each_batch(config, [&](int rank, MicroBatch const& batch) {
        for (std::size_t r = 0; r < batch.own.mask.size(); ++r) {
            if (batch.own.mask[r] != 0) {
                ranks_of[batch.samples.at(batch.own.sample_of[r])].insert(rank);
            }
        }
    });
    return std::any_of(ranks_of.begin(), ranks_of.end(),
                       [](auto const& sample) { return sample.second.size() > 1; });
}

/// A step that may fail on any rank: what it failed of, agreed among all. The place where an
/// exception of a step is not the end of the program.
Failure SelfTest::run_step(Probe& probe, Variant& variant, StepMetrics& metrics) {
    std::string own;
    auto const begin = std::chrono::steady_clock::now();
    try {
        probe.step->prepare(variant);
        probe.step->reset();
        variant.grid().clear_ledger();
        metrics = probe.step->run(variant);
    } catch (Error const& error) {
        own = static_cast<char>(error.code());
        own += error.what();
    }
    Seconds const taken = std::chrono::steady_clock::now() - begin;
    set_deadline(deadline_);
    auto const failures = world_.gather(own);
    // A rank that timed out only waited for the one that failed.
    Failure worst;
    for (std::string const& failure : failures) {
        bool const waited = failure.find("timed out") != std::string::npos;
        if (!failure.empty() && (worst.text.empty() || !waited)) {
            worst = {static_cast<ExitCode>(failure.front()), failure.substr(1)};
        }
    }
    if (worst.code == ExitCode::pass && planted_fault == Fault::none) {
        clean_step_ = std::max(clean_step_, Seconds(world_.max(taken.count())));
    }
    return worst;
}

/// The verdict of a run with this result, into the outcome; root only. A bug that leaves it at
/// "inconclusive" is not found.
void SelfTest::judge_result(Probe const& probe, VariantResult const& result,
                            Outcome& outcome) const {
    Rollout const& rollout = input_.samples.rollout;
    Report report;
    report.signal.present = true;
    report.nonfinite = first_nonfinite(result, input_.layout, rollout);
    report.checks = compare_results(probe.base, result, input_.layout, rollout, probe.options.adamw,
                                    probe.options.clip_grad);
    auto const alone = check_result(result);
    report.checks.insert(report.checks.end(), alone.begin(), alone.end());
    if (fails_within_reach_of_noise(report)) {
        hold_against_noise(report, probe.noise);
    }
    judge(report, 0.0);
    outcome.exit_code = static_cast<int>(report.code);
    outcome.kind = report.code == ExitCode::pass           ? Outcome::Kind::green
                   : report.code == ExitCode::inconclusive ? Outcome::Kind::unresolved
                                                           : Outcome::Kind::red;
    outcome.by = report.reason;
    if (report.code == ExitCode::pass) {
        outcome.by = fmt::format("{} checks pass", report.checks.size());
    } else if (report.code == ExitCode::parity) {
        outcome.by = failures_text(report);
    }
}

Outcome SelfTest::outcome_of(FaultSpec const& spec) {
    Probe& probe = probes_[static_cast<int>(spec.probe)];
    bool const clean = spec.fault == Fault::none;
    std::string const obstacle = why_not(spec);
    Outcome outcome{.name = std::string(spec.name),
                    .variant = fmt::format("{} {} {}", name_of(spec.method), name_of(spec.loss),
                                           spec.probe == ProbeLoss::gspo ? "gspo" : "grpo"),
                    .kind = Outcome::Kind::not_planted,
                    .by = obstacle};
    if (!obstacle.empty()) {
        return outcome;
    }
    StepMetrics metrics;
    Failure failure;
    std::unique_ptr<Variant> faulty;
    {
        PlantedFault const fault(spec.fault);
        faulty = variant(probe, config_of(spec));
        if (!clean) {
            auto const patience = std::chrono::duration_cast<std::chrono::milliseconds>(
                std::max(Seconds(3), 20 * clean_step_));
            set_deadline(std::min(deadline_, patience));
        }
        failure = run_step(probe, *faulty, metrics);
    }
    if (failure.code != ExitCode::pass) {
        left_behind_.push_back(faulty.release());
        left_behind_.push_back(probe.step.release());
        probe.step = new_step(probe);
        outcome.kind = Outcome::Kind::red;
        outcome.by = failure.text;
        outcome.exit_code = static_cast<int>(failure.code);
    } else {
        VariantResult const result = collected(probe, *faulty, metrics);
        if (world_.root()) {
            judge_result(probe, result, outcome);
        }
    }
    if (!clean) {
        outcome.kind =
            outcome.kind == Outcome::Kind::red ? Outcome::Kind::caught : Outcome::Kind::survived;
    }
    return outcome;
}

ExitCode SelfTest::run() {
    for (ProbeLoss const loss : {ProbeLoss::gspo, ProbeLoss::grpo}) {
        prepare(loss);
    }
    std::vector<FaultSpec> specs;
    for (FaultSpec const& spec : fault_table()) {  // first each variant without a fault
        FaultSpec clean = spec;
        clean.fault = Fault::none;
        clean.name = "none";
        clean.what = "the variant without a fault";
        clean.needs = Needs::nothing;
        bool const known = std::any_of(specs.begin(), specs.end(), [&](FaultSpec const& other) {
            return config_of(other) == config_of(clean) && other.probe == clean.probe;
        });
        if (!known) {
            specs.push_back(clean);
        }
    }
    specs.insert(specs.end(), fault_table().begin(), fault_table().end());
    std::vector<Outcome> outcomes;
    for (FaultSpec const& spec : specs) {
        if (world_.root() && !input_.options.quiet) {
            fmt::print(stderr, "cpstep: self-test [{}/{}] {}: {}\n", outcomes.size() + 1,
                       specs.size(), spec.name, spec.what);
        }
        outcomes.push_back(outcome_of(spec));
    }
    bool const bad = std::any_of(outcomes.begin(), outcomes.end(), [](Outcome const& outcome) {
        return outcome.kind != Outcome::Kind::caught && outcome.kind != Outcome::Kind::green &&
               outcome.kind != Outcome::Kind::not_planted;
    });
    ExitCode code = bad ? ExitCode::parity : ExitCode::pass;
    code =
        static_cast<ExitCode>(std::stoi(world_.broadcast(std::to_string(static_cast<int>(code)))));
    if (world_.root()) {
        report(outcomes, code);
    }
    return code;
}

std::string_view name_of(Outcome::Kind kind) {
    switch (kind) {
        case Outcome::Kind::caught:
            return "caught";
        case Outcome::Kind::survived:
            return "SURVIVED";
        case Outcome::Kind::not_planted:
            return "not planted";
        case Outcome::Kind::green:
            return "green";
        case Outcome::Kind::unresolved:
            return "UNRESOLVED";
        case Outcome::Kind::red:
            break;
    }
    return "RED";
}

void SelfTest::report(std::vector<Outcome> const& outcomes, ExitCode code) const {
    auto const count = [&](Outcome::Kind kind) {
        return std::count_if(outcomes.begin(), outcomes.end(),
                             [&](Outcome const& outcome) { return outcome.kind == kind; });
    };
    fmt::print("self-test: CP {} on {}\n{:<32} {:<22} {:<11} {:>4}  {}\n", world_.size(),
               input_.about, "planted fault", "variant", "", "exit", "by");
    for (Outcome const& outcome : outcomes) {
        fmt::print(
            "{:<32} {:<22} {:<11} {:>4}  {}\n", outcome.name, outcome.variant,
            name_of(outcome.kind),
            outcome.kind == Outcome::Kind::not_planted ? "-" : std::to_string(outcome.exit_code),
            outcome.by);
    }
    auto const caught = count(Outcome::Kind::caught);
    fmt::print("\nself-test: {} (exit {}): {} of {} planted faults caught, {} not planted, {}\n",
               code == ExitCode::pass ? "PASS" : "FAILED", static_cast<int>(code), caught,
               caught + count(Outcome::Kind::survived), count(Outcome::Kind::not_planted),
               count(Outcome::Kind::red) + count(Outcome::Kind::unresolved) == 0
                   ? "green without a fault"
                   : "RED without a fault");
    std::fflush(stdout);
}

}  // namespace

ExitCode self_test_command(World& world, Options const& options) {
    world.collectively([&] {
        require(world.size() > 1, ExitCode::usage,
                "--self-test compares CP with no CP: start it on 2 ranks or more (mpirun -np 4)");
    });
    std::optional<SelfTestCase> input;
    world.collectively([&] {
        input.emplace(options.hf_checkpoint.empty() ? built_in_case(options, world.size())
                                                    : users_case(options, world.size()));
    });
    Options settings = options;
    world.collectively([&] {
        require(options.precision != Precision::bf16, ExitCode::usage,
                "--self-test computes in fp32, where no fault hides below a bound: leave out "
                "--precision bf16");
    });
    settings.precision = Precision::fp32;
    Processor const processor = make_processor(world, settings);
    auto const wires = make_wires(world, *processor.backend, wire_options(settings));
    std::optional<SelfTest> test;
    world.collectively([&] { test.emplace(world, *wires, *processor.backend, *input); });
    return test->run();
}

}  // namespace cpstep
