#include "app/fault_table.hpp"

#include <array>

namespace cpstep {

std::span<FaultSpec const> fault_table() {
    using enum CpMethod;
    using enum LossComm;
    using enum ProbeLoss;
    static constexpr std::array table{
        FaultSpec{Fault::ring_step_missing, "ring-step-missing", "one ring step too few"},
        FaultSpec{Fault::zigzag_partner_off_by_one, "zigzag-partner-off-by-one",
                  "the second chunk is 2N-2-r"},
        FaultSpec{Fault::zigzag_chunk_of_another_rank, "zigzag-chunk-of-another-rank",
                  "rank 0 takes the chunks of rank 1"},
        FaultSpec{Fault::diagonal_off_by_one, "diagonal-off-by-one", "a query sees one future key"},
        FaultSpec{Fault::kv_of_previous_layer, "kv-of-previous-layer",
                  "the layer before's K/V are sent"},
        FaultSpec{Fault::merge_without_rescale, "merge-without-rescale",
                  "the old output keeps its weight in a merge"},
        FaultSpec{Fault::merge_wrong_sign, "merge-wrong-sign",
                  "the old output is scaled by exp(new - old LSE)"},
        FaultSpec{Fault::bf16_between_merges, "bf16-between-merges",
                  "outputs rounded to bf16 between merges"},
        FaultSpec{Fault::backward_with_local_lse, "backward-with-local-lse",
                  "the own block's LSE in backward"},
        FaultSpec{Fault::dkv_not_returned_home, "dkv-not-returned-home",
                  "dK/dV of other ranks are dropped"},
        FaultSpec{Fault::dkv_doubled, "dkv-doubled", "dK/dV of other ranks count twice"},
        FaultSpec{Fault::stale_gather_order, "stale-gather-order",
                  "gathered blocks taken in another rank order", all_gather},
        FaultSpec{Fault::heads_of_another_rank, "heads-of-another-rank",
                  "query heads go to the next rank's place", a2a},
        FaultSpec{Fault::rope_local_positions, "rope-local-positions",
                  "RoPE by row, not by position"},
        FaultSpec{Fault::target_shift_dropped, "target-shift-dropped",
                  "a chunk's last row predicts itself"},
        FaultSpec{Fault::response_row_off_by_one, "response-row-off-by-one",
                  "log-probs from the row after"},
        FaultSpec{Fault::local_mask_denominator, "local-mask-denominator",
                  "the mean over a rank's own tokens", p2p, scalar, gspo, Needs::split_response},
        FaultSpec{Fault::seq_kl_gradient_of_local_tokens, "seq-kl-gradient-of-local-tokens",
                  "closed form with the rank's own tokens", p2p, scalar, gspo,
                  Needs::split_response},
        FaultSpec{Fault::seq_kl_gradient_not_summed, "seq-kl-gradient-not-summed",
                  "no backward sum of the sequence KL", p2p, padded, gspo, Needs::split_response},
        FaultSpec{Fault::replicated_loss_not_divided, "replicated-loss-not-divided",
                  "every CP rank counts the whole loss", p2p, gather},
        FaultSpec{Fault::cp_factor_doubled, "cp-factor-doubled",
                  "the loss is multiplied by CP once more"},
        FaultSpec{Fault::gradient_over_dp_only, "gradient-over-dp-only",
                  "gradients summed over DP, not DP x CP"},
        FaultSpec{Fault::seq_kl_sign_flipped, "seq-kl-sign-flipped", "new - old for old - new"},
        FaultSpec{Fault::opsm_from_local_rows, "opsm-from-local-rows",
                  "OPSM tests a rank's share of k_j", p2p, scalar, grpo, Needs::split_response},
        FaultSpec{Fault::entropy_of_masked_rows, "entropy-of-masked-rows",
                  "entropy counts padding and masked rows", p2p, scalar, gspo,
                  Needs::masked_tokens},
        FaultSpec{Fault::whitening_over_dp_only, "whitening-over-dp-only",
                  "each CP rank whitens its own rows"},
        FaultSpec{Fault::extra_all_reduce, "extra-all-reduce", "one all-reduce more in the loss"},
        FaultSpec{Fault::ring_direction_flipped, "ring-direction-flipped",
                  "blocks travel the other way", p2p, scalar, gspo, Needs::three_ranks},
        FaultSpec{Fault::collective_skipped, "collective-skipped",
                  "a rank without response rows leaves out a call", p2p, scalar, gspo,
                  Needs::rank_without_rows},
    };
    return table;
}

}  // namespace cpstep
