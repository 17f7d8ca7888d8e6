#include "app/run_file.hpp"

#include <unistd.h>

#include <cstdlib>

#include "app/run_clock.hpp"
#include "io/atomic_file.hpp"
#include "io/h5.hpp"
#include "io/trace.hpp"

namespace cpstep {

namespace {

std::int64_t length_of(auto const& values) {
    return static_cast<std::int64_t>(values.size());
}

void write_config(H5File& file, Options const& options) {
    for (auto const& [name, value] : options.resolved) {
        file.attribute("/config", name, value.value);
        file.attribute("/config/origin", name, value.where);
    }
}

/// Only variables that change how a run behaves; never the whole environment, which holds secrets.
void write_environment(H5File& file) {
    file.attribute(
        "/environment", "allow_list",
        std::string("NCCL_ CUDA_ OMPI_MCA_ SLURM_JOB_ UCX_ HDF5_ OMP_ OPENBLAS_ CPSTEP_"));
    for (char** entry = environ; *entry != nullptr; ++entry) {
        std::string const text = *entry;
        for (char const* prefix : {"NCCL_", "CUDA_", "OMPI_MCA_", "SLURM_JOB_", "UCX_", "HDF5_",
                                   "OMP_", "OPENBLAS_", "CPSTEP_"}) {
            std::size_t const equals = text.find('=');
            if (text.starts_with(prefix) && equals != std::string::npos) {
                file.attribute("/environment", text.substr(0, equals), text.substr(equals + 1));
            }
        }
    }
}

/// Bytes of each rank.
void write_memory(H5File& file, Report const& report) {
    std::vector<std::int64_t> planned;
    std::vector<std::int64_t> peak;
    for (MemoryUse const& use : report.memory) {
        planned.push_back(use.planned_bytes);
        peak.push_back(use.peak_bytes);
    }
    std::vector<std::int64_t> const dims{length_of(planned)};
    file.write("/memory/planned", std::span<std::int64_t const>(planned), dims, "byte");
    file.write("/memory/peak", std::span<std::int64_t const>(peak), dims, "byte");
    for (auto const& [name, bytes] : report.memory_parts) {
        file.attribute("/memory", name, bytes);
    }
}

/// A row for each timed block of each GPU that was watched.
void write_gpu_clocks(H5File& file, std::vector<BlockClock> const& clocks) {
    std::vector<std::int64_t> columns[5];
    for (BlockClock const& clock : clocks) {
        std::int64_t const row[] = {clock.rank, clock.block, clock.reasons, clock.lowest_mhz,
                                    clock.highest_c};
        for (int i = 0; i < 5; ++i) {
            columns[i].push_back(row[i]);
        }
    }
    char const* const names[] = {"rank", "block", "reasons", "lowest_sm_clock",
                                 "highest_temperature"};
    char const* const units[] = {"1", "1", "1", "MHz", "degC"};
    file.attribute("/gpu_clock", "about",
                   std::string("looked at after each timed step; reasons are bits of "
                               "nvmlClocksEventReasons; 0 MHz or degC: not known"));
    for (int i = 0; i < 5; ++i) {
        file.write(fmt::format("/gpu_clock/{}", names[i]),
                   std::span<std::int64_t const>(columns[i]), {length_of(columns[i])}, units[i]);
    }
}

void write_topology(H5File& file, RunFileContent const& content) {
    std::vector<std::string> hosts;
    std::vector<std::string> devices;
    std::vector<std::int64_t> local_ranks;
    std::vector<std::int64_t> events;
    std::vector<std::string> files;
    for (std::size_t rank = 0; rank < content.ranks.size(); ++rank) {
        hosts.push_back(content.ranks[rank].host);
        devices.push_back(content.ranks[rank].device);
        local_ranks.push_back(content.ranks[rank].local_rank);
        events.push_back(content.ranks[rank].events);
        files.push_back(rank_file_name(static_cast<int>(rank)));
    }
    file.attribute("/topology", "world", std::int64_t{content.facts.world});
    file.attribute("/topology", "wires", content.facts.wires);
    file.write_strings("/topology/host", hosts);
    file.write_strings("/topology/device", devices);
    file.write("/topology/local_rank", std::span<std::int64_t const>(local_ranks),
               {length_of(local_ranks)}, "1");
    write_memory(file, content.report);
    write_gpu_clocks(file, content.report.gpu_clocks);
    file.write("/event_count", std::span<std::int64_t const>(events), {length_of(events)}, "1");
    file.write_virtual_table("/events", event_columns(), files, "/events", events, event_units);
    file.attribute("/clock", "clock", std::string("CLOCK_MONOTONIC"));
    file.attribute("/clock", "epoch_unix_ns", content.epoch_unix_ns);
    write_clocks(file, content.report.clocks);
}

void write_steps(H5File& file, std::vector<StepTime> const& steps) {
    std::vector<std::string> variants;
    std::vector<std::int64_t> blocks;
    std::vector<double> seconds;
    std::vector<double> exposed;
    std::vector<double> losses;
    for (StepTime const& step : steps) {
        variants.push_back(step.variant);
        blocks.push_back(step.block);
        seconds.push_back(step.seconds);
        exposed.push_back(step.exposed_comm);
        losses.push_back(step.loss);
    }
    std::vector<std::int64_t> const dims{length_of(steps)};
    file.attribute("/steps", "about", std::string("timed steps in order; block -1 is warm-up"));
    file.write_strings("/steps/variant", variants);
    file.write("/steps/block", std::span<std::int64_t const>(blocks), dims, "1");
    file.write("/steps/seconds", std::span<double const>(seconds), dims, "s");
    file.write("/steps/exposed_comm", std::span<double const>(exposed), dims, "s");
    file.write("/steps/loss", std::span<double const>(losses), dims, "1");
}

void write_ledger(H5File& file, VariantResult const& result) {
    std::vector<std::string> labels;
    std::vector<std::string> ops;
    std::vector<std::int64_t> numbers[4];
    for (auto const& [label, entry] : result.ledger) {
        auto const budget = result.budget.find(label);
        bool const known = budget != result.budget.end();
        labels.push_back(label);
        ops.push_back(entry.op);
        numbers[0].push_back(entry.calls);
        numbers[1].push_back(entry.bytes);
        numbers[2].push_back(known ? budget->second.calls : 0);
        numbers[3].push_back(known ? budget->second.bytes : 0);
    }
    std::string const base = "/ledger/" + result.name;
    file.write_strings(base + "/label", labels);
    file.write_strings(base + "/op", ops);
    char const* const names[] = {"/calls", "/bytes", "/budget_calls", "/budget_bytes"};
    for (int i = 0; i < 4; ++i) {
        file.write(base + names[i], std::span<std::int64_t const>(numbers[i]),
                   {length_of(numbers[i])}, i % 2 == 0 ? "1" : "byte");
    }
}

void write_tensors(H5File& file, std::string const& group, std::vector<float> const& array,
                   ParameterLayout const& layout) {
    for (Parameter const& parameter : layout.parameters) {
        TensorSpec const& spec = parameter.spec;
        auto const part = std::span(array).subspan(static_cast<std::size_t>(parameter.offset),
                                                   static_cast<std::size_t>(parameter.elements()));
        file.write(group + "/" + spec.name, part,
                   spec.vector ? std::vector{spec.cols} : std::vector{spec.rows, spec.cols}, "1");
    }
}

void write_variant(H5File& file, VariantResult const& result, RunFileContent const& content) {
    std::string const base = "/variants/" + result.name;
    for (auto const& [name, value] : result.metrics.named()) {
        file.attribute(base, name, value);
    }
    auto const write = [&](char const* name, std::vector<double> const& values, char const* units) {
        file.write(base + name, std::span<double const>(values), {length_of(values)}, units);
    };
    write("/log_probs", result.log_probs, "nat");
    if (!result.ref_log_probs.empty()) {
        write("/ref_log_probs", result.ref_log_probs, "nat");
    }
    write("/entropy", result.entropy, "nat");
    write("/seq_kl", result.seq_kl, "nat");
    write("/advantages", result.advantages, "1");
    if (content.options.save_gradients) {
        write_tensors(file, base + "/gradients", result.gradients, content.layout);
    }
    if (content.options.save_weights) {
        write_tensors(file, base + "/updated", result.updated, content.layout);
    }
}

}  // namespace

void write_run_file(std::filesystem::path const& path, RunFileContent const& content) {
    Report const& report = content.report;
    {
        H5File file = H5File::create(part_of(path));
        file.attribute("/", "format", std::string("cpstep-run"));
        file.attribute("/", "format_version", std::int64_t{1});
        file.attribute("/", "status", std::string("complete"));
        file.attribute("/", "software", "cpstep " + content.facts.version);
        file.attribute("/", "run_id", content.run_id);
        file.attribute("/", "date", content.facts.start_utc);
        file.attribute("/", "machine", content.facts.host);
        file.attribute("/", "backend", content.facts.backend);
        file.attribute("/", "cuda", content.facts.cuda);
        file.attribute("/", "precision",
                       std::string(report.precision == Precision::bf16 ? "bf16" : "fp32"));
        file.attribute("/", "reference", report.reference_name);
        file.attribute("/", "mpi", content.facts.mpi);
        file.attribute("/", "hdf5", h5_version());
        write_config(file, content.options);
        write_environment(file);
        write_topology(file, content);
        write_steps(file, report.timing.steps);
        for (VariantResult const& result : report.results) {
            write_ledger(file, result);
            write_variant(file, result, content);
        }
        file.attribute("/verdict", "exit_code", std::int64_t{static_cast<int>(report.code)});
        file.attribute("/verdict", "verdict", verdict_name(report.code));
        file.attribute("/verdict", "reason", report.reason);
        file.write_text("/verdict/summary", content.summary);
        file.close();
    }
    publish(path);
}

std::int64_t estimate_run_bytes(Options const& options, std::int64_t parameters, int variants,
                                std::int64_t response_tokens, std::int64_t events) {
    std::int64_t const arrays = (options.save_gradients ? 1 : 0) + (options.save_weights ? 1 : 0);
    std::int64_t const fixed = std::int64_t{1} << 20;
    return fixed + variants * (arrays * parameters * 4 + response_tokens * 3 * (8 + 4)) +
           events * static_cast<std::int64_t>(sizeof(Event));
}

}  // namespace cpstep
