// Checks of the job: program, MPI, NCCL, clocks, output folder, wires.
#include <algorithm>
#include <map>

#include "app/doctor/rule_kinds.hpp"
#include "app/estimate.hpp"

namespace cpstep::doctor {
namespace {

constexpr int least_nccl = 21800;
constexpr std::int64_t most_clock_bound_ns = 100'000;
constexpr std::int64_t least_free = std::int64_t{64} << 20;
constexpr std::int64_t roomy = std::int64_t{1} << 30;

template <class Value>
Finding equal(JobFacts const& job, Value const& value_of, char const* fix) {
    std::vector<std::string> values;
    for (RankFacts const& rank : job.ranks) {
        values.push_back(value_of(rank));
    }
    std::string listing;
    std::string const common = common_value(values, listing);
    return listing.empty() ? pass(common) : fail(listing, fix);
}

Finding judge_program(JobFacts const& job) {
    return equal(
        job, [](RankFacts const& rank) { return rank.version; },
        "install one binary, or start all ranks from a shared folder");
}

Finding judge_mpi(JobFacts const& job) {
    Finding finding = equal(
        job,
        [](RankFacts const& rank) {
            return rank.mpi.library.substr(0, rank.mpi.library.find(','));
        },
        "load the same MPI module on every host, inside and outside of containers");
    MpiFacts const& mpi = job.ranks.front().mpi;
    if (finding.status == Status::pass) {
        bool const aware = mpi.cuda_aware.value.value_or(0) == 1;
        finding.value += fmt::format(", {}, {}CUDA-aware", mpi.thread_level, aware ? "" : "not ");
    }
    return finding;
}

Finding judge_launcher(JobFacts const& job) {
    std::string value = job.ranks.front().mpi.launcher;
    std::map<std::string, int> ranks_of;
    for (RankFacts const& rank : job.ranks) {
        Fact<int> const& told = rank.mpi.local_rank;
        if (told.known() && *told.value != rank.local_rank) {
            return warn(fmt::format("{}: rank {} is told to be {} of its host, MPI says {}", value,
                                    rank.rank, *told.value, rank.local_rank),
                        "variables of another launcher are left in the environment; MPI's word "
                        "counts here, other tools may take the wrong GPU");
        }
        ranks_of[rank.host] = rank.local_size;
    }
    auto const [least, most] =
        std::ranges::minmax_element(ranks_of, {}, [](auto const& host) { return host.second; });
    value +=
        fmt::format(", {} rank{} on {} host{}", job.ranks.size(), job.ranks.size() == 1 ? "" : "s",
                    ranks_of.size(), ranks_of.size() == 1 ? "" : "s");
    if (least->second != most->second) {
        return warn(fmt::format("{}: {} on {}, {} on {}", value, least->second, least->first,
                                most->second, most->first),
                    "give every host as many ranks (--map-by ppr:N:node, --ntasks-per-node)");
    }
    return pass(value);
}

Finding judge_nccl(JobFacts const& job) {
    for (RankFacts const& rank : job.ranks) {
        if (!rank.nccl.library.known()) {
            return skip(rank.nccl.library.why);
        }
    }
    Finding same = equal(
        job, [](RankFacts const& rank) { return nccl_version_text(*rank.nccl.library.value); },
        "NCCL refuses mixed versions: put one first in LD_LIBRARY_PATH of all ranks");
    NcclFacts const& nccl = job.ranks.front().nccl;
    if (same.status == Status::fail) {
        return same;
    }
    std::string const value = fmt::format("{} ({})", same.value, nccl.path);
    if (*nccl.library.value < least_nccl) {
        return fail(value, "install NCCL 2.18 or later (ncclCommSplit came with it)");
    }
    int const header = nccl.header.value.value_or(0);
    return header == *nccl.library.value
               ? pass(value)
               : warn(fmt::format("{}, built with {}", value, nccl_version_text(header)),
                      "LD_LIBRARY_PATH picks another NCCL than the build did");
}

Finding judge_rank_clocks(JobFacts const& job) {
    if (job.clocks.size() < 2) {
        return skip("1 rank");
    }
    std::vector<RankClock> clocks;
    for (ClockReading const& reading : job.clocks) {
        clocks.push_back({.start = reading, .end = reading});
    }
    std::int64_t const bound = pair_bound_ns(clocks);
    std::string const value =
        fmt::format("known to {:.1f} us between any two", 1e-3 * static_cast<double>(bound));
    return bound > most_clock_bound_ns
               ? warn(value,
                      "busy hosts or a slow network: moments of two ranks cannot be told "
                      "apart more finely")
               : pass(value);
}

Finding judge_output(JobFacts const& job) {
    Finding finding = skip("not tried");
    for (RankFacts const& rank : job.ranks) {
        if (!rank.output.known()) {
            if (rank.rank == 0) {
                return fail(rank.output.why, "choose another folder with --output");
            }
            continue;
        }
        OutputFacts const& output = *rank.output.value;
        auto const value = [&](std::string const& text) {
            return fmt::format("{} on {}: {}", job.output, rank.host, text);
        };
        if (!output.sees_mark) {
            return fail(value("not the folder that rank 0 made"),
                        "choose a folder that all hosts share: run.h5 reads all ranks' files");
        }
        if (!output.seconds.known()) {
            return fail(value(output.seconds.why), "choose another folder with --output");
        }
        std::int64_t const free = output.free_bytes.value.value_or(0);
        std::string const text = fmt::format("{}, {} free, files in {:.0f} ms", output.file_system,
                                             human_bytes(free), 1e3 * *output.seconds.value);
        if (free < least_free) {
            return fail(value(text), "free some space; cpstep run --dry-run says what a run needs");
        }
        if (free < roomy) {
            finding = warn(value(text), "cpstep run --dry-run says what a run needs");
        } else if (output.file_system == "nfs" || output.file_system == "cifs") {
            finding = warn(value(text),
                           "appending over the network costs time after each step: write to a "
                           "local disk or Lustre and copy");
        } else if (finding.status == Status::skip) {
            finding = pass(value(text));
        }
    }
    return finding;
}

Finding judge_wire(WireFacts const& wire) {
    char const* const nccl_advice =
        "NCCL_DEBUG=INFO shows what NCCL does; NCCL_P2P_DISABLE=1 (no direct GPU access) and "
        "NCCL_IB_DISABLE=1 (sockets) tell which path is broken";
    std::string const advice =
        wire.name == "nccl" ? nccl_advice
        : wire.name == "ipc"
            ? "--transport nccl or mpi go round it"
            : "OMPI_MCA_btl_tcp_if_include and UCX_NET_DEVICES choose the interface";
    if (!wire.refused.empty()) {
        return skip(wire.refused);
    }
    if (!wire.failed.empty()) {
        return fail(wire.failed, advice);
    }
    for (std::size_t rank = 0; rank < wire.wrong.size(); ++rank) {
        if (wire.wrong[rank] > 0) {
            return fail(fmt::format("rank {} received {} wrong values", rank, wire.wrong[rank]),
                        advice);
        }
    }
    std::string const value = fmt::format("{}, {:.0f} ms", wire.description, 1e3 * wire.seconds);
    return wire.timing_valid ? pass(value)
                             : warn(value, std::string("shared GPUs over sockets: ") + parity_only);
}

constexpr Rule rules[] = {
    {"program", "one build on all ranks", judge_program},
    {"MPI", "one library on all ranks", judge_mpi},
    {"launcher", "equal hosts", judge_launcher},
    {"NCCL", ">= 2.18, one, as built with", judge_nccl},
    {"rank clocks", "known to 100 us", judge_rank_clocks},
    {"output", "written, shared, >= 1 GiB", judge_output},
};

}  // namespace

std::span<Rule const> job_rules() {
    return rules;
}

std::vector<Row> wire_rows(std::vector<WireFacts> const& wires) {
    std::vector<Row> rows;
    for (WireFacts const& wire : wires) {
        rows.push_back({.check = "wire " + wire.name,
                        .wanted = "right sums and rings of 1 MiB",
                        .finding = judge_wire(wire)});
    }
    return rows;
}

}  // namespace cpstep::doctor
