// Known context-parallel bugs that --self-test plants one at a time. Each is an injection point at
// its real place: `if (planted(Fault::x))`, the comparison of a byte where plans are made, calls
// begin or rows are merged, never in a loop over keys, columns or words of the vocabulary.
#pragma once

#include <cstdint>

namespace cpstep {

enum class Fault : std::uint8_t {
    none,
    ring_direction_flipped,
    ring_step_missing,
    zigzag_partner_off_by_one,
    zigzag_chunk_of_another_rank,
    diagonal_off_by_one,
    kv_of_previous_layer,
    merge_without_rescale,
    merge_wrong_sign,
    backward_with_local_lse,
    dkv_not_returned_home,
    dkv_doubled,
    rope_local_positions,
    target_shift_dropped,
    response_row_off_by_one,
    local_mask_denominator,
    seq_kl_gradient_not_summed,
    cp_factor_doubled,
    gradient_over_dp_only,
    seq_kl_sign_flipped,
    opsm_from_local_rows,
    entropy_of_masked_rows,
    collective_skipped,
    whitening_over_dp_only,
    stale_gather_order,
    bf16_between_merges,
    replicated_loss_not_divided,
    heads_of_another_rank,
    extra_all_reduce,
    seq_kl_gradient_of_local_tokens,
};

/// The fault planted in this process. A process-wide switch, as fail points are, so that an
/// injection point needs no argument through every layer between it and the program.
inline Fault planted_fault = Fault::none;

inline bool planted(Fault fault) {
    return planted_fault == fault;
}

/// Plants a fault for a scope.
class PlantedFault {
  public:
    explicit PlantedFault(Fault fault) { planted_fault = fault; }
    PlantedFault(PlantedFault const&) = delete;
    PlantedFault& operator=(PlantedFault const&) = delete;
    ~PlantedFault() { planted_fault = Fault::none; }
};

}  // namespace cpstep
