#define BOOST_TEST_MODULE micro_batch
#include <boost/test/unit_test.hpp>
#include <numeric>
#include <vector>

#include "app/layout.hpp"
#include "app/micro_batch.hpp"
#include "tests/cases.hpp"
#include "tests/close.hpp"

using namespace cpstep;
using cpstep::test::make_rollout;
using cpstep::test::SampleShape;

namespace {

bool two_of_three(std::int64_t sample, std::int64_t i) {
    return (sample + i) % 3 != 0;
}
bool none(std::int64_t, std::int64_t) {
    return false;
}

/// T < 2C, T < C, one response token, a response of all tokens but one, T divisible and not by 2C.
std::vector<SampleShape> const shapes{{2, 1},  {3, 2},   {5, 1},  {8, 7},
                                      {16, 4}, {17, 16}, {31, 1}, {64, 40}};

std::vector<std::int64_t> all_samples(Rollout const& rollout) {
    std::vector<std::int64_t> samples(static_cast<std::size_t>(rollout.samples()));
    std::iota(samples.begin(), samples.end(), 0);
    return samples;
}

/// How often the ranks of a CP group hold each token and each response token of the rollout.
struct Coverage {
    explicit Coverage(Rollout const& rollout)
        : tokens(rollout.tokens.size()), responses(rollout.loss_mask.size()) {}
    std::vector<int> tokens, responses;
};

/// Every row and response row of `batch` says what the rollout says.
void check_rows(Rollout const& rollout, MicroBatch const& batch, Coverage& coverage) {
    std::vector<std::int64_t> sample_of_row;
    for (std::int64_t const sample : batch.samples) {
        std::int64_t const rows = owned_rows(rollout.total_length(sample),
                                             {.ranks = batch.plan.config.size}, batch.plan.rank);
        sample_of_row.insert(sample_of_row.end(), static_cast<std::size_t>(rows), sample);
    }
    BOOST_REQUIRE(batch.rows() == std::ssize(sample_of_row));
    BOOST_TEST(batch.rows() == batch.plan.own_rows);
    if (batch.loss() == LossComm::gather) {
        BOOST_TEST(batch.rows() == batch.stream_rows[batch.plan.rank]);
    }
    for (std::size_t row = 0; row < sample_of_row.size(); ++row) {
        std::int64_t const at = rollout.token_offsets[sample_of_row[row]] + batch.positions[row];
        BOOST_TEST(batch.tokens[row] == rollout.tokens[at]);
        coverage.tokens[at] += 1;
    }
    for (std::size_t r = 0; r < batch.targets.size(); ++r) {
        auto const row = static_cast<std::size_t>(batch.response_rows[r]);
        std::int64_t const sample = sample_of_row.at(row);
        std::int64_t const prompt = rollout.total_length(sample) - rollout.response_length(sample);
        std::int64_t const index =
            rollout.response_offsets[sample] + batch.positions[row] + 1 - prompt;
        BOOST_TEST(batch.own.index[r] == index);
        BOOST_TEST(batch.targets[r] ==
                   rollout.tokens[rollout.token_offsets[sample] + batch.positions[row] + 1]);
        BOOST_TEST(batch.own.mask[r] == rollout.loss_mask.at(index));
        BOOST_TEST(batch.samples.at(batch.own.sample_of[r]) == sample);
        BOOST_TEST((r == 0 || batch.response_rows[r] > batch.response_rows[r - 1]));
        BOOST_TEST(batch.all.index.at(static_cast<std::size_t>(batch.own_in_all.at(r))) == index);
        coverage.responses.at(index) += 1;
    }
}

void check_cover(Rollout const& rollout, std::vector<std::int64_t> const& samples, int cp) {
    Coverage coverage(rollout);
    Reduction const reduction = make_reduction(rollout, false);
    for (int rank = 0; rank < cp; ++rank) {
        CpConfig const config{.size = cp, .loss = LossComm::gather};
        check_rows(rollout, make_micro_batch(rollout, samples, reduction, config, rank), coverage);
    }
    BOOST_TEST(std::count(coverage.tokens.begin(), coverage.tokens.end(), 1) ==
               std::ssize(coverage.tokens));
    BOOST_TEST(std::count(coverage.responses.begin(), coverage.responses.end(), 1) ==
               std::ssize(coverage.responses));
}

}  // namespace

