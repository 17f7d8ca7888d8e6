#define BOOST_TEST_MODULE rollout
#include <boost/test/unit_test.hpp>
#include <functional>
#include <limits>
#include <string>

#include "io/atomic_file.hpp"
#include "io/h5.hpp"
#include "io/rollout.hpp"
#include "tests/scratch.hpp"

namespace {

namespace fs = std::filesystem;
using namespace cpstep;
using cpstep::test::Folder;

/// (T,R): (4,2) (3,1) (5,4)
Rollout small() {
    return {.tokens = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12},
            .token_offsets = {0, 4, 7, 12},
            .response_offsets = {0, 2, 3, 7},
            .loss_mask = {1, 0, 1, 1, 1, 0, 1},
            .old_log_probs = {-1, -2, -3, -4, -5, -6, -7},
            .ref_log_probs = {-1.5, -2, -3, -4, -5, -6, -7},
            .rollout_log_probs = {},
            .rewards = {0, 1, 2},
            .groups = {0, 0, 1},
            .advantages = {}};
}

void check_equal(Rollout const& a, Rollout const& b) {
    BOOST_TEST(a.tokens == b.tokens);
    BOOST_TEST(a.token_offsets == b.token_offsets);
    BOOST_TEST(a.response_offsets == b.response_offsets);
    BOOST_TEST((a.loss_mask == b.loss_mask));
    BOOST_TEST(a.old_log_probs == b.old_log_probs);
    BOOST_TEST(a.ref_log_probs == b.ref_log_probs);
    BOOST_TEST(a.rollout_log_probs == b.rollout_log_probs);
    BOOST_TEST(a.rewards == b.rewards);
    BOOST_TEST(a.groups == b.groups);
    BOOST_TEST(a.advantages == b.advantages);
}

template <class F>
void check_refused(std::vector<std::string> const& texts, F const& f) {
    test::check_fails(ExitCode::input_data, texts, f);
}

void check_invalid(std::vector<std::string> const& texts,
                   std::function<void(Rollout&)> const& spoil) {
    Rollout rollout = small();
    spoil(rollout);
    check_refused(texts, [&] { validate_rollout(rollout, 13); });
}

/// The datasets of small() but one, which `replace` writes or leaves out.
fs::path spoiled_file(Folder const& folder, std::string const& name,
                      std::function<void(H5File&)> const& replace, std::int64_t version = 1,
                      std::string const& format = "cpstep-rollout") {
    Rollout const r = small();
    fs::path const path = folder.path / "spoiled.h5";
    H5File out = H5File::create(path);
    out.attribute("/", "format", format);
    out.attribute("/", "format_version", version);
    auto const put = [&](std::string const& dataset, auto const& values) {
        if (dataset != name) {
            out.write(dataset, std::span(values), {static_cast<std::int64_t>(values.size())}, "1");
        }
    };
    put("/tokens", r.tokens);
    put("/token_offsets", r.token_offsets);
    put("/response_offsets", r.response_offsets);
    put("/loss_mask", r.loss_mask);
    put("/old_log_probs", r.old_log_probs);
    put("/rewards", r.rewards);
    put("/groups", r.groups);
    replace(out);
    out.close();
    return path;
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_rollout_comes_back_as_it_was_written) {
    Folder const folder;
    Rollout r = small();
    write_rollout(folder.path / "a.h5", r);
    check_equal(read_rollout(folder.path / "a.h5"), r);
    BOOST_TEST(!fs::exists(folder.path / "a.h5.part"));
    r.advantages = {0.5, -0.5, 0};
    r.rewards.clear();
    r.groups.clear();
    r.rollout_log_probs = r.old_log_probs;
    write_rollout(folder.path / "a.h5", r);
    check_equal(read_rollout(folder.path / "a.h5"), r);
    validate_rollout(r, 13);
}

