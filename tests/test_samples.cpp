#define BOOST_TEST_MODULE samples
#include <unistd.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "app/samples.hpp"
#include "cuda/error.hpp"
#include "io/tokenizer.hpp"

using namespace cpstep;
namespace fs = std::filesystem;

namespace {

fs::path const inputs = fs::path(CPSTEP_SOURCE_DIR) / "inputs";

// What inputs/smoke.ini sets for the samples.
Options smoke() {
    Options options;
    options.hf_checkpoint = inputs / "tiny";
    options.prompt_data = inputs / "prompts.jsonl";
    options.input_key = "messages";
    options.apply_chat_template = true;
    options.n_samples_per_prompt = 2;
    options.global_batch_size = 16;
    options.rollout_max_response_len = 64;
    options.rollout_noise = 0.05;
    return options;
}

ModelConfig tiny() {
    ModelConfig model;
    model.vocab_size = 384;
    model.max_position_embeddings = 4096;
    return model;
}

std::vector<std::int32_t> prompt_of(Rollout const& rollout, std::int64_t j) {
    return {rollout.tokens.begin() + rollout.token_offsets[j],
            rollout.tokens.begin() + rollout.token_offsets[j + 1] - rollout.response_length(j)};
}

std::vector<std::int32_t> response_of(Rollout const& rollout, std::int64_t j) {
    return {rollout.tokens.begin() + rollout.token_offsets[j + 1] - rollout.response_length(j),
            rollout.tokens.begin() + rollout.token_offsets[j + 1]};
}

bool noted(SampleSet const& set, std::string const& text) {
    return std::any_of(set.notes.begin(), set.notes.end(), [&](std::string const& note) {
        return note.find(text) != std::string::npos;
    });
}

// True if load_samples fails with this code and a message that holds `text`.
bool fails(Options const& options, ModelConfig const& model, ExitCode code,
           std::string const& text) {
    try {
        load_samples(options, model);
    } catch (Error const& error) {
        BOOST_TEST_MESSAGE(error.what());
        return error.code() == code && std::string(error.what()).find(text) != std::string::npos;
    }
    return false;
}

struct TemporaryFolder {
    fs::path path = fs::temp_directory_path() / ("cpstep_samples_" + std::to_string(getpid()));
    TemporaryFolder() { fs::create_directories(path); }
    ~TemporaryFolder() {
        std::error_code ignored;
        fs::remove_all(path, ignored);
    }
    fs::path write(std::string const& name, std::string const& text) const {
        std::ofstream(path / name) << text;
        return path / name;
    }
};

}  // namespace

BOOST_AUTO_TEST_CASE(counter_bits_depend_on_every_argument) {
    std::set<std::uint64_t> seen;
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
        for (std::uint64_t stream = 0; stream < 10; ++stream) {
            for (std::uint64_t index = 0; index < 100; ++index) {
                seen.insert(counter_bits(seed, stream, index));
            }
        }
    }
    BOOST_TEST(seen.size() == 10'000u);
    BOOST_TEST(counter_bits(1, 2, 3) == counter_bits(1, 2, 3));
}

BOOST_AUTO_TEST_CASE(counter_normal_has_the_moments_of_a_normal_number) {
    double const count = 100'000;
    double sum = 0, squares = 0, fourth = 0, neighbours = 0, streams = 0;
    for (std::uint64_t i = 0; i < 100'000; ++i) {
        double const x = counter_normal(5, 1, i);
        sum += x;
        squares += x * x;
        fourth += x * x * x * x;
        neighbours += x * counter_normal(5, 1, i + 1);
        streams += x * counter_normal(5, 2, i);
    }
    // Five standard errors: variances of x, x^2, x^4 and xy are 1, 2, 96 and 1.
    double const error = 5 / std::sqrt(count);
    BOOST_TEST(std::abs(sum / count) < error);
    BOOST_TEST(std::abs(squares / count - 1) < error * std::sqrt(2.0));
    BOOST_TEST(std::abs(fourth / count - 3) < error * std::sqrt(96.0));
    BOOST_TEST(std::abs(neighbours / count) < error);
    BOOST_TEST(std::abs(streams / count) < error);
}

