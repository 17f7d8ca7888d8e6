#include "app/gpu_clocks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <sstream>
#include <utility>

#include "cuda/error.hpp"

namespace cpstep {

namespace {

/// Ranks with a line of their own.
constexpr std::size_t most_notes = 4;

/// What is to be said of one rank.
struct Slow {
    BlockClock worst;
    std::set<int> blocks;
};

void join(BlockClock& block, BlockClock const& now) {
    block.reasons |= now.reasons;
    if (now.lowest_mhz > 0) {
        block.lowest_mhz =
            block.lowest_mhz > 0 ? std::min(block.lowest_mhz, now.lowest_mhz) : now.lowest_mhz;
    }
    block.highest_c = std::max(block.highest_c, now.highest_c);
}

std::string note_of(int rank, Slow const& slow) {
    std::string note =
        fmt::format("the GPU of rank {} was held down ({}) in block{} {}", rank,
                    clock_reason::names(slow.worst.reasons), slow.blocks.size() == 1 ? "" : "s",
                    fmt::join(slow.blocks, ", "));
    if (slow.worst.lowest_mhz > 0) {
        note += fmt::format(", to {} MHz", slow.worst.lowest_mhz);
    }
    if (slow.worst.highest_c > 0) {
        note += fmt::format(", at {} C", slow.worst.highest_c);
    }
    return note;
}

}  // namespace

ClockWatch::ClockWatch(std::string pci_bus_id, std::string const& library)
    : pci_bus_id_(std::move(pci_bus_id)), nvml_(library) {}

void ClockWatch::look(int block) {
    NvmlFacts const facts = nvml_.clocks(pci_bus_id_);
    if (!facts.clock_reasons.known()) {
        why_ = facts.clock_reasons.why;
        return;
    }
    if (blocks_.empty() || blocks_.back().block != block) {
        blocks_.push_back({.block = block});
    }
    join(blocks_.back(), {.reasons = *facts.clock_reasons.value,
                          .lowest_mhz = facts.sm_clock_mhz.value.value_or(0),
                          .highest_c = facts.temperature_c.value.value_or(0)});
}

std::vector<BlockClock> gather_clocks(World& world, std::vector<BlockClock> const& own) {
    std::string text;
    for (BlockClock const& block : own) {
        text += fmt::format("{} {} {} {}\n", block.block, block.reasons, block.lowest_mhz,
                            block.highest_c);
    }
    std::vector<BlockClock> all;
    int rank = 0;
    for (std::string const& lines : world.gather(text)) {
        std::istringstream in(lines);
        BlockClock block{.rank = rank++};
        while (in >> block.block >> block.reasons >> block.lowest_mhz >> block.highest_c) {
            all.push_back(block);
        }
    }
    return all;
}

std::string unwatched_note(World& world, std::string const& why) {
    auto const reasons = world.gather(why);
    auto const silent = [](std::string const& reason) { return !reason.empty(); };
    auto const first = std::ranges::find_if(reasons, silent);
    if (first == reasons.end()) {
        return "";
    }
    return fmt::format(
        "looks at the GPU's clock failed on {} of {} ranks, the first of them {}: {}",
        std::ranges::count_if(reasons, silent), world.size(), first - reasons.begin(), *first);
}

std::set<int> slowed_blocks(std::vector<BlockClock> const& clocks) {
    std::set<int> slowed;
    for (BlockClock const& clock : clocks) {
        if ((clock.reasons & clock_reason::slowed) != 0) {
            slowed.insert(clock.block);
        }
    }
    return slowed;
}

std::vector<std::string> clock_notes(std::vector<BlockClock> const& clocks) {
    std::map<int, Slow> ranks;
    for (BlockClock const& clock : clocks) {
        if (!clock_reason::names(clock.reasons).empty()) {
            join(ranks[clock.rank].worst, clock);
            ranks[clock.rank].blocks.insert(clock.block);
        }
    }
    std::vector<std::string> notes;
    for (auto const& [rank, slow] : ranks) {
        if (notes.size() == most_notes) {
            notes.push_back(
                fmt::format("so were the GPUs of {} more ranks", ranks.size() - most_notes));
            break;
        }
        notes.push_back(note_of(rank, slow));
    }
    return notes;
}

}  // namespace cpstep
