// The policy loss, the norm and AdamW of the device against those of the host.
#define BOOST_TEST_MODULE cuda_loss
#include <array>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "cuda/fault.hpp"
#include "tests/gpu_pair.hpp"
#include "tests/policy_batch.hpp"

using namespace cpstep;
using cpstep::test::all_close;
using cpstep::test::Batch;
using cpstep::test::rounding_bound;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

std::vector<float> floats(std::vector<double> const& values) {
    return {values.begin(), values.end()};
}

/// How the gradient takes its path through k_j.
enum class Path : std::uint8_t { closed, summed };

/// What the loss makes of a batch.
struct Outcome {
    std::vector<float> seq_kl, factor_mean, d_log_probs, d_entropy, d_seq_kl, metrics;
};

/// The loss as the program calls it. Columns lie `gap` elements apart; sums start at 0.25 each.
class LossRun {
  public:
    LossRun(Backend& backend, Batch const& batch, std::int64_t gap)
        : backend_(backend),
          options_(batch.options),
          rows_(static_cast<std::int64_t>(batch.now.size())),
          samples_(static_cast<std::int64_t>(batch.weight.size())),
          gap_(gap),
          now_(column(batch.now)),
          old_(column(batch.old)),
          ref_(column(batch.ref)),
          rollout_(column(batch.rollout)),
          entropy_(column(batch.entropy)),
          advantages_(column(batch.advantages)),
          weight_(column(batch.weight)),
          mask_(uploaded(backend, batch.mask)),
          sample_(uploaded(backend, batch.sample)),
          mask_sum_(column(mask_sums(batch))),
          seq_kl_(sums(samples_)),
          factor_mean_(sums(samples_)),
          d_log_probs_(backend, rows_, 1, DType::f32, 1 + gap),
          d_entropy_(backend, rows_, 1, DType::f32, 1 + gap),
          d_seq_kl_(sums(samples_)),
          metrics_(sums(metric_count)) {}

    Outcome run(Path path, bool with_ref = true) {
        PolicyTensors inputs{.log_probs = now_,
                             .old_log_probs = old_,
                             .ref_log_probs = with_ref ? ref_.tensor() : Tensor{},
                             .rollout_log_probs = options_.use_tis ? rollout_.tensor() : Tensor{},
                             .entropy = entropy_,
                             .advantages = advantages_,
                             .mask = mask_,
                             .sample = sample_,
                             .seq_kl = seq_kl_,
                             .weight = weight_};
        bool const closed = path == Path::closed;
        backend_.sequence_kl_partial(seq_kl_, closed ? factor_mean_.tensor() : Tensor{}, mask_sum_,
                                     inputs, options_);
        inputs.factor_mean = closed ? factor_mean_.tensor() : Tensor{};
        backend_.policy_loss(d_log_probs_, d_entropy_, closed ? Tensor{} : d_seq_kl_.tensor(),
                             metrics_, inputs, options_);
        if (!closed) {
            backend_.sequence_kl_backward(d_log_probs_, d_seq_kl_, mask_sum_, mask_, sample_);
        }
        BOOST_TEST((d_log_probs_.gaps_untouched() && d_entropy_.gaps_untouched() &&
                    d_seq_kl_.gaps_untouched() && metrics_.gaps_untouched() &&
                    seq_kl_.gaps_untouched() && factor_mean_.gaps_untouched()));
        return {seq_kl_.values(),    factor_mean_.values(), d_log_probs_.values(),
                d_entropy_.values(), d_seq_kl_.values(),    metrics_.values()};
    }

  private:
    DeviceMatrix column(std::vector<double> const& values) {
        return {backend_, floats(values), static_cast<std::int64_t>(values.size()),
                1,        DType::f32,     1 + gap_};
    }
    DeviceMatrix sums(std::int64_t count) {
        return column(std::vector<double>(static_cast<std::size_t>(count), 0.25));
    }
    static std::vector<double> mask_sums(Batch const& batch) {
        std::vector<double> counts(batch.weight.size());
        for (std::size_t r = 0; r < batch.mask.size(); ++r) {
            counts[static_cast<std::size_t>(batch.sample[r])] += batch.mask[r];
        }
        for (double& count : counts) {
            count = std::max(count, 1.0);
        }
        return counts;
    }

