// The policy loss of policy_loss.cpp, a thread a row, in double as there: rows are few and cheap.
// Sums have a fixed order. Masked rows may hold NaN: they are left out, never multiplied by zero.
#include <cstdint>

#include "cuda/fault.hpp"
#include "cuda/kernel.cuh"
#include "cuda/policy_loss.hpp"

namespace cpstep::device {
namespace {

/// A column of R rows or n samples; data is null for an absent one.
template <class T>
struct Column {
    T* data = nullptr;
    std::int64_t stride = 0;

    __device__ T& operator[](std::int64_t i) const { return data[i * stride]; }
    __device__ double value(std::int64_t i) const { return static_cast<double>(data[i * stride]); }
};

template <class T>
Column<T> column(Tensor t) {
    Matrix<T> const matrix = t.as<T>();
    return {matrix.data, matrix.stride};
}

/// PolicyTensors on the device.
struct Rows {
    Column<float> log_probs, old_log_probs, ref_log_probs, rollout_log_probs, entropy, advantages;
    Column<std::int32_t> mask, sample;
    Column<float> seq_kl, weight, factor_mean;
    std::int64_t count;
};

Rows device_rows(PolicyTensors const& rows) {
    return {.log_probs = column<float>(rows.log_probs),
            .old_log_probs = column<float>(rows.old_log_probs),
            .ref_log_probs = column<float>(rows.ref_log_probs),
            .rollout_log_probs = column<float>(rows.rollout_log_probs),
            .entropy = column<float>(rows.entropy),
            .advantages = column<float>(rows.advantages),
            .mask = column<std::int32_t>(rows.mask),
            .sample = column<std::int32_t>(rows.sample),
            .seq_kl = column<float>(rows.seq_kl),
            .weight = column<float>(rows.weight),
            .factor_mean = column<float>(rows.factor_mean),
            .count = rows.log_probs.rows};
}

/// PolicyLossOptions without std::optional, which kernels cannot call.
struct Loss {
    Estimator estimator;
    double lowest_ratio, highest_ratio;
    bool dual_clip;
    double eps_clip_c;
    bool use_opsm;
    double opsm_delta;
    bool use_tis;
    double tis_clip_low, tis_clip;
    KlType kl_type;
    double kl_coef;  ///< 0 without the KL loss
    bool use_unbiased_kl;
    double entropy_coef;
    bool count_masked_entropy;  ///< a planted fault
};

Loss device_loss(PolicyLossOptions const& o) {
    return {.estimator = o.estimator,
            .lowest_ratio = 1.0 - o.eps_clip,
            .highest_ratio = 1.0 + o.eps_clip_high,
            .dual_clip = o.eps_clip_c.has_value(),
            .eps_clip_c = o.eps_clip_c.value_or(0.0),
            .use_opsm = o.use_opsm,
            .opsm_delta = o.opsm_delta,
            .use_tis = o.use_tis,
            .tis_clip_low = o.tis_clip_low,
            .tis_clip = o.tis_clip,
            .kl_type = o.kl_type,
            .kl_coef = o.use_kl_loss ? o.kl_loss_coef : 0.0,
            .use_unbiased_kl = o.use_unbiased_kl,
            .entropy_coef = o.entropy_coef,
            .count_masked_entropy = planted(Fault::entropy_of_masked_rows)};
}

/// std::clamp: NaN stays.
__device__ double clamped(double value, double low, double high) {
    return value < low ? low : (high < value ? high : value);
}

/// A value and its derivative: with respect to the log-prob of the policy, or to k_j (gspo).
struct Term {
    double value, slope;
};

struct PolicyTerm {
    double value, d_log_prob, d_seq_kl, k;
    bool clipped, tis_clipped;
};

/// f_t = clip(exp(old - rollout), low, high), a constant of the gradient.
struct TisFactor {
    double value;
    bool clipped;
};

__device__ TisFactor tis_factor(Rows const& rows, std::int64_t r, Loss const& loss) {
    if (!loss.use_tis) {
        return {1.0, false};
    }
    double const ratio = exp(rows.old_log_probs.value(r) - rows.rollout_log_probs.value(r));
    double const factor = clamped(ratio, loss.tis_clip_low, loss.tis_clip);
    return {factor, factor != ratio};
}

/// max(l1, l2) and dual clip with slope d/dk; l1 where they are equal, so that the slope passes on
/// the edges of the band.
__device__ Term clipped_objective(double rho, double clipped_rho, double advantage,
                                  Loss const& loss) {
    double const l1 = -rho * advantage;
    double const l2 = -clipped_rho * advantage;
    Term pg = l2 > l1 ? Term{l2, 0.0} : Term{l1, rho * advantage};
    if (loss.dual_clip && advantage < 0) {
        double const bound = -loss.eps_clip_c * advantage;
        if (pg.value > bound) {
            pg = {bound, 0.0};
        }
    }
    return pg;
}

__device__ bool opsm_hit(double advantage, double seq_kl, Loss const& loss) {
    return loss.use_opsm && advantage < 0 && seq_kl > loss.opsm_delta;
}

__device__ PolicyTerm policy_term(Rows const& rows, std::int64_t r, Loss const& loss) {
    std::int64_t const j = rows.sample[r];
    double const now = rows.log_probs.value(r);
    double const advantage = rows.advantages.value(r);
    double const seq_kl = rows.seq_kl.value(j);
    bool const per_sequence = loss.estimator == Estimator::gspo;
    PolicyTerm result{};
    result.k = per_sequence ? seq_kl : rows.old_log_probs.value(r) - now;
    double const rho = exp(-result.k);
    double const clipped_rho = clamped(rho, loss.lowest_ratio, loss.highest_ratio);
    result.clipped = loss.estimator == Estimator::cispo
                         ? clipped_rho != rho
                         : -clipped_rho * advantage > -rho * advantage;
    TisFactor const factor = tis_factor(rows, r, loss);
    result.tis_clipped = factor.clipped;
    if (opsm_hit(advantage, seq_kl, loss)) {
        return result;
    }
    if (loss.estimator == Estimator::cispo) {
        result.d_log_prob = -clipped_rho * advantage * factor.value;
        result.value = result.d_log_prob * now;
        return result;
    }
    Term const pg = clipped_objective(rho, clipped_rho, advantage, loss);
    result.value = pg.value * factor.value;
    if (!per_sequence) {
        result.d_log_prob = -pg.slope * factor.value;  // k = old - now
    } else if (rows.factor_mean.data != nullptr) {
        result.d_log_prob = -pg.slope * rows.factor_mean.value(j);
    } else {
        result.d_seq_kl = pg.slope * factor.value;
    }
    return result;
}

/// KL to the reference and its slope d/dnow.
__device__ Term kl_term(Rows const& rows, std::int64_t r, Loss const& loss) {
    if (rows.ref_log_probs.data == nullptr) {
        return {0.0, 0.0};
    }
    double const now = rows.log_probs.value(r);
    double const d = now - rows.ref_log_probs.value(r);
    Term kl{d, 1.0};
    if (loss.kl_type == KlType::k2) {
        kl = {0.5 * d * d, d};
    } else if (loss.kl_type == KlType::k3 || loss.kl_type == KlType::low_var_kl) {
        double const e = expm1(-d);
        kl = {e + d, -e};
    }
    if (loss.use_unbiased_kl) {
        double const ratio = exp(now - rows.old_log_probs.value(r));
        kl = {ratio * kl.value, ratio * (kl.slope + kl.value)};
    }
    if (loss.kl_type == KlType::low_var_kl && fabs(kl.value) > 10.0) {
        kl = {clamped(kl.value, -10.0, 10.0), 0.0};
    }
    return kl;
}

/// What the loss kernel writes: per row, per block, and per row again for gspo's path through k_j.
struct LossResults {
    Column<float> d_log_probs, d_entropy;
    double* block_metrics;  ///< (blocks, metric_count)
    double* row_d_k;        ///< (R); null where nobody sums them
};

/// One row; its shares of the metrics go to `sums`.
__device__ void loss_of_row(LossResults const& results, double (&sums)[metric_count],
                            Rows const& rows, std::int64_t r, Loss const& loss) {
    std::int64_t const j = rows.sample[r];
    double const weight = rows.weight.value(j);
    bool const counts = rows.mask[r] != 0;
    double d_log_prob = 0;
    double d_k = 0;
    sums[metric_opsm_clipfrac] =
        opsm_hit(rows.advantages.value(r), rows.seq_kl.value(j), loss) ? weight : 0.0;
    if (counts) {
        PolicyTerm const pg = policy_term(rows, r, loss);
        Term const kl = kl_term(rows, r, loss);
        sums[metric_pg_loss] = weight * pg.value;
        sums[metric_kl_loss] = weight * kl.value;
        sums[metric_pg_clipfrac] = pg.clipped ? weight : 0.0;
        sums[metric_ppo_kl] = weight * pg.k;
        sums[metric_tis_clipfrac] = pg.tis_clipped ? weight : 0.0;
        d_log_prob = weight * (pg.d_log_prob + loss.kl_coef * kl.slope);
        d_k = weight * pg.d_seq_kl;
    }
    bool const entropy_counts = counts || loss.count_masked_entropy;
    if (entropy_counts) {
        sums[metric_entropy_loss] = weight * rows.entropy.value(r);
    }
    results.d_log_probs[r] = static_cast<float>(d_log_prob);
    results.d_entropy[r] = entropy_counts ? static_cast<float>(-loss.entropy_coef * weight) : 0.0F;
    if (results.row_d_k != nullptr) {
        results.row_d_k[r] = d_k;
    }
}

constexpr int loss_threads = 128;  // rows are few: small blocks reach more multiprocessors

__global__ void __launch_bounds__(loss_threads)
    loss_kernel(LossResults const results, Rows const rows, Loss const loss) {
    __shared__ double room[warp_lanes];
    std::int64_t const r = std::int64_t{blockIdx.x} * loss_threads + threadIdx.x;
    double sums[metric_count] = {};
    if (r < rows.count) {
        loss_of_row(results, sums, rows, r, loss);
    }
#pragma unroll
    for (int i = 0; i < metric_count; ++i) {
        double const total = block_sum(sums[i], room);
        if (threadIdx.x == 0) {
            results.block_metrics[std::int64_t{blockIdx.x} * metric_count + i] = total;
        }
    }
}

/// Rows are read by as many threads as a block has: a block sums one sample.
constexpr int sum_threads = 1024;

/// Block i < metric_count: metrics_i += its sum over blocks of the loss kernel. Then a block a
/// sample: d_seq_kl_j += the sum of row_d_k over the rows of sample j.
__global__ void __launch_bounds__(sum_threads)
    loss_sums_kernel(Column<float> metrics, Column<float> d_seq_kl, LossResults const results,
                     std::int64_t blocks, Rows const rows) {
    __shared__ double room[warp_lanes];
    std::int64_t const sample = std::int64_t{blockIdx.x} - metric_count;
    double sum = 0;
    if (sample < 0) {
        for (std::int64_t b = threadIdx.x; b < blocks; b += sum_threads) {
            sum += results.block_metrics[b * metric_count + blockIdx.x];
        }
    } else {
        for (std::int64_t r = threadIdx.x; r < rows.count; r += sum_threads) {
            sum += rows.sample[r] == sample ? results.row_d_k[r] : 0.0;
        }
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) {
        float& total = sample < 0 ? metrics[blockIdx.x] : d_seq_kl[sample];
        total += static_cast<float>(sum);
    }
}

/// What sequence_kl_partial adds to: (n,1) each, factor absent where it is not wanted.
struct SequenceSums {
    Column<float> partial, factor, mask_sum;
};

/// Block j: sample j.
__global__ void __launch_bounds__(sum_threads)
    sequence_kl_kernel(SequenceSums const sums, Rows const rows, Loss const loss, double sign) {
    __shared__ double room[warp_lanes];
    std::int64_t const j = blockIdx.x;
    bool const want_factors = sums.factor.data != nullptr;
    double k = 0;
    double factor = 0;
#pragma unroll 4
    for (std::int64_t r = threadIdx.x; r < rows.count; r += sum_threads) {
        bool const counts = (rows.sample[r] == j) & (rows.mask[r] != 0);
        if (counts) {
            k += sign * (rows.old_log_probs.value(r) - rows.log_probs.value(r));
            factor += want_factors ? tis_factor(rows, r, loss).value : 0.0;
        }
    }
    k = block_sum(k, room);
    factor = block_sum(factor, room);
    if (threadIdx.x == 0) {
        double const tokens = sums.mask_sum.value(j);
        sums.partial[j] += static_cast<float>(k / tokens);
        if (want_factors) {
            sums.factor[j] += static_cast<float>(factor / tokens);
        }
    }
}

__global__ void __launch_bounds__(loss_threads)
    sequence_kl_backward_kernel(Column<float> d_log_probs, Column<float> d_seq_kl,
                                Column<float> mask_sum, Column<std::int32_t> mask,
                                Column<std::int32_t> sample, std::int64_t count) {
    std::int64_t const r = std::int64_t{blockIdx.x} * loss_threads + threadIdx.x;
    if (r < count && mask[r] != 0) {
        std::int64_t const j = sample[r];
        d_log_probs[r] -= d_seq_kl[j] / mask_sum[j];
    }
}

}  // namespace

void sequence_kl_partial(Device const& d, Tensor partial, Tensor factor_partial, Tensor mask_sum,
                         PolicyTensors const& rows, PolicyLossOptions const& options) {
    std::int64_t const n = rows.log_probs.rows;
    bool const tis = !factor_partial.absent() && options.use_tis;
    require(n == 0 || !tis || rows.rollout_log_probs.rows == n, ExitCode::internal,
            "sequence KL: TIS needs rollout log-probs of all {} rows", n);
    require(mask_sum.rows == partial.rows &&
                (factor_partial.absent() || factor_partial.rows == partial.rows),
            ExitCode::internal, "sequence KL: {} sums, {} factors, {} mask sums", partial.rows,
            factor_partial.rows, mask_sum.rows);
    if (n == 0 || partial.rows == 0) {
        return;
    }
    double const sign = planted(Fault::seq_kl_sign_flipped) ? -1.0 : 1.0;
    sequence_kl_kernel<<<static_cast<unsigned>(partial.rows), sum_threads, 0, d.stream>>>(
        {column<float>(partial), column<float>(factor_partial), column<float>(mask_sum)},
        device_rows(rows), device_loss(options), sign);
    CUDA_CHECK(cudaGetLastError());
}

void policy_loss(Device const& d, Tensor d_log_probs, Tensor d_entropy, Tensor d_seq_kl,
                 Tensor metrics, PolicyTensors const& rows, PolicyLossOptions const& options) {
    check_policy_loss(d_seq_kl, metrics, rows, options);
    std::int64_t const n = rows.log_probs.rows;
    if (n == 0) {
        return;
    }
    bool const sum_d_k = options.estimator == Estimator::gspo && rows.factor_mean.absent();
    std::int64_t const blocks = ceil_div(n, loss_threads);
    std::int64_t const doubles = blocks * metric_count + (sum_d_k ? n : 0);
    auto* const sums = static_cast<double*>(
        d.scratch->at_least(static_cast<std::size_t>(doubles) * sizeof(double), "loss sums"));
    LossResults const results{.d_log_probs = column<float>(d_log_probs),
                              .d_entropy = column<float>(d_entropy),
                              .block_metrics = sums,
                              .row_d_k = sum_d_k ? sums + blocks * metric_count : nullptr};
    Rows const inputs = device_rows(rows);
    loss_kernel<<<static_cast<unsigned>(blocks), loss_threads, 0, d.stream>>>(results, inputs,
                                                                              device_loss(options));
    CUDA_CHECK(cudaGetLastError());
    std::int64_t const sum_blocks = metric_count + (sum_d_k ? rows.weight.rows : 0);
    loss_sums_kernel<<<static_cast<unsigned>(sum_blocks), sum_threads, 0, d.stream>>>(
        column<float>(metrics), column<float>(d_seq_kl), results, blocks, inputs);
    CUDA_CHECK(cudaGetLastError());
}

void sequence_kl_backward(Device const& d, Tensor d_log_probs, Tensor d_seq_kl, Tensor mask_sum,
                          Tensor mask, Tensor sample) {
    std::int64_t const n = d_log_probs.rows;
    require(mask.rows == n && sample.rows == n && mask_sum.rows == d_seq_kl.rows,
            ExitCode::internal, "sequence KL: {} gradients, {} masks, {} samples of rows", n,
            mask.rows, sample.rows);
    if (n == 0) {
        return;
    }
    sequence_kl_backward_kernel<<<static_cast<unsigned>(ceil_div(n, loss_threads)), loss_threads, 0,
                                  d.stream>>>(column<float>(d_log_probs), column<float>(d_seq_kl),
                                              column<float>(mask_sum), column<std::int32_t>(mask),
                                              column<std::int32_t>(sample), n);
    CUDA_CHECK(cudaGetLastError());
}

}  // namespace cpstep::device