BOOST_AUTO_TEST_CASE(the_smoke_run_has_valid_samples_in_groups) {
    SampleSet const set = load_samples(smoke(), tiny());
    Rollout const& rollout = set.rollout;
    validate_rollout(rollout, 384);
    BOOST_TEST_REQUIRE(rollout.samples() == 16);
    BOOST_TEST(set.synthetic_old);
    BOOST_TEST(set.notes.empty());
    std::vector<std::int32_t> const special =
        Tokenizer(inputs / "tiny" / "tokenizer.json").special_ids();
    std::set<std::vector<std::int32_t>> prompts;
    std::set<std::int64_t> lengths;
    for (std::int64_t j = 0; j < 16; ++j) {
        BOOST_TEST(rollout.groups[j] == j / 2);
        BOOST_TEST((prompt_of(rollout, j) == prompt_of(rollout, j - j % 2)));
        BOOST_TEST(rollout.response_length(j) >= 1);
        BOOST_TEST(rollout.response_length(j) <= 64);
        BOOST_TEST((rollout.rewards[j] >= 0.0f && rollout.rewards[j] < 1.0f));
        BOOST_TEST(set.advantages[j] == -set.advantages[j ^ 1]);
        BOOST_TEST(set.advantages[j] != 0.0f);
        for (std::int32_t const id : response_of(rollout, j)) {
            BOOST_TEST((std::find(special.begin(), special.end(), id) == special.end()));
        }
        prompts.insert(prompt_of(rollout, j));
        lengths.insert(rollout.response_length(j));
    }
    BOOST_TEST(prompts.size() == 8u);
    BOOST_TEST(lengths.size() > 8u);
    BOOST_TEST(std::count(rollout.loss_mask.begin(), rollout.loss_mask.end(), 1) ==
               rollout.response_tokens());
    BOOST_TEST(std::ssize(set.old_noise) == rollout.response_tokens());
    BOOST_TEST(std::ssize(set.rollout_noise) == rollout.response_tokens());
}

BOOST_AUTO_TEST_CASE(the_smoke_run_clips_some_samples_and_not_all) {
    SampleSet const set = load_samples(smoke(), tiny());
    double const eps = 0.01;  // eps-clip of smoke.ini
    int clipped = 0;
    for (std::int64_t j = 0; j < set.rollout.samples(); ++j) {
        double k = 0;  // old - new, with new the policy that the noise was added to
        for (std::int64_t t = set.rollout.response_offsets[j];
             t < set.rollout.response_offsets[j + 1]; ++t) {
            k += set.old_noise[t] / static_cast<double>(set.rollout.response_length(j));
        }
        double const ratio = std::exp(-k);
        clipped += set.advantages[j] > 0 ? ratio > 1 + eps : ratio < 1 - eps;
    }
    BOOST_TEST_MESSAGE(clipped << " of 16 samples are clipped");
    BOOST_TEST(clipped >= 2);
    BOOST_TEST(clipped <= 14);
}

BOOST_AUTO_TEST_CASE(samples_repeat_for_a_seed_and_change_with_it) {
    Options options = smoke();
    SampleSet const first = load_samples(options, tiny());
    SampleSet const again = load_samples(options, tiny());
    BOOST_TEST((first.rollout.tokens == again.rollout.tokens));
    BOOST_TEST((first.old_noise == again.old_noise));
    BOOST_TEST((first.advantages == again.advantages));
    options.seed = 1235;
    SampleSet const other = load_samples(options, tiny());
    BOOST_TEST((first.rollout.tokens != other.rollout.tokens));
    BOOST_TEST((first.old_noise != other.old_noise));
    BOOST_TEST((first.rollout.rewards != other.rollout.rewards));
}

BOOST_AUTO_TEST_CASE(a_smaller_batch_is_the_beginning_of_a_larger_one) {
    Options options = smoke();
    Rollout const large = load_samples(options, tiny()).rollout;
    options.global_batch_size = 6;
    Rollout const small = load_samples(options, tiny()).rollout;
    Rollout const cut = first_samples(large, 6);
    BOOST_TEST((small.tokens == cut.tokens));
    BOOST_TEST((small.response_offsets == cut.response_offsets));
    BOOST_TEST((small.rewards == cut.rewards));
}

BOOST_AUTO_TEST_CASE(noise_has_the_documented_size) {
    Options options = smoke();
    options.rollout_fixed_response_len = true;
    options.rollout_max_response_len = 512;
    options.global_batch_size = 64;
    SampleSet const set = load_samples(options, tiny());
    double old_squares = 0, engine_squares = 0;
    for (std::size_t i = 0; i < set.old_noise.size(); ++i) {
        old_squares += std::pow(set.old_noise[i] / options.rollout_noise, 2);
        engine_squares += std::pow(set.rollout_noise[i] / options.rollout_noise, 2);
    }
    double const count = static_cast<double>(set.old_noise.size());
    // Token noise of variance 1, shift and engine noise of 1/16. Five standard errors each, that of
    // the shift over 64 samples.
    double const error = 5 * std::sqrt(2.0 / count);
    BOOST_TEST(std::abs(old_squares / count - 17.0 / 16) <
               error + 5 * std::sqrt(2.0 / 64) / 16 + 5 * 2 * 0.25 / std::sqrt(count));
    BOOST_TEST(std::abs(engine_squares / count - 1.0 / 16) < error / 16);
    for (std::int64_t j = 0; j < 64; ++j) {
        BOOST_TEST(set.rollout.response_length(j) == 512);
    }

    options.rollout_noise = 0;
    for (float const noise : load_samples(options, tiny()).old_noise) {
        BOOST_TEST_REQUIRE(noise == 0.0f);
    }
}

