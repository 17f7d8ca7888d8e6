// Which processor a rank computes on: a CUDA device, by the rules that bind ranks to devices, or
// the host's cores.
#pragma once

#include <memory>
#include <string>

#include "app/options.hpp"
#include "cuda/backend.hpp"
#include "cuda/cuda_device.hpp"
#include "mpi/wires.hpp"
#include "mpi/world.hpp"

namespace cpstep {

struct Processor {
    std::unique_ptr<Backend> backend;
    Precision precision = Precision::fp32;
    int ordinal = -1;        ///< of the CUDA device; -1: the host
    std::string pci_bus_id;  ///< "0000:1b:00.0", "" for the host
    std::string device;      ///< "NVIDIA H200 0000:1b:00.0", "host"
    std::string note;        ///< what its step times do not say, "" if nothing

    bool on_host() const { return ordinal < 0; }
};

/// The device of a rank. One visible: 0 (a scheduler gave each rank its own). At least one a rank:
/// its local rank. Fewer: they are shared in turn where that is allowed, else Error(usage). Whether
/// two ranks that see one device each see the same one is for make_wires() to find out.
int device_of_rank(int visible, int local_rank, int local_size, bool allow_sharing);

/// Threads of a rank's host work: --threads, else its share of the host's cores, or its binding if
/// the launcher made one.
int host_threads(World const& world, Options const& options);

/// Collective. AgreedError: environment (--device cuda without a device, ranks of unlike kinds, a
/// device that this build cannot use), usage (too few devices, settings that the processor lacks).
Processor make_processor(World& world, Options const& options);

/// What bf16 is held against: fp32 with the reference attention, on the processor's own device.
/// Collective, Errors as above.
std::unique_ptr<Backend> make_reference_backend(World& world, Processor const& processor,
                                                Options const& options);

/// What make_wires() is told.
WireOptions wire_options(Options const& options);

}  // namespace cpstep