    Backend& backend_;
    PolicyLossOptions options_;
    std::int64_t rows_, samples_, gap_;
    DeviceMatrix now_, old_, ref_, rollout_, entropy_, advantages_, weight_;
    Buffer mask_, sample_;
    DeviceMatrix mask_sum_, seq_kl_, factor_mean_, d_log_probs_, d_entropy_, d_seq_kl_, metrics_;
};

/// Both compute in double from the same floats: what differs is the last bits of exp and the order
/// of sums, far below a rounding to float. k_j is rounded to float on the way, and d_log_probs are
/// a difference of two floats below one: a few roundings of values of that size.
void compare(Outcome const& got, Outcome const& want) {
    double const bound = rounding_bound<float>(4, 1);
    BOOST_TEST(all_close(got.seq_kl, want.seq_kl, bound, bound));
    BOOST_TEST(all_close(got.factor_mean, want.factor_mean, bound, bound));
    BOOST_TEST(all_close(got.d_log_probs, want.d_log_probs, bound, bound));
    BOOST_TEST(all_close(got.d_entropy, want.d_entropy, bound, 0.0));
    BOOST_TEST(all_close(got.d_seq_kl, want.d_seq_kl, bound, bound));
    BOOST_TEST(all_close(got.metrics, want.metrics, bound, bound));
}

void compare_loss(Batch const& batch, std::int64_t gap, bool with_ref = true) {
    for (Path const path : {Path::closed, Path::summed}) {
        compare(LossRun(gpu(Precision::bf16), batch, gap).run(path, with_ref),
                LossRun(host(), batch, 0).run(path, with_ref));
    }
}

/// Rows of samples that take turns, more than one block has; one sample has no row.
Batch large_batch() {
    std::size_t const rows = 5003;
    std::int32_t const samples = 37;
    Batch batch;
    auto const noise = cpstep::test::random_values<double>(6 * rows, 9, 1.0);
    auto const draw = [&](std::size_t kind, std::size_t r) { return noise[kind * rows + r]; };
    for (std::size_t r = 0; r < rows; ++r) {
        auto const j = static_cast<std::int32_t>(r * r % static_cast<std::size_t>(samples - 1));
        batch.add(0.5 * draw(0, r), draw(1, r), draw(2, r) > -0.6 ? 1 : 0, j);
        batch.old[r] = -2.0 + draw(3, r);
        batch.now[r] = batch.old[r] + 0.5 * draw(0, r);
        batch.ref[r] = batch.now[r] + draw(4, r);
        batch.rollout[r] = batch.old[r] + draw(5, r);
        batch.entropy[r] = 1.0 + draw(4, r);
    }
    batch.weight.assign(static_cast<std::size_t>(samples), 1e-3);
    batch.options = {.eps_clip_high = 0.28,
                     .eps_clip_c = 1.5,
                     .use_opsm = true,
                     .use_tis = true,
                     .use_kl_loss = true,
                     .kl_type = KlType::low_var_kl,
                     .kl_loss_coef = 0.3,
                     .use_unbiased_kl = true,
                     .entropy_coef = 0.02};
    return batch;
}

}  // namespace

BOOST_AUTO_TEST_CASE(loss_equals_the_host_for_every_combination_of_options) {
    if (!gpu_present()) return;
    Batch batch = cpstep::test::varied_batch();
    for (PolicyLossOptions const& options : cpstep::test::every_combination()) {
        batch.options = options;
        compare_loss(batch, 0);
    }
}

BOOST_AUTO_TEST_CASE(loss_of_many_rows_equals_the_host) {
    if (!gpu_present()) return;
    Batch batch = large_batch();
    for (Estimator const estimator : {Estimator::grpo, Estimator::gspo, Estimator::cispo}) {
        batch.options.estimator = estimator;
        compare_loss(batch, 0);
        compare_loss(batch, 3);
    }
}

BOOST_AUTO_TEST_CASE(loss_without_a_reference_equals_the_host) {
    if (!gpu_present()) return;
    Batch batch = cpstep::test::varied_batch();
    batch.options.use_kl_loss = false;
    compare_loss(batch, 0, false);
}

