#include "cuda/policy_loss.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "cuda/fault.hpp"
#include "cuda/operands.hpp"

// Rows are few and cheap: all arithmetic is in double, so exp(-d) - 1 + d and the sums lose
// nothing.

namespace cpstep {
namespace {

/// One response token that counts, and its sample's k_j.
struct Token {
    double now, old, ref,
        rollout;  // log-probs of the policy, old policy, reference, rollout engine
    double advantage;
    double seq_kl;
    std::optional<double> factor_mean;
};

/// A value and its derivative: with respect to the log-prob of the policy, or to k_j (gspo).
struct Term {
    double value = 0;
    double slope = 0;
};

struct PolicyTerm {
    double value = 0;
    double d_log_prob = 0;
    double d_seq_kl = 0;
    double k = 0;
    bool clipped = false;
    bool tis_clipped = false;
};

bool opsm_hit(double advantage, double seq_kl, PolicyLossOptions const& options) {
    return options.use_opsm && advantage < 0 && seq_kl > options.opsm_delta;
}

/// max(l1, l2) and dual clip with slope d/dk. l2 > l1 only outside the band, where l2 is constant;
/// on its edges l1 = l2 and the slope passes, as a clamp's does.
Term clipped_objective(double rho, double clipped_rho, double advantage,
                       PolicyLossOptions const& options) {
    double const l1 = -rho * advantage;
    double const l2 = -clipped_rho * advantage;
    Term pg = l2 > l1 ? Term{l2, 0.0} : Term{l1, rho * advantage};
    if (options.eps_clip_c && advantage < 0) {
        double const bound = -*options.eps_clip_c * advantage;
        if (pg.value > bound) {
            pg = {bound, 0.0};
        }
    }
    return pg;
}

/// f_t = clip(exp(old - rollout), low, high), a constant of the gradient.
struct TisFactor {
    double value = 1.0;
    bool clipped = false;
};

TisFactor tis_factor(double old, double rollout, PolicyLossOptions const& options) {
    if (!options.use_tis) {
        return {};
    }
    double const ratio = std::exp(old - rollout);
    double const factor = std::clamp(ratio, options.tis_clip_low, options.tis_clip);
    return {factor, factor != ratio};
}

PolicyTerm policy_term(Token const& t, PolicyLossOptions const& options) {
    bool const per_sequence = options.estimator == Estimator::gspo;
    PolicyTerm result;
    result.k = per_sequence ? t.seq_kl : t.old - t.now;
    double const rho = std::exp(-result.k);
    double const clipped_rho = std::clamp(rho, 1.0 - options.eps_clip, 1.0 + options.eps_clip_high);
    result.clipped = options.estimator == Estimator::cispo
                         ? clipped_rho != rho
                         : -clipped_rho * t.advantage > -rho * t.advantage;

    auto const [factor, tis_clipped] = tis_factor(t.old, t.rollout, options);
    result.tis_clipped = tis_clipped;
    if (opsm_hit(t.advantage, t.seq_kl, options)) {
        return result;
    }
    if (options.estimator == Estimator::cispo) {
        result.d_log_prob = -clipped_rho * t.advantage * factor;
        result.value = result.d_log_prob * t.now;
        return result;
    }
    Term const pg = clipped_objective(rho, clipped_rho, t.advantage, options);
    result.value = pg.value * factor;
    if (!per_sequence) {
        result.d_log_prob = -pg.slope * factor;  // k = old - now
    } else if (t.factor_mean) {
        result.d_log_prob = -pg.slope * *t.factor_mean;
    } else {
        result.d_seq_kl = pg.slope * factor;
    }
    return result;
}

/// KL to the reference and its slope d/dnow.
Term kl_term(Token const& t, PolicyLossOptions const& options) {
    double const d = t.now - t.ref;
    Term kl{d, 1.0};
    if (options.kl_type == KlType::k2) {
        kl = {0.5 * d * d, d};
    } else if (options.kl_type == KlType::k3 || options.kl_type == KlType::low_var_kl) {
        kl = {std::expm1(-d) + d, -std::expm1(-d)};
    }
    if (options.use_unbiased_kl) {
        double const ratio = std::exp(t.now - t.old);
        kl = {ratio * kl.value, ratio * (kl.slope + kl.value)};
    }
    if (options.kl_type == KlType::low_var_kl && std::abs(kl.value) > 10.0) {
        kl = {std::clamp(kl.value, -10.0, 10.0), 0.0};
    }
    return kl;
}

std::size_t sample_index(Matrix<std::int32_t> sample, std::int64_t row, std::int64_t samples) {
    std::int32_t const j = *sample.row(row);
    require(j >= 0 && j < samples, ExitCode::internal,
            "policy loss: row {} belongs to sample {} of {}", row, j, samples);
    return static_cast<std::size_t>(j);
}

/// Adds sums kept in double to a column.
template <class T, class Sums>
void add_sums(Matrix<T> column, Sums const& sums) {
    for (std::int64_t i = 0; i < column.rows; ++i) {
        *column.row(i) += static_cast<T>(sums[static_cast<std::size_t>(i)]);
    }
}

template <class T>
Token token_at(PolicyRows<T> const& rows, std::int64_t r, double advantage, double seq_kl,
               PolicyLossOptions const& options) {
    return {
        .now = static_cast<double>(*rows.log_probs.row(r)),
        .old = static_cast<double>(*rows.old_log_probs.row(r)),
        .ref = rows.ref_log_probs.absent() ? 0.0 : static_cast<double>(*rows.ref_log_probs.row(r)),
        .rollout = options.use_tis ? static_cast<double>(*rows.rollout_log_probs.row(r)) : 0.0,
        .advantage = advantage,
        .seq_kl = seq_kl,
        .factor_mean = rows.factor_mean.absent()
                           ? std::optional<double>()
                           : static_cast<double>(*rows.factor_mean.row(*rows.sample.row(r)))};
}

}  // namespace

bool needs_sequence_kl(PolicyLossOptions const& options) {
    return options.estimator == Estimator::gspo || options.use_opsm;
}

template <class T>
void sequence_kl_partial(Matrix<T> partial, Matrix<T> factor_partial, Matrix<T> mask_sum,
                         PolicyRows<T> const& rows, PolicyLossOptions const& options) {
    bool const want_factors = !factor_partial.absent();
    bool const tis = want_factors && options.use_tis;
    std::int64_t const n = rows.log_probs.rows;
    require(n == 0 || !tis || rows.rollout_log_probs.rows == n, ExitCode::internal,
            "sequence KL: TIS needs rollout log-probs of all {} rows", n);
    std::vector<double> sums(static_cast<std::size_t>(partial.rows));
    std::vector<double> factors(want_factors ? sums.size() : 0);
    double const sign = planted(Fault::seq_kl_sign_flipped) ? -1.0 : 1.0;
    for (std::int64_t r = 0; r < n; ++r) {
        if (*rows.mask.row(r) == 0) {
            continue;
        }
        std::size_t const j = sample_index(rows.sample, r, partial.rows);
        auto const old = static_cast<double>(*rows.old_log_probs.row(r));
        sums[j] += sign * (old - static_cast<double>(*rows.log_probs.row(r)));
        if (want_factors) {
            double const rollout = tis ? static_cast<double>(*rows.rollout_log_probs.row(r)) : 0.0;
            factors[j] += tis_factor(old, rollout, options).value;
        }
    }
    auto const add_means = [&](Matrix<T> column, std::vector<double>& values) {
        for (std::size_t j = 0; j < values.size(); ++j) {
            values[j] /= static_cast<double>(*mask_sum.row(static_cast<std::int64_t>(j)));
        }
        add_sums(column, values);
    };
    add_means(partial, sums);
    if (want_factors) {
        add_means(factor_partial, factors);
    }
}

template <class T>
void policy_loss(Matrix<T> d_log_probs, Matrix<T> d_entropy, Matrix<T> d_seq_kl, Matrix<T> metrics,
                 PolicyRows<T> const& rows, PolicyLossOptions const& options) {
    check_policy_loss(d_seq_kl, metrics, rows, options);
    std::array<double, metric_count> sums{};
    std::vector<double> d_k(static_cast<std::size_t>(rows.weight.rows));
    bool const count_masked_entropy = planted(Fault::entropy_of_masked_rows);
    for (std::int64_t r = 0; r < rows.log_probs.rows; ++r) {
        std::size_t const j = sample_index(rows.sample, r, rows.weight.rows);
        double const weight = static_cast<double>(*rows.weight.row(*rows.sample.row(r)));
        double const seq_kl = static_cast<double>(*rows.seq_kl.row(*rows.sample.row(r)));
        double const advantage = static_cast<double>(*rows.advantages.row(r));
        sums[metric_opsm_clipfrac] += opsm_hit(advantage, seq_kl, options) ? weight : 0.0;
        *d_log_probs.row(r) = T(0);
        *d_entropy.row(r) = T(0);
        if (*rows.mask.row(r) == 0) {
            if (count_masked_entropy) {
                sums[metric_entropy_loss] += weight * static_cast<double>(*rows.entropy.row(r));
                *d_entropy.row(r) = static_cast<T>(-options.entropy_coef * weight);
            }
            continue;
        }
        Token const token = token_at(rows, r, advantage, seq_kl, options);
        PolicyTerm const pg = policy_term(token, options);
        Term const kl = rows.ref_log_probs.absent() ? Term{} : kl_term(token, options);
        double const kl_coef = options.use_kl_loss ? options.kl_loss_coef : 0.0;
        sums[metric_pg_loss] += weight * pg.value;
        sums[metric_kl_loss] += weight * kl.value;
        sums[metric_entropy_loss] += weight * static_cast<double>(*rows.entropy.row(r));
        sums[metric_pg_clipfrac] += pg.clipped ? weight : 0.0;
        sums[metric_ppo_kl] += weight * pg.k;
        sums[metric_tis_clipfrac] += pg.tis_clipped ? weight : 0.0;
        *d_log_probs.row(r) = static_cast<T>(weight * (pg.d_log_prob + kl_coef * kl.slope));
        *d_entropy.row(r) = static_cast<T>(-options.entropy_coef * weight);
        d_k[j] += weight * pg.d_seq_kl;
    }
    if (rows.factor_mean.absent()) {
        add_sums(d_seq_kl, d_k);
    }
    add_sums(metrics, sums);
}

template <class T>
void sequence_kl_backward(Matrix<T> d_log_probs, Matrix<T> d_seq_kl, Matrix<T> mask_sum,
                          Matrix<std::int32_t> mask, Matrix<std::int32_t> sample) {
    for (std::int64_t r = 0; r < d_log_probs.rows; ++r) {
        if (*mask.row(r) != 0) {
            auto const j = static_cast<std::int64_t>(sample_index(sample, r, d_seq_kl.rows));
            *d_log_probs.row(r) -= *d_seq_kl.row(j) / *mask_sum.row(j);
        }
    }
}

template void sequence_kl_partial(Matrix<float>, Matrix<float>, Matrix<float>,
                                  PolicyRows<float> const&, PolicyLossOptions const&);
template void sequence_kl_partial(Matrix<double>, Matrix<double>, Matrix<double>,
                                  PolicyRows<double> const&, PolicyLossOptions const&);
template void policy_loss(Matrix<float>, Matrix<float>, Matrix<float>, Matrix<float>,
                          PolicyRows<float> const&, PolicyLossOptions const&);
template void policy_loss(Matrix<double>, Matrix<double>, Matrix<double>, Matrix<double>,
                          PolicyRows<double> const&, PolicyLossOptions const&);
template void sequence_kl_backward(Matrix<float>, Matrix<float>, Matrix<float>,
                                   Matrix<std::int32_t>, Matrix<std::int32_t>);
template void sequence_kl_backward(Matrix<double>, Matrix<double>, Matrix<double>,
                                   Matrix<std::int32_t>, Matrix<std::int32_t>);

}  // namespace cpstep
