#include "app/run.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>

#include "app/anchor.hpp"
#include "app/commit.hpp"
#include "app/gpu_clocks.hpp"
#include "app/processor.hpp"
#include "app/reference.hpp"
#include "app/report.hpp"
#include "app/run_clock.hpp"
#include "app/run_directory.hpp"
#include "app/run_file.hpp"
#include "app/self_test.hpp"
#include "app/setup.hpp"
#include "app/timing.hpp"
#include "io/atomic_file.hpp"

namespace cpstep {

namespace {

std::string utc_now() {
    std::time_t const now = std::time(nullptr);
    std::tm parts{};
    gmtime_r(&now, &parts);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
    return text;
}

/// A running program: everything that owns memory, files or wires.
class Run {
  public:
    Run(World& world, Setup& setup);
    ExitCode execute();

  private:
    void plan_memory();
    void open_output();
    void compute_reference(std::vector<float> const& policy, std::vector<float> const& reference);
    void verify();
    void compare();
    void widen_if_noisy();
    void time_steps();
    void record_gpu_clocks();
    void write_shards(Variant& variant, VariantResult const& result);
    void record_memory();
    void write_outputs();
    void progress(StepTime const& step);
    std::string time_left() const;

    World& world_;
    Setup& setup_;
    RunFacts facts_;
    std::string run_id_;
    std::vector<ClockReading> clocks_;  // at the start, by rank
    RunEpoch epoch_;
    std::unique_ptr<RunDirectory> directory_;
    Processor processor_;
    Backend& backend_;
    std::optional<ClockWatch> gpu_clock_;  // of a GPU's timed steps
    std::unique_ptr<Wires> wires_;
    std::unique_ptr<Trace> trace_;
    std::unique_ptr<TrainStep> step_;
    std::vector<std::unique_ptr<Variant>> variants_;
    std::optional<VariantResult> reference_;  // what bf16 is held against
    MemoryEstimate memory_;
    Report report_;
    int steps_done_ = 0;
    std::int64_t timing_began_ns_ = 0;
};

/// The response tokens this rank computes in a variant, in the order of its micro-batches.
ShardIndex shard_index(Setup const& setup, VariantPlan const& plan, int rank) {
    ShardIndex index{.path = plan.name + "/response_index", .rows = {}};
    for (MicroBatch const& batch :
         make_micro_batches(plan, setup.samples.rollout, setup.reduction, rank)) {
        index.rows.insert(index.rows.end(), batch.own.index.begin(), batch.own.index.end());
    }
    return index;
}

std::unique_ptr<Trace> make_trace(Setup const& setup, RankFileInfo const& info) {
    std::vector<ShardSpec> specs;
    std::vector<ShardIndex> indices;
    for (VariantPlan const& plan : setup.plans) {
        indices.push_back(shard_index(setup, plan, info.rank));
        auto const rows = std::ssize(indices.back().rows);
        specs.push_back({plan.name + "/log_probs", rows, "nat"});
        specs.push_back({plan.name + "/entropy", rows, "nat"});
        if (setup.shape.has_ref) {
            specs.push_back({plan.name + "/ref_log_probs", rows, "nat"});
        }
    }
    return std::make_unique<Trace>(setup.options.output, info, specs, indices);
}

Run::Run(World& world, Setup& setup)
    : world_(world),
      setup_(setup),
      processor_(make_processor(world, setup.options)),
      backend_(*processor_.backend) {
    Options const& options = setup.options;
    clocks_ = read_clocks(world);
    epoch_ = agree_on_epoch(world, clocks_);
    facts_.start_utc = utc_now();
    facts_.version = version();
    facts_.host = world.host();
    facts_.mpi = World::mpi_version();
    facts_.world = world.size();
    facts_.parameters = setup.layout.size;
    facts_.samples = setup.samples.rollout.samples();
    facts_.tokens = setup.samples.rollout.token_offsets.back();
    facts_.response_tokens = setup.samples.rollout.response_tokens();
    run_id_ = world.broadcast(fmt::format("{}-{}-{}", facts_.start_utc, world.host(), getpid()));
    report_.plans = setup.plans;

    wires_ = make_wires(world, backend_, wire_options(options));
    facts_.backend = backend_.description();
    facts_.wires = wires_->description();
    facts_.cuda = cuda_versions();
    report_.precision = processor_.precision;
    report_.timing_valid = wires_->timing_valid();
    if (!processor_.note.empty()) {
        setup.notes.push_back(processor_.note);
    }
    plan_memory();
    std::vector<float> policy;
    std::vector<float> reference;
    world.collectively([&] {
        policy = load_policy(setup);
        reference = load_reference(setup);
    });
    open_output();
    if (processor_.precision != Precision::fp32 && setup.plans.size() > 1) {
        compute_reference(policy, reference);
    }
    world.collectively([&] {
        RankFileInfo const info{world.rank(), world.size(),  world.host(),
                                run_id_,      epoch_.own_ns, epoch_.unix_ns};
        trace_ = make_trace(setup, info);
        trace_->set_backend(&backend_);
    });
    ModelCapacity capacity;
    for (VariantPlan const& plan : setup.plans) {
        variants_.push_back(std::make_unique<Variant>(plan, world, *wires_, backend_, *trace_,
                                                      setup.layout.config, setup.samples.rollout,
                                                      setup.reduction));
        capacity.cover(capacity_of(variants_.back()->batches(), heads_of(setup.layout.config),
                                   backend_.compute_dtype()));
    }
    world.collectively([&] {
        step_ = std::make_unique<TrainStep>(backend_, *trace_, options, setup.layout, setup.samples,
                                            capacity, std::move(policy), reference);
    });
    for (auto& variant : variants_) {
        step_->prepare(*variant);
    }
}

/// Before anything is taken: what a rank will take, and whether the ranks of a device (of a host,
/// without one) have room for it.
void Run::plan_memory() {
    MemoryEstimate const& plan = memory_ = setup_.memory(&backend_);
    if (world_.root() && !setup_.options.quiet) {
        fmt::print(stderr, "cpstep: {}\n", describe_memory(plan, memory_rule(backend_)));
    }
    if (processor_.on_host()) {
        world_.collectively([&] { require_memory(plan, world_.local_size(), available_memory()); });
        return;
    }
    auto const sharers = world_.gather(fmt::format("{} {}", world_.host(), processor_.device));
    auto const ranks = std::count(sharers.begin(), sharers.end(),
                                  sharers[static_cast<std::size_t>(world_.rank())]);
    world_.collectively([&] {
        std::int64_t const available = cuda_device_info(processor_.ordinal).free_bytes;
        std::int64_t const wanted = plan.device() * ranks;
        require(wanted <= available, ExitCode::input_data,
                "{} needs up to {} for {} rank{}, {} are free: take fewer samples, a smaller "
                "--max-tokens-per-gpu or --micro-batch-size, or more GPUs",
                processor_.device, human_bytes(wanted), ranks, ranks == 1 ? "" : "s",
                human_bytes(available));
    });
}

/// The baseline in fp32, whose memory is given back before the run takes its own.
void Run::compute_reference(std::vector<float> const& policy, std::vector<float> const& reference) {
    if (world_.root() && !setup_.options.quiet) {
        fmt::print(stderr, "cpstep: computing the baseline in fp32, the reference of bf16\n");
    }
    auto const exact = make_reference_backend(world_, processor_, setup_.options);
    auto const wires = make_wires(world_, *exact, wire_options(setup_.options));
    reference_ = reference_result(world_, *exact, *wires, setup_, policy, reference);
    report_.reference_name = reference_->name;
}

void Run::open_output() {
    world_.collectively([&] {
        if (!world_.root()) {
            return;
        }
        Options const& options = setup_.options;
        directory_ = std::make_unique<RunDirectory>(options.output, options.force);
        auto const needed = static_cast<std::uintmax_t>(setup_.disk_bytes());
        std::uintmax_t const available = free_bytes(options.output);
        require(available >= needed, ExitCode::output, "{} has {} free, the run needs up to {}",
                options.output.string(), human_bytes(static_cast<std::int64_t>(available)),
                human_bytes(setup_.disk_bytes()));
    });
}

/// At the pace of the steps since timing began; "" before it has.
std::string Run::time_left() const {
    auto const timed = steps_done_ - static_cast<int>(variants_.size());
    if (timed <= 0) {
        return "";
    }
    double const taken = static_cast<double>(now_ns() - timing_began_ns_) * 1e-9;
    double const left = taken / timed * (setup_.total_steps() - steps_done_);
    return left < 100 ? fmt::format(", {:.0f} s left", left)
                      : fmt::format(", {:.0f} min left", left / 60);
}

void Run::progress(StepTime const& step) {
    ++steps_done_;
    if (gpu_clock_ && step.block >= 0) {
        gpu_clock_->look(step.block);
    }
    if (world_.root() && !setup_.options.quiet) {
        std::string const phase = step.block < 0 ? "warm-up" : fmt::format("block {}", step.block);
        fmt::print(stderr, "cpstep: [{}/{}] {} {}: {:.3f} s, loss {:.6g}{}\n", steps_done_,
                   setup_.total_steps(), step.variant,
                   steps_done_ <= static_cast<int>(variants_.size()) ? "verification" : phase,
                   step.seconds, step.loss, time_left());
    }
}

void Run::verify() {
    for (auto& variant : variants_) {
        StepMetrics metrics;
        progress(timed_step(world_, *trace_, *step_, *variant, -1, &metrics));
        report_.results.push_back(collect_result(world_, backend_, *step_, *variant, setup_.layout,
                                                 setup_.samples.rollout, metrics));
        write_shards(*variant, report_.results.back());
    }
    if (reference_) {
        anchor_gradients(world_, processor_, setup_, step_->initial_weights(), *reference_,
                         report_.results);
    }
    if (world_.root()) {
        compare();
    }
    widen_if_noisy();
}

/// A difference above the bounds derived from sizes is held against what the baseline itself does
/// when every weight moves by one ulp. (In bf16 bounds are measured in the first place.)
void Run::widen_if_noisy() {
    bool const wanted = world_.root() && processor_.precision == Precision::fp32 &&
                        fails_within_reach_of_noise(report_) && report_.nonfinite.empty();
    if (world_.broadcast(wanted ? "measure" : "skip") != "measure") {
        return;
    }
    if (world_.root() && !setup_.options.quiet) {
        fmt::print(stderr, "cpstep: a check failed: measuring what rounding does to this model\n");
    }
    Variant& baseline = *variants_.front();
    StepMetrics const metrics = step_->run_nudged(baseline);
    VariantResult const noisy = collect_result(world_, backend_, *step_, baseline, setup_.layout,
                                               setup_.samples.rollout, metrics);
    if (!world_.root()) {
        return;
    }
    hold_against_noise(report_, compare_results(report_.results.front(), noisy, setup_.layout,
                                                setup_.samples.rollout, setup_.options.adamw,
                                                setup_.options.clip_grad));
}

void Run::write_shards(Variant& variant, VariantResult const& result) {
    auto const write = [&](char const* name, std::vector<double> const& gathered) {
        std::vector<float> own;
        for (MicroBatch const& batch : variant.batches()) {
            for (std::int64_t const i : batch.own.index) {
                own.push_back(static_cast<float>(gathered[i]));
            }
        }
        trace_->write_shard(variant.name() + name, own);
    };
    write("/log_probs", result.log_probs);
    write("/entropy", result.entropy);
    if (setup_.shape.has_ref) {
        write("/ref_log_probs", result.ref_log_probs);
    }
}

void Run::compare() {
    Rollout const& rollout = setup_.samples.rollout;
    compare_all(report_, reference_ ? &*reference_ : nullptr, setup_.layout, rollout,
                setup_.options);
    report_.signal = check_signal(report_.results.front(), setup_.options, setup_.samples);
}

/// Only a step that is right and has a signal is worth timing.
void Run::time_steps() {
    bool wanted = setup_.options.blocks > 0;
    if (world_.root() && wanted) {
        judge(report_, 0.0);
        if (report_.code != ExitCode::pass) {
            report_.notes.emplace_back("timing was skipped: the verification step did not pass");
            wanted = false;
        }
    }
    if (world_.broadcast(wanted ? "time" : "skip") == "time") {
        if (!processor_.on_host()) {
            gpu_clock_.emplace(processor_.pci_bus_id);
        }
        timing_began_ns_ = now_ns();
        report_.timing = run_timing(world_, *trace_, setup_.options, *step_, variants_,
                                    [&](StepTime const& step) { progress(step); });
        if (!report_.timing.reproducible) {
            report_.notes.emplace_back(
                "the loss of equal steps differed: the run is not reproducible");
        }
        record_gpu_clocks();
    }
}

void Run::record_gpu_clocks() {
    if (!gpu_clock_) {
        return;
    }
    report_.gpu_clocks = gather_clocks(world_, gpu_clock_->blocks());
    if (std::string note = unwatched_note(world_, gpu_clock_->why()); !note.empty()) {
        report_.notes.push_back(std::move(note));
    }
}

void Run::write_outputs() {
    Options const& options = setup_.options;
    auto const events = world_.gather(fmt::format("{} {} {} {}", world_.host(), world_.local_rank(),
                                                  trace_->event_count(), processor_.device));
    trace_->close();
    record_memory();
    report_.clocks = joined(clocks_, read_clocks(world_));
    world_.set_deadline(std::chrono::hours(1));  // the others wait while rank 0 writes
    if (!world_.root()) {
        return;
    }
    report_.notes.insert(report_.notes.begin(), setup_.notes.begin(), setup_.notes.end());
    judge(report_, options.gate_ratio);
    RunFileContent content{.report = report_,
                           .facts = facts_,
                           .options = options,
                           .layout = setup_.layout,
                           .ranks = {},
                           .run_id = run_id_,
                           .epoch_unix_ns = epoch_.unix_ns,
                           .summary = report_json(report_, facts_, options)};
    for (std::string const& text : events) {
        RankRecord record;
        std::istringstream line(text);
        line >> record.host >> record.local_rank >> record.events >> std::ws;
        std::getline(line, record.device);
        content.ranks.push_back(record);
    }
    std::filesystem::path const summary = options.output / "summary.json";
    std::ofstream(part_of(summary)) << content.summary;
    publish(summary);
    write_run_file(options.output / "run.h5", content);
    fmt::print("{}", report_table(report_, facts_, options.gate_ratio));
    fmt::print("written: {}\n", (options.output / "{run.h5,summary.json,ranks/}").string());
    std::fflush(stdout);
}

void Run::record_memory() {
    for (std::string const& text : world_.gather(std::to_string(backend_.peak_bytes()))) {
        report_.memory.push_back(
            {.planned_bytes = memory_.device(), .peak_bytes = std::stoll(text)});
    }
    report_.memory_parts = {{"model state", memory_.state},
                            {"activations", memory_.activations},
                            {"attention workspaces", memory_.wires},
                            {"inputs", memory_.inputs},
                            {"scratch", memory_.scratch}};
}

ExitCode Run::execute() {
    verify();
    time_steps();
    write_outputs();
    return static_cast<ExitCode>(
        std::stoi(world_.broadcast(std::to_string(static_cast<int>(report_.code)))));
}

}  // namespace

std::string version() {
    return CPSTEP_VERSION " (git " CPSTEP_COMMIT ")";
}

ExitCode run_command(World& world, std::vector<std::string> const& arguments) {
    Options options;
    world.collectively([&] { options = parse_run_options(arguments, cpstep_environment()); });
    auto const settings = world.gather(serialize_options(options));
    world.collectively([&] {
        std::string const difference = options_difference(settings);
        require(difference.empty(), ExitCode::usage,
                "ranks were started with different settings: {}", difference);
    });
    auto const timeout = std::chrono::duration<double>(options.comm_timeout);
    world.set_deadline(std::chrono::duration_cast<std::chrono::milliseconds>(timeout));
    if (options.self_test) {
        return self_test_command(world, options);
    }
    std::optional<Setup> setup;
    world.collectively([&] { setup.emplace(std::move(options), world.size()); });
    if (setup->options.dry_run) {
        if (world.root()) {
            fmt::print("{}", setup->description());
        }
        return ExitCode::pass;
    }
    return Run(world, *setup).execute();
}

}  // namespace cpstep