BOOST_AUTO_TEST_CASE(masked_rows_that_hold_nan_get_zero_gradients) {
    if (!gpu_present()) return;
    Batch const batch = cpstep::test::varied_batch();
    Outcome const got = LossRun(gpu(Precision::fp32), batch, 0).run(Path::summed);
    for (std::size_t r = 0; r < batch.mask.size(); ++r) {
        if (batch.mask[r] == 0) {
            BOOST_TEST(got.d_log_probs[r] == 0.0F);
            BOOST_TEST(got.d_entropy[r] == 0.0F);
        }
    }
}

BOOST_AUTO_TEST_CASE(planted_faults_of_the_loss_are_the_hosts) {
    if (!gpu_present()) return;
    Batch batch = large_batch();
    batch.options.estimator = Estimator::gspo;
    Outcome const right = LossRun(gpu(Precision::fp32), batch, 0).run(Path::summed);
    for (Fault const fault : {Fault::seq_kl_sign_flipped, Fault::entropy_of_masked_rows}) {
        PlantedFault const planted(fault);
        compare_loss(batch, 0);
        Outcome const wrong = LossRun(gpu(Precision::fp32), batch, 0).run(Path::summed);
        BOOST_TEST((wrong.seq_kl != right.seq_kl || wrong.d_entropy != right.d_entropy));
    }
}

BOOST_AUTO_TEST_CASE(loss_of_zero_rows_leaves_the_sums) {
    if (!gpu_present()) return;
    Batch batch;
    batch.weight = {1.0, 1.0};
    batch.options.estimator = Estimator::gspo;
    Outcome const got = LossRun(gpu(Precision::fp32), batch, 0).run(Path::summed);
    BOOST_TEST(got.metrics == std::vector<float>(metric_count, 0.25F));
    BOOST_TEST(got.seq_kl == std::vector<float>(2, 0.25F));
    BOOST_TEST(got.d_seq_kl == std::vector<float>(2, 0.25F));
}

BOOST_AUTO_TEST_CASE(equal_calls_of_the_loss_give_equal_bits) {
    if (!gpu_present()) return;
    Batch batch = large_batch();
    batch.options.estimator = Estimator::gspo;
    Outcome const a = LossRun(gpu(Precision::fp32), batch, 0).run(Path::summed);
    Outcome const b = LossRun(gpu(Precision::fp32), batch, 0).run(Path::summed);
    BOOST_TEST(a.metrics == b.metrics);
    BOOST_TEST(a.d_seq_kl == b.d_seq_kl);
    BOOST_TEST(a.d_log_probs == b.d_log_probs);
}

BOOST_AUTO_TEST_CASE(norm_of_small_integers_is_exact) {
    if (!gpu_present()) return;
    Backend& backend = gpu(Precision::fp32);
    for (std::int64_t const n : {0, 1, 3, 255, 4096 + 3, 200001, 5000002}) {
        std::vector<float> const values(static_cast<std::size_t>(n), 3.0F);
        DeviceMatrix const x(backend, values, n, 1, DType::f32);
        DeviceMatrix const norm(backend, 1, 1, DType::f32);
        backend.norm(norm, x);
        double const squares = 9.0 * static_cast<double>(n);
        BOOST_TEST(backend.squared_norm(x) == squares);
        BOOST_TEST(norm.values()[0] == static_cast<float>(std::sqrt(squares)));
    }
}

BOOST_AUTO_TEST_CASE(norm_equals_the_host_through_views) {
    if (!gpu_present()) return;
    Backend& backend = gpu(Precision::fp32);
    std::int64_t const rows = 1003;
    std::int64_t const cols = 77;
    auto const values = random_values(rows * cols, 1);
    DeviceMatrix const there(backend, values, rows, cols, DType::f32);
    DeviceMatrix const gaps(backend, values, rows, cols, DType::f32, cols + 5);
    DeviceMatrix const here(host(), values, rows, cols, DType::f32);
    // sums in double of squares that are exact there: their order is all that differs
    double const bound = rounding_bound<double>(8, static_cast<double>(rows * cols));
    double const want = host().squared_norm(here);
    BOOST_TEST(std::abs(backend.squared_norm(there) - want) <= want * bound);
    BOOST_TEST(std::abs(backend.squared_norm(gaps) - want) <= want * bound);
    // a first element that no vector load may start at
    double const less = host().squared_norm(here.tensor().row_range(1, rows - 1));
    double const got = backend.squared_norm(there.tensor().row_range(1, rows - 1));
    BOOST_TEST(std::abs(got - less) <= less * bound);
}

