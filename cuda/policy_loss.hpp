// Policy-gradient losses per response token: GRPO, GSPO, CISPO, dual clip, OPSM, TIS, KL, entropy.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "cuda/tensor.hpp"

namespace cpstep {

enum class Estimator : std::uint8_t { grpo, gspo, cispo };
enum class KlType : std::uint8_t { k1, k2, k3, low_var_kl };

struct PolicyLossOptions {
    Estimator estimator = Estimator::grpo;
    double eps_clip = 0.2;
    double eps_clip_high = 0.2;
    std::optional<double> eps_clip_c;  ///< dual clip, > 1 (Ye et al. 2020)
    bool use_opsm = false;
    double opsm_delta = 1e-4;
    bool use_tis = false;
    double tis_clip_low = 0.0;
    double tis_clip = 2.0;
    bool use_kl_loss = false;
    KlType kl_type = KlType::k1;
    double kl_loss_coef = 0.0;
    bool use_unbiased_kl = false;
    double entropy_coef = 0.0;
};

/// Whether k_j enters the loss: gspo's ratio or OPSM's test.
bool needs_sequence_kl(PolicyLossOptions const& options);

/// Inputs of R local response rows of n samples. Columns are (R,1) unless said otherwise; `sample`
/// maps a row to its sample 0..n-1. ref and rollout may be empty when the options do not use them.
template <class T>
struct PolicyRows {
    Matrix<T> log_probs, old_log_probs, ref_log_probs, rollout_log_probs, entropy;
    Matrix<T> advantages;
    Matrix<std::int32_t> mask;  ///< 1: the token counts
    Matrix<std::int32_t> sample;
    Matrix<T> seq_kl;  ///< (n,1) global k_j
    Matrix<T> weight;  ///< (n,1) red(): 1/(B max(M_j,1)), or 1/sum_j max(M_j,1)
    /// (n,1) F_j / max(M_j,1), F_j = sum over all tokens of m_t f_t with f_t the TIS factor; 1
    /// without TIS. Given: gspo's gradient takes its closed form. Empty: it goes to d_seq_kl.
    Matrix<T> factor_mean = {};
};

/// Order of the partial metric sums; each is sum over local rows of weight * value.
enum Metric : std::uint8_t {
    metric_pg_loss,
    metric_kl_loss,
    metric_entropy_loss,
    metric_pg_clipfrac,
    metric_ppo_kl,
    metric_opsm_clipfrac,
    metric_tis_clipfrac,
    metric_count
};

/// partial_j += sum over local rows of sample j of m_t (old_t - new_t) / max(M_j,1): this rank's
/// share of k_j; factor_partial_j += the same sum of m_t f_t, f_t the TIS factor (skipped when
/// empty). Of `rows` only log-probs, mask and sample are read.
/// partial, factor_partial (n,1)  mask_sum (n,1) = max(M_j,1) over the whole response
template <class T>
void sequence_kl_partial(Matrix<T> partial, Matrix<T> factor_partial, Matrix<T> mask_sum,
                         PolicyRows<T> const& rows, PolicyLossOptions const& options);

/// Per row, with k = k_j for gspo and old - new else, rho = exp(-k), clip to [1-eps, 1+eps_high]:
///   l1 = -rho A, l2 = -clip(rho) A, pg = max(l1, l2); dual clip for A < 0: pg = min(pg, -c A);
///   cispo: pg = -stopgrad(clip(rho)) A new;
///   OPSM: pg *= 0 where A < 0 and k_j > delta;  TIS: pg *= clip(exp(old - rollout), low, high);
///   KL with d = new - ref: k1 d, k2 d^2/2, k3 exp(-d)-1+d, low_var_kl k3 clamped to [-10,10];
///   unbiased: times exp(new - old) before the clamp.
/// loss = sum weight m (pg - entropy_coef H + kl_loss_coef kl).
/// Writes d_log_probs, d_entropy (R,1) and adds to `metrics` (metric_count,1). Masked rows are
/// selected away, never multiplied. pg_clipfrac counts l2 > l1 (cispo: rho outside the band,
/// whatever the sign of A); opsm_clipfrac counts every response row of a hit sample, masked ones
/// too.
/// The path through k_j (gspo), one of:
///   rows.factor_mean empty: adds dL/dk_j of local rows to d_seq_kl (n,1); sequence_kl_backward
///   follows once that is summed over ranks. Always exact.
///   rows.factor_mean given: d_log_probs has it, d_seq_kl is not touched. With
///   dL/dk_j = weight_j slope(k_j, A_j) F_j, row t gets -m_t weight_j slope factor_mean_j. Exact
///   when all that multiplies the policy term beside f_t is constant over a sequence: A and, with
///   it, the OPSM test.
template <class T>
void policy_loss(Matrix<T> d_log_probs, Matrix<T> d_entropy, Matrix<T> d_seq_kl, Matrix<T> metrics,
                 PolicyRows<T> const& rows, PolicyLossOptions const& options);

/// The path through k_j = sum_t m_t (old_t - new_t) / max(M_j,1):
/// d_log_probs_t -= m_t d_seq_kl_j / max(M_j,1).   d_seq_kl (n,1) global, mask_sum (n,1) =
/// max(M_j,1).
template <class T>
void sequence_kl_backward(Matrix<T> d_log_probs, Matrix<T> d_seq_kl, Matrix<T> mask_sum,
                          Matrix<std::int32_t> mask, Matrix<std::int32_t> sample);

}  // namespace cpstep
