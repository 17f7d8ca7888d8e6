#define BOOST_TEST_MODULE loss_path
#include <array>
#include <cmath>
#include <numeric>

#include "app/loss_path.hpp"
#include "mpi/grid.hpp"
#include "tests/cases.hpp"
#include "tests/close.hpp"
#include "tests/groups.hpp"
#include "tests/views.hpp"

using namespace cpstep;
using cpstep::test::all_close;
using cpstep::test::make_rollout;
using cpstep::test::random_values;
using cpstep::test::rounding_bound;
using cpstep::test::test_world;
using cpstep::test::view;

namespace {

constexpr std::array loss_paths{LossComm::scalar, LossComm::padded, LossComm::gather};

/// One-token responses and long prompts leave ranks without response rows; sample 4 is all masked.
Rollout uneven_rollout() {
    return make_rollout(
        {{29, 17}, {2, 1}, {70, 1}, {40, 39}, {24, 20}, {64, 8}},
        [](std::int64_t j, std::int64_t i) { return j != 4 && (i == 0 || (i + j) % 5 != 0); });
}

/// Values of every response token, and one advantage a sample. Masked tokens hold NaN.
struct Values {
    explicit Values(Rollout const& rollout) {
        auto const n = static_cast<std::size_t>(rollout.response_tokens());
        auto const around = [n](unsigned seed, double scale, float mean) {
            std::vector<float> values = random_values<float>(n, seed, scale);
            for (float& value : values) {
                value += mean;
            }
            return values;
        };
        now = around(1, 0.5, -2.0F);
        entropy = around(5, 0.5, 1.5F);
        old = shifted(2, 0.3);
        ref = shifted(3, 0.4);
        rollout_engine = shifted(4, 0.8);
        for (std::int64_t j = 0; j < rollout.samples(); ++j) {
            for (std::int64_t i = rollout.response_offsets[j]; i < rollout.response_offsets[j + 1];
                 ++i) {
                old[i] += j % 3 == 0 ? 0.05F : -0.1F;  // k_j of both signs
                if (rollout.loss_mask[i] == 0) {
                    now[i] = old[i] = ref[i] = rollout_engine[i] = entropy[i] = std::nanf("");
                }
            }
            advantages.push_back(j % 2 == 0 ? -0.75F : 0.5F);
        }
        advantages[3] = -0.5F;
    }

    std::vector<float> shifted(unsigned seed, double scale) const {
        std::vector<float> values = random_values<float>(now.size(), seed, scale);
        for (std::size_t i = 0; i < values.size(); ++i) {
            values[i] += now[i];
        }
        return values;
    }

    std::vector<float> now, old, ref, rollout_engine, entropy;
    std::vector<float> advantages;
};

/// What the loss of a micro-batch gives: k_j a sample, metrics, gradients a response row of it.
struct Outcome {
    std::vector<double> seq_kl, metrics, d_log_probs, d_entropy;
};

std::vector<double> as_double(std::vector<float> const& values) {
    return {values.begin(), values.end()};
}

std::vector<float> picked(std::vector<float> const& values, ResponseRows const& rows) {
    std::vector<float> result;
    for (std::int64_t const i : rows.index) {
        result.push_back(values.at(i));
    }
    return result;
}

std::vector<float> advantages_of(Values const& values, MicroBatch const& batch,
                                 ResponseRows const& rows) {
    std::vector<float> result;
    for (std::int32_t const slot : rows.sample_of) {
        result.push_back(values.advantages.at(batch.samples.at(slot)));
    }
    return result;
}

/// The loss over all response rows at once, in double, its gradient through k_j in two steps.
Outcome expected(Values const& values, MicroBatch const& batch, PolicyLossOptions const& options) {
    ResponseRows rows = batch.all;
    std::int64_t const R = rows.size();
    std::int64_t const n = batch.sample_count();
    Outcome out;
    out.seq_kl.resize(n);
    out.metrics.resize(metric_count);
    out.d_log_probs.resize(R);
    out.d_entropy.resize(R);
    auto now = as_double(picked(values.now, rows));
    auto old = as_double(picked(values.old, rows));
    auto ref = as_double(picked(values.ref, rows));
    auto rollout = as_double(picked(values.rollout_engine, rows));
    auto entropy = as_double(picked(values.entropy, rows));
    auto advantages = as_double(advantages_of(values, batch, rows));
    auto mask_sum = as_double(batch.mask_sum);
    auto weight = as_double(batch.weight);
    std::vector<double> d_seq_kl(n);
    PolicyRows<double> const typed{.log_probs = view(now, R, 1),
                                   .old_log_probs = view(old, R, 1),
                                   .ref_log_probs = view(ref, R, 1),
                                   .rollout_log_probs = view(rollout, R, 1),
                                   .entropy = view(entropy, R, 1),
                                   .advantages = view(advantages, R, 1),
                                   .mask = view(rows.mask, R, 1),
                                   .sample = view(rows.sample_of, R, 1),
                                   .seq_kl = view(out.seq_kl, n, 1),
                                   .weight = view(weight, n, 1)};
    sequence_kl_partial<double>(view(out.seq_kl, n, 1), {}, view(mask_sum, n, 1), typed, options);
    policy_loss<double>(view(out.d_log_probs, R, 1), view(out.d_entropy, R, 1),
                        view(d_seq_kl, n, 1), view(out.metrics, metric_count, 1), typed, options);
    sequence_kl_backward<double>(view(out.d_log_probs, R, 1), view(d_seq_kl, n, 1),
                                 view(mask_sum, n, 1), view(rows.mask, R, 1),
                                 view(rows.sample_of, R, 1));
    return out;
}

/// One micro-batch on the CP group of all ranks.
struct Bench {
    Bench(Values const& values, MicroBatch const& micro_batch, Comm& cp)
        : batch(micro_batch), path(make_loss_path(*backend, cp, batch)), b(*backend, batch) {
        backend->upload(b.log_probs, picked(values.now, batch.own).data());
        backend->upload(b.entropy, picked(values.entropy, batch.own).data());
        ResponseRows const& rows = batch.loss_rows();
        backend->upload(b.old_log_probs, picked(values.old, rows).data());
        backend->upload(b.ref_log_probs, picked(values.ref, rows).data());
        backend->upload(b.rollout_log_probs, picked(values.rollout_engine, rows).data());
        backend->upload(b.advantages, advantages_of(values, batch, rows).data());
    }