BOOST_AUTO_TEST_CASE(sizes_of_rollout_and_batch_are_explained) {
    Options options = smoke();
    options.n_samples_per_prompt = 1;
    options.rollout_batch_size = 2;
    options.global_batch_size = 8;
    SampleSet const combined = load_samples(options, tiny());
    BOOST_TEST(noted(combined, "4 rollouts of 2 prompts are combined into one step of 8 samples"));
    for (float const advantage : combined.advantages) {
        BOOST_TEST(advantage == 0.0f);
    }
    options.rollout_batch_size = 8;
    options.global_batch_size = 6;
    BOOST_TEST(noted(load_samples(options, tiny()), "first 6 of the rollout's 8 samples"));
    options.rollout_batch_size = 6;
    BOOST_TEST(load_samples(options, tiny()).notes.empty());
    options.global_batch_size = 0;
    BOOST_TEST(load_samples(options, tiny()).rollout.samples() == 6);
    options.rollout_batch_size = 0;
    options.n_samples_per_prompt = 3;
    BOOST_TEST(load_samples(options, tiny()).rollout.samples() == 24);
}

BOOST_AUTO_TEST_CASE(a_short_file_is_used_again_with_other_responses) {
    Options options = smoke();
    options.n_samples_per_prompt = 1;
    options.global_batch_size = 10;
    SampleSet const set = load_samples(options, tiny());
    BOOST_TEST(noted(set, "8 prompts for the 10 needed"));
    BOOST_TEST((prompt_of(set.rollout, 8) == prompt_of(set.rollout, 0)));
    BOOST_TEST((response_of(set.rollout, 8) != response_of(set.rollout, 0)));
    BOOST_TEST(set.rollout.groups[8] == 8);
}

BOOST_AUTO_TEST_CASE(sequences_beyond_the_models_positions_are_noted) {
    Options options = smoke();
    ModelConfig model = tiny();
    model.max_position_embeddings = 20;
    BOOST_TEST(noted(load_samples(options, model), "config.json names 20 positions"));
}

BOOST_AUTO_TEST_CASE(a_shuffle_permutes_the_prompts_of_each_pass) {
    Options options = smoke();
    options.n_samples_per_prompt = 1;
    options.global_batch_size = 16;
    Rollout const plain = load_samples(options, tiny()).rollout;
    options.rollout_shuffle = true;
    Rollout const shuffled = load_samples(options, tiny()).rollout;
    std::vector<std::vector<std::int32_t>> file, first, second;
    for (std::int64_t j = 0; j < 8; ++j) {
        file.push_back(prompt_of(plain, j));
        first.push_back(prompt_of(shuffled, j));
        second.push_back(prompt_of(shuffled, j + 8));
    }
    BOOST_TEST((first != file));
    BOOST_TEST((first != second));
    BOOST_TEST(std::is_permutation(first.begin(), first.end(), file.begin()));
    BOOST_TEST(std::is_permutation(second.begin(), second.end(), file.begin()));
}

