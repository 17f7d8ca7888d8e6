// Which samples form which micro-batch on which DP rank. Pure, the same on every rank.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace cpstep {

struct ScheduleOptions {
    int dp_size = 1;
    int cp_size = 1;
    bool dynamic = false;  ///< --use-dynamic-batch-size
    std::int64_t max_tokens_per_gpu =
        0;                 ///< times cp_size is a bin's capacity, on unpadded lengths
    bool balance = false;  ///< --balance-data: Karmarkar-Karp on costs, equal bin counts
    std::int64_t micro_batch_size = 1;  ///< samples a micro-batch when not dynamic
};

/// schedule[dp_rank][micro_batch] = sample indices. Every rank has the same number of
/// micro-batches, every sample appears once.
using Schedule = std::vector<std::vector<std::vector<std::int64_t>>>;

/// dynamic: first fit in arrival order, a sample over capacity sits alone; then the multi-sample
/// bin with the most tokens (ties to the higher index) is halved until the count is a multiple of
/// dp_size (samples by falling length, each to the lighter half, ties to the first); bins are dealt
/// r, r+DP, ... or by Karmarkar-Karp on estimated forward FLOPs. static: contiguous equal shares of
/// the batch. `costs` are per-sample FLOPs (used by balance only). Error(usage) when the batch
/// cannot be dealt.
Schedule make_schedule(std::span<std::int64_t const> lengths, std::span<double const> costs,
                       ScheduleOptions const& options);

/// Karmarkar-Karp differencing into k parts; equal_size: parts of equal count (items % k == 0).
/// Returns item indices of each part, sorted.
std::vector<std::vector<std::int64_t>> karmarkar_karp(std::span<double const> weights, int k,
                                                      bool equal_size);

}  // namespace cpstep