BOOST_AUTO_TEST_CASE(the_first_samples_are_a_rollout_of_their_own) {
    Rollout const r = small();
    Rollout const two = first_samples(r, 2);
    BOOST_TEST(two.samples() == 2);
    BOOST_TEST(two.tokens == (std::vector<std::int32_t>{1, 2, 3, 4, 5, 6, 7}));
    BOOST_TEST(two.response_offsets == (std::vector<std::int64_t>{0, 2, 3}));
    BOOST_TEST(two.old_log_probs == (std::vector<float>{-1, -2, -3}));
    BOOST_TEST(two.rollout_log_probs.empty());
    BOOST_TEST(two.groups == (std::vector<std::int32_t>{0, 0}));
    validate_rollout(two, 13);
    check_equal(first_samples(r, 3), r);
    check_refused({"4 samples asked for", "it has 3"}, [&] { first_samples(r, 4); });
    check_refused({"0 samples asked for"}, [&] { first_samples(r, 0); });
}

BOOST_AUTO_TEST_CASE(the_golden_rollout_has_its_documented_sizes) {
    fs::path const path = fs::path(CPSTEP_GOLDEN_DIR) / "rollout.h5";
    Rollout const r = read_rollout(path);
    validate_rollout(r, 512);
    std::vector<std::pair<int, int>> const sizes{{11, 6},  {40, 12}, {256, 16}, {300, 200},
                                                 {96, 95}, {5, 1},   {130, 64}, {512, 448}};
    BOOST_REQUIRE_EQUAL(r.samples(), 8);
    for (std::int64_t j = 0; j < r.samples(); ++j) {
        BOOST_TEST(r.total_length(j) == sizes[static_cast<std::size_t>(j)].first);
        BOOST_TEST(r.response_length(j) == sizes[static_cast<std::size_t>(j)].second);
    }
    BOOST_TEST(r.response_tokens() == 842);
    for (std::int64_t i = r.response_offsets[6]; i < r.response_offsets[7]; ++i) {
        BOOST_REQUIRE(r.loss_mask[static_cast<std::size_t>(i)] == 0);  // one sample is masked whole
    }
    BOOST_TEST(r.advantages.size() == 8U);
    BOOST_TEST(r.rollout_log_probs.size() == 842U);
}

BOOST_AUTO_TEST_CASE(each_broken_rule_is_named_with_its_sample) {
    validate_rollout(small(), 13);
    check_invalid({"tokens: sample 2", "13 is not in the vocabulary"},
                  [](auto& r) { r.tokens[9] = 13; });
    check_invalid({"tokens: sample 0", "-1 is not"}, [](auto& r) { r.tokens[0] = -1; });
    check_invalid({"loss_mask: sample 1", "2 is neither"}, [](auto& r) { r.loss_mask[2] = 2; });
    check_invalid({"every response token is masked"},
                  [](auto& r) { r.loss_mask.assign(r.loss_mask.size(), 0); });
    float const nan = std::numeric_limits<float>::quiet_NaN();
    float const inf = std::numeric_limits<float>::infinity();
    check_invalid({"old_log_probs: sample 2", "nan"}, [=](auto& r) { r.old_log_probs[6] = nan; });
    check_invalid({"ref_log_probs: sample 0", "-inf"}, [=](auto& r) { r.ref_log_probs[1] = -inf; });
    check_invalid({"rollout_log_probs: sample 1", "inf"}, [=](auto& r) {
        r.rollout_log_probs = r.old_log_probs;
        r.rollout_log_probs[2] = inf;
    });
    check_invalid({"rewards: sample 2"}, [=](auto& r) { r.rewards[2] = nan; });
    check_invalid({"advantages: sample 1"}, [=](auto& r) { r.advantages = {0, inf, 0}; });
}