BOOST_AUTO_TEST_CASE(one_bad_element_anywhere_makes_the_norm_nonfinite) {
    if (!gpu_present()) return;
    Backend& backend = gpu(Precision::fp32);
    std::int64_t const n = 70002;
    for (float const bad : {not_a_number, -std::numeric_limits<float>::infinity()}) {
        for (std::size_t const at : {0, 4099, 70001}) {
            std::vector<float> values(static_cast<std::size_t>(n), 1.0F);
            values[at] = bad;
            double const got =
                backend.squared_norm(DeviceMatrix(backend, values, n, 1, DType::f32));
            BOOST_TEST(!std::isfinite(got));
            BOOST_TEST(std::isnan(got) == std::isnan(bad));
        }
    }
}

namespace {

/// The arrays of AdamW on both sides; the first `skip` elements of each lie before the arena.
struct Arena {
    Arena(Precision p, std::int64_t n, std::int64_t skip = 0)
        : precision(p),
          size(n),
          first(skip),
          start(random_values(n + skip, 1)),
          w(p, start, n + skip, 1, DType::f32),
          m(p, random_values(n + skip, 2, DType::f32, 0.1F), n + skip, 1, DType::f32),
          v(p, std::vector<float>(start.size(), 0.01F), n + skip, 1, DType::f32),
          g(p, random_values(n + skip, 3), n + skip, 1, DType::f32),
          norm(p, 1, 1, DType::f32) {
        if (p == Precision::bf16) {
            rounded.emplace(gpu(p), n + skip, 1, DType::bf16);
        }
    }

    void update(std::vector<ParameterRange> const& ranges, AdamWOptions const& options) {
        for (Side const side : sides) {
            auto const arena = [&](Tensor t) { return t.row_range(first, size); };
            Backend& backend = backend_of(side, precision);
            backend.norm(norm[side], g[side]);
            bool const rounds = side == Side::device && rounded.has_value();
            backend.adamw(arena(w[side]), arena(m[side]), arena(v[side]), arena(g[side]),
                          norm[side], rounds ? arena(rounded->tensor()) : Tensor{}, ranges,
                          options);
        }
    }

    /// A few roundings of values of size one a step: products and sums may be fused on one side.
    void compare(int steps) const {
        double const bound = rounding_bound<float>(4, steps);
        BOOST_TEST(all_close(w.values(Side::device), w.values(Side::host), 0.0, bound));
        BOOST_TEST(all_close(m.values(Side::device), m.values(Side::host), 0.0, bound));
        BOOST_TEST(all_close(v.values(Side::device), v.values(Side::host), 0.0, bound));
    }

    /// `rounded` is w in bf16 where a range lies, untouched elsewhere; w changed only there.
    void check_places(std::vector<ParameterRange> const& ranges) const {
        std::vector<float> const now = w.values(Side::device);
        std::vector<float> const bits =
            rounded ? rounded->values() : std::vector<float>(now.size(), not_a_number);
        std::vector<bool> inside(now.size());
        for (ParameterRange const& range : ranges) {
            for (std::int64_t i = range.begin; i < range.end; ++i) {
                inside[static_cast<std::size_t>(first + i)] = true;
            }
        }
        std::int64_t wrong = 0;
        for (std::size_t i = 0; i < now.size(); ++i) {
            bool const kept = now[i] == start[i] && std::isnan(bits[i]);
            bool const written = !rounded || bits[i] == from_bf16(to_bf16(now[i]));
            wrong += (inside[i] ? written : kept) ? 0 : 1;
        }
        BOOST_TEST(wrong == 0);
    }

