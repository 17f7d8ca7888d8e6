// Asks this machine: the facts of a rank, and the wires between all of them.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "app/doctor/facts.hpp"
#include "cuda/backend.hpp"
#include "mpi/wires.hpp"
#include "mpi/world.hpp"

namespace cpstep::doctor {

/// Collective. Facts of all ranks (on every rank), their clocks and the output folder.
class Probe {
  public:
    /// `full`: measure copies and wires too.
    Probe(World& world, std::filesystem::path const& output, bool full);

    JobFacts& facts() { return job_; }
    /// Tries every wire of this machine in turn and adds it to the facts. A wire that stops
    /// answering is added as failed and thrown on as the Error(communication) that it was: nothing
    /// collective can be done after it.
    void try_wires();

  private:
    RankFacts own_facts(std::filesystem::path const& output);
    void probe_gpu(RankFacts& facts, Nvml const& nvml);
    void measure_host_links(GpuFacts& gpu);
    void probe_output_folder(std::filesystem::path const& output, RankFacts& facts);
    void try_wire(Transport transport);

    World& world_;
    bool full_;
    JobFacts job_;
    std::unique_ptr<Backend> backend_;  // of the GPU where all ranks have one, else of the host
};

}  // namespace cpstep::doctor
