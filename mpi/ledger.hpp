// Counts every communication call of a step by label.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace cpstep {

/// What one label cost on this rank: `calls` collectives or messages, `bytes` handed to the wire
/// (all-reduce: size of the reduced array; exchange: bytes sent).
struct LedgerEntry {
    std::string op;  ///< "all_reduce", "exchange"
    int group_size = 0;
    std::int64_t calls = 0;
    std::int64_t bytes = 0;

    friend bool operator==(LedgerEntry const&, LedgerEntry const&) = default;
};

/// label -> cost; labels are "grad", "loss.seq_kl", "cp.kv", ...
using Ledger = std::map<std::string, LedgerEntry>;

}  // namespace cpstep