BOOST_AUTO_TEST_CASE(ranks_together_hold_each_response_token_once_with_its_target) {
    for (int const cp : {1, 2, 3, 4, 5, 8, 64}) {
        BOOST_TEST_CONTEXT("CP " << cp) {
            Rollout const rollout = make_rollout(shapes, two_of_three);
            check_cover(rollout, all_samples(rollout), cp);
            for (SampleShape const shape : shapes) {
                Rollout const one = make_rollout({shape}, none);
                check_cover(one, {0}, cp);
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(every_small_sequence_and_response_is_covered) {
    for (std::int64_t total = 2; total <= 13; ++total) {
        for (std::int64_t response = 1; response < total; ++response) {
            for (int const cp : {1, 2, 3, 4}) {
                BOOST_TEST_CONTEXT("T " << total << " R " << response << " CP " << cp) {
                    check_cover(make_rollout({{total, response}}, two_of_three), {0}, cp);
                }
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(the_last_row_of_a_chunk_predicts_the_first_token_of_the_next) {
    // T 8, CP 2: chunks {0,1} {2,3} {4,5} {6,7}; rank 0 owns the first and the last. P 1: rows 0..6
    // respond.
    Rollout const rollout = make_rollout({{8, 7}});
    Reduction const reduction = make_reduction(rollout, false);
    std::vector<std::int64_t> const samples{0};
    MicroBatch const outer = make_micro_batch(rollout, samples, reduction, {.size = 2}, 0);
    BOOST_TEST(outer.positions == (std::vector<std::int32_t>{0, 1, 6, 7}),
               boost::test_tools::per_element());
    BOOST_TEST(outer.response_rows == (std::vector<std::int32_t>{0, 1, 2}),
               boost::test_tools::per_element());
    BOOST_TEST(outer.targets == (std::vector<std::int32_t>{1, 2, 7}),
               boost::test_tools::per_element());
    BOOST_TEST(outer.own.index == (std::vector<std::int64_t>{0, 1, 6}),
               boost::test_tools::per_element());
    MicroBatch const inner = make_micro_batch(rollout, samples, reduction, {.size = 2}, 1);
    BOOST_TEST(inner.positions == (std::vector<std::int32_t>{2, 3, 4, 5}),
               boost::test_tools::per_element());
    BOOST_TEST(inner.targets == (std::vector<std::int32_t>{3, 4, 5, 6}),
               boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(the_first_response_row_is_the_last_prompt_row_and_the_last_token_has_none) {
    Rollout const rollout = make_rollout({{6, 2}, {4, 1}});
    std::vector<std::int64_t> const samples{1, 0};
    MicroBatch const batch =
        make_micro_batch(rollout, samples, make_reduction(rollout, false), {.size = 1}, 0);
    BOOST_TEST(batch.tokens == (std::vector<std::int32_t>{100, 101, 102, 103, 0, 1, 2, 3, 4, 5}),
               boost::test_tools::per_element());
    BOOST_TEST(batch.response_rows == (std::vector<std::int32_t>{2, 7, 8}),
               boost::test_tools::per_element());
    BOOST_TEST(batch.targets == (std::vector<std::int32_t>{103, 4, 5}),
               boost::test_tools::per_element());
    BOOST_TEST(batch.own.sample_of == (std::vector<std::int32_t>{0, 1, 1}),
               boost::test_tools::per_element());
    BOOST_TEST(batch.own.index == (std::vector<std::int64_t>{2, 0, 1}),
               boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(every_rank_knows_all_response_rows_and_where_they_lie_in_the_streams) {
    Rollout const rollout = make_rollout(shapes, two_of_three);
    Reduction const reduction = make_reduction(rollout, false);
    std::vector<std::int64_t> const samples{5, 0, 7, 3};
    for (CpLayout const layout : {CpLayout::zigzag, CpLayout::contiguous}) {
        for (int const cp : {1, 2, 3, 4, 8}) {
            std::vector<MicroBatch> ranks;
            std::vector<std::int64_t> joined;  // response index of each stream row, -1 without
            for (int rank = 0; rank < cp; ++rank) {
                ranks.push_back(make_micro_batch(
                    rollout, samples, reduction,
                    {.size = cp, .layout = layout, .loss = LossComm::gather}, rank));
                std::vector<std::int64_t> stream(ranks.back().tokens.size(), -1);
                for (std::size_t r = 0; r < ranks.back().own.index.size(); ++r) {
                    stream.at(ranks.back().response_rows[r]) = ranks.back().own.index[r];
                }
                joined.insert(joined.end(), stream.begin(), stream.end());
            }
            std::vector<std::int64_t> want;
            for (std::int64_t const sample : samples) {
                for (std::int64_t i = rollout.response_offsets[sample];
                     i < rollout.response_offsets[sample + 1]; ++i) {
                    want.push_back(i);
                }
            }
            for (MicroBatch const& batch : ranks) {
                BOOST_TEST(batch.all.index == want, boost::test_tools::per_element());
                BOOST_TEST(batch.response_begin == (std::vector<std::int64_t>{0, 16, 17, 57, 64}),
                           boost::test_tools::per_element());
                BOOST_REQUIRE(batch.stream_rows.size() == ranks.size());
                for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
                    BOOST_TEST(batch.stream_rows[rank] == ranks[rank].rows());
                }
                BOOST_REQUIRE(batch.all_in_streams.size() == want.size());
                for (std::size_t i = 0; i < want.size(); ++i) {
                    BOOST_TEST(joined.at(batch.all_in_streams[i]) == want[i]);
                    BOOST_TEST(batch.all.mask[i] == rollout.loss_mask[want[i]]);
                    std::int64_t const sample = batch.samples.at(batch.all.sample_of[i]);
                    BOOST_TEST(rollout.response_offsets[sample] <= want[i]);
                    BOOST_TEST(want[i] < rollout.response_offsets[sample + 1]);
                }
            }
        }
    }
}

BOOST_AUTO_TEST_CASE(the_loss_is_evaluated_at_own_rows_or_when_gathered_at_all) {
    Rollout const rollout = make_rollout({{8, 7}});
    Reduction const reduction = make_reduction(rollout, false);
    std::vector<std::int64_t> const samples{0};
    for (LossComm const loss : {LossComm::scalar, LossComm::padded, LossComm::gather}) {
        MicroBatch const batch =
            make_micro_batch(rollout, samples, reduction, {.size = 2, .loss = loss}, 0);
        bool const all = loss == LossComm::gather;
        BOOST_TEST(batch.loss_rows().size() == (all ? 7 : 3));
        BOOST_TEST(batch.loss_place(2) == (all ? 6U : 2U));
    }
}

BOOST_AUTO_TEST_CASE(a_rank_without_rows_still_knows_its_samples) {
    Rollout const rollout = make_rollout({{2, 1}});
    std::vector<std::int64_t> const samples{0};
    MicroBatch const batch =
        make_micro_batch(rollout, samples, make_reduction(rollout, false), {.size = 4}, 2);
    BOOST_TEST(batch.rows() == 0);
    BOOST_TEST(batch.response_count() == 0);
    BOOST_TEST(batch.sample_count() == 1);
    BOOST_TEST(batch.mask_sum.at(0) == 1.0F);
    BOOST_TEST(batch.weight.at(0) == 1.0F);
}

BOOST_AUTO_TEST_CASE(weights_are_of_the_global_batch_and_a_masked_sample_counts_one) {
    // Mask sums 2, 0 and 5 in a batch of 3.
    Rollout const rollout =
        make_rollout({{9, 3}, {9, 4}, {9, 5}},
                     [](std::int64_t j, std::int64_t i) { return j == 2 || (j == 0 && i != 1); });
    std::vector<std::int64_t> const samples{2, 0, 1};
    for (int const cp : {1, 2, 4}) {
        for (int rank = 0; rank < cp; ++rank) {
            MicroBatch const mean = make_micro_batch(
                rollout, samples, make_reduction(rollout, false), {.size = cp}, rank);
            BOOST_TEST(mean.mask_sum == (std::vector<float>{5, 2, 1}),
                       boost::test_tools::per_element());
            BOOST_TEST(mean.weight == (std::vector<float>{1 / 15.0F, 1 / 6.0F, 1 / 3.0F}),
                       boost::test_tools::per_element());
            MicroBatch const token = make_micro_batch(
                rollout, samples, make_reduction(rollout, true), {.size = cp}, rank);
            BOOST_TEST(token.weight == std::vector<float>(3, 1 / 8.0F),
                       boost::test_tools::per_element());
        }
    }
    std::vector<std::int64_t> const alone{0};
    BOOST_TEST(make_micro_batch(rollout, alone, make_reduction(rollout, false), {.size = 2}, 1)
                   .weight.at(0) == 1 / 6.0F);
}

BOOST_AUTO_TEST_CASE(a_constant_over_tokens_averages_to_itself) {
    // sum over ranks, micro-batches and rows of weight * mask is 1 when each sample has an unmasked
    // token.
    Rollout const rollout =
        make_rollout({{12, 7}, {5, 2}, {33, 20}, {9, 4}},
                     [](std::int64_t j, std::int64_t i) { return i == 0 || (i + j) % 3 != 0; });
    for (bool const per_token : {false, true}) {
        Reduction const reduction = make_reduction(rollout, per_token);
        double sum = 0;
        int terms = 0;
        for (auto const& samples : std::vector<std::vector<std::int64_t>>{{3, 0}, {1}, {2}}) {
            for (int rank = 0; rank < 3; ++rank) {
                MicroBatch const batch =
                    make_micro_batch(rollout, samples, reduction, {.size = 3}, rank);
                for (std::size_t r = 0; r < batch.own.mask.size(); ++r) {
                    sum += batch.own.mask[r] *
                           static_cast<double>(batch.weight[batch.own.sample_of[r]]);
                    terms += batch.own.mask[r];
                }
            }
        }
        // Each weight is rounded once to float.
        BOOST_TEST(test::within(sum, 1.0, test::rounding_bound<float>(1, terms), 0), sum);
    }
}