    std::vector<double> downloaded(Tensor tensor) const {
        std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
        backend->download(values.data(), tensor);
        return as_double(values);
    }

    /// Of this rank: metrics summed over CP, k_j whole, gradients of own rows.
    Outcome apply(PolicyLossOptions const& options) {
        Buffer const metrics(*backend, metric_count, 1, DType::f32);
        backend->zero(metrics);
        path->apply(b,
                    {.log_probs = b.log_probs,
                     .old_log_probs = b.old_log_probs,
                     .ref_log_probs = b.ref_log_probs,
                     .rollout_log_probs = options.use_tis ? b.rollout_log_probs.tensor() : Tensor{},
                     .entropy = b.entropy,
                     .advantages = b.advantages,
                     .mask = b.mask,
                     .sample = b.sample_of,
                     .seq_kl = b.seq_kl,
                     .weight = b.weight},
                    options, metrics);
        Outcome out{downloaded(b.seq_kl), downloaded(metrics), downloaded(b.d_log_probs),
                    downloaded(b.d_entropy)};
        test_world().sum(out.metrics);
        if (!path->seq_kl_complete(options)) {
            test_world().sum(out.seq_kl);
        }
        return out;
    }

    std::unique_ptr<Backend> backend = make_host_backend(1);
    MicroBatch batch;
    std::unique_ptr<LossPath> path;
    BatchBuffers b;
};

std::vector<PolicyLossOptions> every_combination() {
    std::vector<PolicyLossOptions> all;
    for (Estimator const estimator : {Estimator::grpo, Estimator::gspo, Estimator::cispo}) {
        for (bool const opsm : {false, true}) {
            for (bool const tis : {false, true}) {
                PolicyLossOptions o;
                o.estimator = estimator;
                o.use_opsm = opsm;
                o.opsm_delta = 0.01;
                o.use_tis = tis;
                o.use_kl_loss = true;
                o.kl_type = KlType::low_var_kl;
                o.kl_loss_coef = 0.2;
                o.entropy_coef = 0.05;
                all.push_back(o);
            }
        }
    }
    return all;
}

/// Samples of two micro-batches: all in some order, and the long prompt with one response token,
/// whose row only one rank has.
std::array<std::vector<std::int64_t>, 2> const sample_lists{
    std::vector<std::int64_t>{3, 0, 4, 2, 1, 5}, std::vector<std::int64_t>{2}};

MicroBatch micro_batch(std::vector<std::int64_t> const& samples, CpLayout layout, LossComm loss) {
    Rollout const rollout = uneven_rollout();
    return make_micro_batch(rollout, samples, make_reduction(rollout, false),
                            {.size = test_world().size(), .layout = layout, .loss = loss},
                            test_world().rank());
}

/// Every layout and path with every micro-batch; f(bench).
template <class F>
void for_each_bench(Grid& grid, F const& f) {
    Values const values(uneven_rollout());
    for (auto const& samples : sample_lists) {
        for (CpLayout const layout : {CpLayout::zigzag, CpLayout::contiguous}) {
            for (LossComm const loss : loss_paths) {
                BOOST_TEST_CONTEXT(name_of(layout)
                                   << " " << name_of(loss) << " " << samples.size() << " samples") {
                    Bench bench(values, micro_batch(samples, layout, loss), grid.cp());
                    f(bench);
                }
            }
        }
    }
}

Grid whole_world() {
    return {test_world(), make_grid_shape(test_world().size(), test_world().size()),
            cpstep::test::host_wires()};
}

void check_outcome(Outcome const& got, Outcome const& want, MicroBatch const& batch) {
    // Sums of at most R rows, of which the largest terms are of size one.
    double const bound = rounding_bound<float>(8, static_cast<double>(batch.all.size()));
    BOOST_TEST(all_close(got.seq_kl, want.seq_kl, bound, bound));
    BOOST_TEST(all_close(got.metrics, want.metrics, bound, bound));
    std::vector<double> d_log_probs;
    std::vector<double> d_entropy;
    for (std::int32_t const place : batch.own_in_all) {
        d_log_probs.push_back(want.d_log_probs.at(place));
        d_entropy.push_back(want.d_entropy.at(place));
    }
    if (d_log_probs.empty()) {
        BOOST_TEST(got.d_log_probs.empty());
        return;
    }
    // Weights are at most 1/6 / M_j: a relative bound, and an absolute one far below a row's share.
    BOOST_TEST(all_close(got.d_log_probs, d_log_probs, bound, bound / 1000));
    BOOST_TEST(all_close(got.d_entropy, d_entropy, bound, 0));
}

}  // namespace