    Precision precision;
    std::int64_t size, first;
    std::vector<float> start;
    Pair w, m, v, g, norm;
    std::optional<DeviceMatrix> rounded;
};

/// Sections that begin and end off every boundary, gaps, empty ranges, one over several tiles.
std::vector<ParameterRange> const odd_ranges = {
    {3, 1001, true},    {1001, 1001, false}, {1001, 1030, false},   {1030, 1031, true},
    {1040, 8192, true}, {8192, 33001, true}, {33001, 33002, false}, {34000, 35003, true}};
constexpr std::int64_t odd_size = 35010;

}  // namespace

BOOST_AUTO_TEST_CASE(adamw_equals_the_host_over_odd_ranges) {
    if (!gpu_present()) return;
    for (Precision const precision : precisions) {
        // 1: no array of the arena is aligned for vector loads
        for (std::int64_t const skip : {0, 1}) {
            Arena arena(precision, odd_size, skip);
            for (int step = 1; step <= 3; ++step) {
                arena.update(odd_ranges, {.lr = 1e-2, .weight_decay = 0.1, .step = step});
            }
            arena.compare(3);
            arena.check_places(odd_ranges);
        }
    }
}

BOOST_AUTO_TEST_CASE(adamw_covers_the_whole_arena) {
    if (!gpu_present()) return;
    for (Precision const precision : precisions) {
        for (std::int64_t const n : {1, 4, 8191, 8192, 8193, 100003}) {
            Arena arena(precision, n);
            std::vector<ParameterRange> const all{{0, n, true}};
            arena.update(all, {.lr = 1e-2});
            arena.compare(1);
            arena.check_places(all);
        }
    }
}

BOOST_AUTO_TEST_CASE(adamw_of_more_tensors_than_one_launch_takes_equals_the_host) {
    if (!gpu_present()) return;
    std::vector<ParameterRange> ranges;
    for (std::int64_t i = 0; i < 1000; ++i) {
        ranges.push_back({i * 61, (i + 1) * 61, i % 2 == 0});
    }
    for (Precision const precision : precisions) {
        Arena arena(precision, 61000);
        arena.update(ranges, {.lr = 1e-2, .weight_decay = 0.5});
        arena.compare(1);
        arena.check_places(ranges);
    }
}

BOOST_AUTO_TEST_CASE(adamw_clips_by_the_norm_on_the_device) {
    if (!gpu_present()) return;
    for (double const limit : {0.5, 1e6}) {
        Arena arena(Precision::fp32, 9001);
        std::vector<ParameterRange> const all{{0, 9001, false}};
        arena.update(all, {.lr = 1e-2, .clip_grad = limit, .gradient_scale = 123});
        arena.compare(1);
    }
    // clip_grad 0: the scale given holds
    Arena arena(Precision::fp32, 9001);
    std::vector<ParameterRange> const all{{0, 9001, false}};
    arena.update(all, {.lr = 1e-2, .gradient_scale = 0.25});
    arena.compare(1);
}

BOOST_AUTO_TEST_CASE(a_nan_gradient_reaches_its_weight_only) {
    if (!gpu_present()) return;
    Arena arena(Precision::bf16, 9001);
    gpu(Precision::bf16).upload(arena.g[Side::device].row_range(5, 1), &not_a_number);
    std::vector<ParameterRange> const all{{0, 9001, true}};
    arena.update(all, {});
    std::vector<float> const w = arena.w.values(Side::device);
    for (std::size_t i = 0; i < w.size(); ++i) {
        BOOST_TEST(std::isnan(w[i]) == (i == 5));
    }
}

BOOST_AUTO_TEST_CASE(adamw_refuses_ranges_out_of_order_and_step_zero) {
    if (!gpu_present()) return;
    Arena arena(Precision::fp32, 100);
    BOOST_CHECK_THROW(arena.update({{0, 101, true}}, {}), Error);
    BOOST_CHECK_THROW(arena.update({{0, 100, true}}, {.step = 0}), Error);
    Backend& backend = gpu(Precision::fp32);
    std::vector<ParameterRange> const unordered{{50, 100, true}, {0, 50, true}};
    BOOST_CHECK_THROW(
        backend.adamw(arena.w[Side::device], arena.m[Side::device], arena.v[Side::device],
                      arena.g[Side::device], arena.norm[Side::device], {}, unordered, {}),
        Error);
}