BOOST_AUTO_TEST_CASE(sizes_that_do_not_fit_together_are_named) {
    check_invalid({"sample 1", "0 response tokens of 3"},
                  [](auto& r) { r.response_offsets = {0, 3, 3, 7}; });
    check_invalid({"sample 1", "3 response tokens of 3"},
                  [](auto& r) { r.response_offsets = {0, 1, 4, 7}; });
    check_invalid({"token_offsets: falls at sample 1"},
                  [](auto& r) { r.token_offsets = {0, 7, 4, 12}; });
    check_invalid({"token_offsets: ends with 11", "12 values"},
                  [](auto& r) { r.token_offsets[3] = 11; });
    check_invalid({"token_offsets: begins with 1"}, [](auto& r) { r.token_offsets[0] = 1; });
    check_invalid({"token_offsets: no sample"}, [](auto& r) { r.token_offsets = {0}; });
    check_invalid({"response_offsets: 2 samples", "has 3"},
                  [](auto& r) { r.response_offsets = {0, 2, 7}; });
    check_invalid({"response_offsets: ends with 7", "6 values"},
                  [](auto& r) { r.loss_mask.pop_back(); });
    check_invalid({"old_log_probs: 6 values, expected 7"},
                  [](auto& r) { r.old_log_probs.pop_back(); });
    check_invalid({"rewards: 2 values, expected 3"}, [](auto& r) { r.rewards.pop_back(); });
    check_invalid({"groups: 4 values, expected 3"}, [](auto& r) { r.groups.push_back(0); });
    check_invalid({"advantages: 1 values, expected 3"}, [](auto& r) { r.advantages = {1}; });
    check_invalid({"needs rewards and groups, or advantages"}, [](auto& r) { r.groups.clear(); });
}

BOOST_AUTO_TEST_CASE(files_of_another_kind_or_a_newer_version_are_refused) {
    Folder const folder;
    auto const nothing = [](H5File&) {};
    auto const read = [&](fs::path const& path) { return [path] { read_rollout(path); }; };
    BOOST_TEST(read_rollout(spoiled_file(folder, "", nothing)).tokens == small().tokens);
    check_refused({"spoiled.h5", "written by a newer version", "format_version is 2"},
                  read(spoiled_file(folder, "", nothing, 2)));
    check_refused({"spoiled.h5", "not a positive integer"},
                  read(spoiled_file(folder, "", nothing, 0)));
    check_refused({"spoiled.h5", "not a rollout file"},
                  read(spoiled_file(folder, "", nothing, 1, "cpstep-trace")));
    check_refused({"nowhere.h5", "no such file"}, read(folder.path / "nowhere.h5"));
}

BOOST_AUTO_TEST_CASE(a_missing_or_misshapen_dataset_is_named) {
    Folder const folder;
    auto const nothing = [](H5File&) {};
    auto const refused = [&](std::string const& name, std::string const& text,
                             std::function<void(H5File&)> const& replace) {
        fs::path const path = spoiled_file(folder, name, replace);
        check_refused({"spoiled.h5", name.substr(1), text}, [&] { read_rollout(path); });
    };
    refused("/tokens", "no such dataset", nothing);
    refused("/loss_mask", "no such dataset", nothing);
    refused("/rewards", "needs rewards and groups", nothing);
    refused("/tokens", "2 dimensions, expected 1", [](H5File& out) {
        out.write("/tokens", std::vector<std::int32_t>(12, 1), {3, 4}, "1");
    });
    refused("/tokens", "holds 32-bit float",
            [](H5File& out) { out.write("/tokens", std::vector<float>(12, 1), {12}, "1"); });
    refused("/tokens", "does not fit", [](H5File& out) {
        out.write("/tokens", std::vector<std::int64_t>(12, 1LL << 32), {12}, "1");
    });
    refused("/old_log_probs", "holds 64-bit integer", [](H5File& out) {
        out.write("/old_log_probs", std::vector<std::int64_t>(7, 1), {7}, "1");
    });
    refused("/token_offsets", "ends with 13", [](H5File& out) {
        out.write("/token_offsets", std::vector<std::int64_t>{0, 4, 7, 13}, {4}, "1");
    });
    refused("/groups", "expected 3",
            [](H5File& out) { out.write("/groups", std::vector<std::int32_t>{0}, {1}, "1"); });
}

BOOST_AUTO_TEST_CASE(a_published_file_appears_whole_and_leaves_no_part) {
    Folder const folder;
    fs::path const target = folder.path / "a.h5";
    test::put(part_of(target), "content");
    BOOST_TEST(!fs::exists(target));
    publish(target);
    BOOST_TEST(test::contents(target) == "content");
    BOOST_TEST(!fs::exists(part_of(target)));
    test::check_fails(ExitCode::output, "No such file", [&] { publish(target); });
}