BOOST_AUTO_TEST_CASE(every_path_gives_the_loss_of_all_rows_at_once) {
    Grid grid = whole_world();
    Values const values(uneven_rollout());
    for_each_bench(grid, [&](Bench& bench) {
        for (PolicyLossOptions const& options : every_combination()) {
            BOOST_TEST_CONTEXT("estimator " << static_cast<int>(options.estimator) << " OPSM "
                                            << options.use_opsm << " TIS " << options.use_tis) {
                Outcome const want = expected(values, bench.batch, options);
                check_outcome(bench.apply(options), want, bench.batch);
            }
        }
    });
}

BOOST_AUTO_TEST_CASE(the_samples_reach_opsm_clips_and_ranks_without_rows) {
    Values const values(uneven_rollout());
    PolicyLossOptions options = every_combination().back();
    options.estimator = Estimator::gspo;
    MicroBatch const all = micro_batch(sample_lists[0], CpLayout::contiguous, LossComm::scalar);
    Outcome const want = expected(values, all, options);
    for (Metric const metric :
         {metric_opsm_clipfrac, metric_tis_clipfrac, metric_pg_loss, metric_kl_loss}) {
        BOOST_TEST(std::abs(want.metrics[metric]) > 0.01);
    }
    BOOST_TEST(want.metrics[metric_opsm_clipfrac] < 0.5);
    std::vector<double> empty{0.0};
    empty[0] =
        micro_batch(sample_lists[1], CpLayout::contiguous, LossComm::scalar).response_count() == 0
            ? 1.0
            : 0.0;
    test_world().sum(empty);
    BOOST_TEST(empty[0] == test_world().size() - 1);
}

BOOST_AUTO_TEST_CASE(a_pass_without_gradients_reaches_the_loss_rows) {
    Grid grid = whole_world();
    for_each_bench(grid, [&](Bench& bench) {
        std::vector<float> const own(bench.batch.own.index.begin(), bench.batch.own.index.end());
        ResponseRows const& rows = bench.batch.loss_rows();
        std::vector<double> const want(rows.index.begin(), rows.index.end());
        bench.backend->upload(bench.b.pass_log_probs, own.data());
        bench.path->share("old", bench.b.pass_log_probs, bench.b.entropy, bench.b.old_log_probs);
        BOOST_TEST(bench.downloaded(bench.b.old_log_probs) == want,
                   boost::test_tools::per_element());
    });
}

BOOST_AUTO_TEST_CASE(each_path_sends_what_it_is_known_for_and_nothing_else) {
    Grid grid = whole_world();
    int const C = test_world().size();
    for_each_bench(grid, [&](Bench& bench) {
        MicroBatch const& batch = bench.batch;
        std::int64_t const n = batch.sample_count();
        std::int64_t const R = batch.all.size();
        std::int64_t const tokens =
            std::accumulate(batch.stream_rows.begin(), batch.stream_rows.end(), std::int64_t{0});
        LedgerEntry const responses{"all_reduce", C, n, 4 * R};
        LedgerEntry const gathered{"all_gather", C, 1, 8 * (tokens - batch.rows())};
        for (PolicyLossOptions const& options : every_combination()) {
            bool const gspo = options.estimator == Estimator::gspo;
            Ledger want;
            if (batch.loss() == LossComm::scalar && (gspo || options.use_opsm)) {
                want["loss.seq_kl"] = {"all_reduce", C, 1, gspo && options.use_tis ? 8 * n : 4 * n};
            }
            if (batch.loss() == LossComm::padded && (gspo || options.use_opsm)) {
                want["loss.padded.new"] = want["loss.padded.old"] = responses;
            }
            if (batch.loss() == LossComm::padded && gspo) {
                want["loss.padded.new.backward"] = want["loss.padded.old.backward"] = responses;
            }
            if (batch.loss() == LossComm::gather) {
                want["loss.gather.ref"] = want["loss.gather.train"] = gathered;
                want["loss.gather.backward"] = {"reduce_scatter", C, 1, gathered.bytes};
            }
            grid.clear_ledger();
            bench.path->share("ref", bench.b.log_probs, bench.b.entropy, bench.b.ref_log_probs);
            bench.apply(options);
            BOOST_TEST((grid.ledger() == (C == 1 ? Ledger{} : want)));
        }
    });
}
