// Counts every communication call of a step by label.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace cpstep {

/// What one label cost on this rank: `calls` collectives or messages sent, and `bytes`, by op
///   all_reduce      size of the reduced array
///   exchange        sent; a rank that sends nothing has no entry
///   all_gather      received from others: all blocks minus the own
///   reduce_scatter  blocks sent to others: all minus the own
///   all_to_all      sent to others: all pieces minus the own
struct LedgerEntry {
    std::string op;
    int group_size = 0;
    std::int64_t calls = 0;
    std::int64_t bytes = 0;

    friend bool operator==(LedgerEntry const&, LedgerEntry const&) = default;
};

/// label -> cost; labels are "grad", "loss.seq_kl", "cp.kv", ...
using Ledger = std::map<std::string, LedgerEntry>;

/// Bytes that cross a wire per rank when the op is done with the least traffic: an all-reduce is
/// then a reduce-scatter and an all-gather of the array's N parts.
inline double wire_bytes(LedgerEntry const& entry) {
    auto const bytes = static_cast<double>(entry.bytes);
    return entry.op == "all_reduce" ? 2.0 * (entry.group_size - 1) / entry.group_size * bytes
                                    : bytes;
}

}  // namespace cpstep