BOOST_AUTO_TEST_CASE(without_a_template_the_contents_are_encoded) {
    TemporaryFolder const folder;
    Options options = smoke();
    options.apply_chat_template = false;
    options.n_samples_per_prompt = 1;
    options.global_batch_size = 2;
    options.prompt_data = folder.write(
        "p.jsonl",
        "{\"messages\": [{\"role\": \"system\", \"content\": \"one\"}, {\"role\": \"user\", "
        "\"content\": \"two\"}]}\n{\"messages\": \"plain\"}\n");
    Rollout const rollout = load_samples(options, tiny()).rollout;
    Tokenizer const tokenizer(inputs / "tiny" / "tokenizer.json");
    BOOST_TEST(tokenizer.decode(prompt_of(rollout, 0)) == "one\ntwo");
    BOOST_TEST(tokenizer.decode(prompt_of(rollout, 1)) == "plain");

    options.apply_chat_template = true;
    std::string const text = tokenizer.decode(prompt_of(load_samples(options, tiny()).rollout, 1));
    BOOST_TEST(text.find("plain") != std::string::npos);
    BOOST_TEST(text.find("assistant") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(seeded_prompts_need_no_files) {
    Options options;
    options.rollout_prompt_len = 100;
    options.rollout_batch_size = 3;
    options.n_samples_per_prompt = 2;
    options.rollout_max_response_len = 10;
    options.rollout_fixed_response_len = true;
    ModelConfig model;
    model.vocab_size = 1000;
    SampleSet const set = load_samples(options, model);
    validate_rollout(set.rollout, 1000);
    BOOST_TEST(set.rollout.samples() == 6);
    BOOST_TEST((prompt_of(set.rollout, 0) == prompt_of(set.rollout, 1)));
    BOOST_TEST((prompt_of(set.rollout, 0) != prompt_of(set.rollout, 2)));
    for (std::int64_t j = 0; j < 6; ++j) {
        BOOST_TEST(set.rollout.total_length(j) == 110);
    }
    options.rollout_batch_size = 0;
    BOOST_TEST(fails(options, model, ExitCode::usage, "--global-batch-size"));
}

BOOST_AUTO_TEST_CASE(a_recorded_rollout_is_cut_and_keeps_its_advantages) {
    TemporaryFolder const folder;
    Rollout rollout = load_samples(smoke(), tiny()).rollout;
    Options options;
    options.rollout_file = folder.path / "rollout.h5";
    write_rollout(options.rollout_file, rollout);
    SampleSet const all = load_samples(options, tiny());
    BOOST_TEST((all.rollout.tokens == rollout.tokens));
    BOOST_TEST(!all.synthetic_old);
    BOOST_TEST(all.notes.empty());

    // Three samples cut the second group: its baseline still is that of both rewards.
    options.global_batch_size = 3;
    SampleSet const cut = load_samples(options, tiny());
    BOOST_TEST(cut.rollout.samples() == 3);
    BOOST_TEST(noted(cut, "first 3 of the 16 samples"));
    BOOST_TEST(
        (cut.advantages == std::vector<float>(all.advantages.begin(), all.advantages.begin() + 3)));
    BOOST_TEST(cut.advantages[2] != 0.0f);

    rollout.advantages.assign(16, 0.25f);
    options.rollout_file = folder.path / "advantages.h5";
    write_rollout(options.rollout_file, rollout);
    BOOST_TEST((load_samples(options, tiny()).advantages == std::vector<float>(3, 0.25f)));

    options.global_batch_size = 17;
    BOOST_TEST(fails(options, tiny(), ExitCode::usage, "exceeds the 16 samples"));
    options.global_batch_size = 0;
    ModelConfig small;
    small.vocab_size = 100;
    BOOST_TEST(fails(options, small, ExitCode::input_data, ""));
}

BOOST_AUTO_TEST_CASE(impossible_requests_say_what_to_change) {
    BOOST_TEST(fails(Options{}, tiny(), ExitCode::usage, "--prompt-data"));
    ModelConfig small;
    small.vocab_size = 300;
    BOOST_TEST(fails(smoke(), small, ExitCode::input_data, "do not belong together"));
    Options options = smoke();
    options.global_batch_size = 15;
    BOOST_TEST(fails(options, tiny(), ExitCode::usage, "multiple of --n-samples-per-prompt 2"));
    options.global_batch_size = std::int64_t{1} << 40;
    BOOST_TEST(fails(options, tiny(), ExitCode::usage, "more than"));

    TemporaryFolder const folder;
    options = smoke();
    options.prompt_data = folder.write("empty.jsonl", "\n");
    BOOST_TEST(fails(options, tiny(), ExitCode::input_data, "empty.jsonl"));
    options.apply_chat_template = false;
    options.prompt_data = folder.write("hollow.jsonl", "\n{\"messages\": \"\"}\n");
    BOOST_TEST(fails(options, tiny(), ExitCode::input_data, "hollow.jsonl:2"));
}

BOOST_AUTO_TEST_CASE(bad_lines_are_passed_over_when_asked) {
    TemporaryFolder const folder;
    Options options = smoke();
    options.n_samples_per_prompt = 1;
    options.global_batch_size = 1;
    options.prompt_data = folder.write("p.jsonl", "{bad\n{\"messages\": \"good\"}\n");
    BOOST_TEST(fails(options, tiny(), ExitCode::input_data, "p.jsonl:1"));
    options.skip_bad = true;
    SampleSet const set = load_samples(options, tiny());
    BOOST_TEST(set.rollout.samples() == 1);
    BOOST_TEST(noted(set, "passed over: 1"));
}
