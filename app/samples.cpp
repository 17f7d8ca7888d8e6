#include "app/samples.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <utility>

#include "app/advantages.hpp"
#include "cuda/error.hpp"
#include "io/prompts.hpp"
#include "io/tokenizer.hpp"

namespace cpstep {

namespace {

// One stream of random numbers a purpose, so that a change of one leaves the others as they are.
enum Stream : std::uint64_t {
    stream_shuffle = 1,
    stream_prompt_tokens,
    stream_response_length,
    stream_response_tokens,
    stream_reward,
    stream_sequence_noise,
    stream_token_noise,
    stream_engine_noise,
};

// SplitMix64 (Steele, Lea and Flood 2014).
std::uint64_t splitmix(std::uint64_t x) {
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

// Counter of token t of sample j: independent of the lengths of other samples.
std::uint64_t token_index(std::int64_t sample, std::int64_t t) {
    return (static_cast<std::uint64_t>(sample) << 32) | static_cast<std::uint64_t>(t);
}

// Prompts as ids, in the order of the rollout, and the ids that responses are drawn from.
struct EncodedPrompts {
    std::vector<std::vector<std::int32_t>> prompts;
    std::vector<std::int32_t> response_ids;
};

// How many prompts the step needs, `available` if no size is set.
std::int64_t prompts_needed(Options const& options, std::int64_t available) {
    constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();  // group numbers
    std::int64_t const n = options.n_samples_per_prompt;
    require(n >= 1 && n <= most && options.rollout_batch_size <= most / n &&
                options.global_batch_size <= most,
            ExitCode::usage,
            "the step has no sample or more than {}: change --n-samples-per-prompt, "
            "--rollout-batch-size or --global-batch-size",
            most);
    require(options.global_batch_size % n == 0, ExitCode::usage,
            "--global-batch-size {} cuts a group: make it a multiple of --n-samples-per-prompt {}",
            options.global_batch_size, n);
    if (options.global_batch_size > 0) {
        return options.global_batch_size / n;
    }
    return options.rollout_batch_size > 0 ? options.rollout_batch_size : available;
}

void note_rollout_size(SampleSet& set, Options const& options, std::int64_t samples) {
    std::int64_t const rollout = options.rollout_batch_size * options.n_samples_per_prompt;
    if (rollout > 0 && rollout < samples) {
        set.notes.push_back(
            fmt::format("{} rollouts of {} prompts are combined into one step of {} samples",
                        (samples + rollout - 1) / rollout, options.rollout_batch_size, samples));
    } else if (rollout > samples) {
        set.notes.push_back(
            fmt::format("the first {} of the rollout's {} samples are verified", samples, rollout));
    }
}

// Prompt of each draw; every pass over the file is shuffled anew.
std::vector<std::int64_t> draw_order(Options const& options, std::int64_t available,
                                     std::int64_t draws) {
    std::vector<std::int64_t> order;
    for (std::uint64_t pass = 0; std::ssize(order) < draws; ++pass) {
        std::vector<std::int64_t> once(static_cast<std::size_t>(available));
        std::iota(once.begin(), once.end(), std::int64_t{0});
        if (options.rollout_shuffle) {
            for (std::uint64_t i = once.size() - 1; i > 0; --i) {  // Fisher-Yates
                std::uint64_t const bits = counter_bits(static_cast<std::uint64_t>(options.seed),
                                                        stream_shuffle, (pass << 32) | i);
                std::swap(once[i], once[bits % (i + 1)]);
            }
        }
        order.insert(order.end(), once.begin(), once.end());
    }
    order.resize(static_cast<std::size_t>(draws));
    return order;
}

std::string joined_contents(std::vector<ChatMessage> const& messages) {
    std::string text;
    for (ChatMessage const& message : messages) {
        text += text.empty() ? message.content : "\n" + message.content;
    }
    return text;
}

std::vector<std::string> prompt_texts(Options const& options, std::vector<Prompt> const& prompts) {
    std::vector<std::string> texts;
    if (options.apply_chat_template) {
        ChatTemplate const chat(options.hf_checkpoint);
        for (Prompt const& prompt : prompts) {
            texts.push_back(chat.render(prompt.messages));
        }
    } else {
        for (Prompt const& prompt : prompts) {
            texts.push_back(joined_contents(prompt.messages));
        }
    }
    return texts;
}

// Ids that both the tokenizer and the model know, without the special ones.
std::vector<std::int32_t> ordinary_ids(Tokenizer const& tokenizer, std::int64_t vocab_size) {
    std::int64_t const end = std::min(tokenizer.vocab_size(), vocab_size);
    std::vector<std::int32_t> special = tokenizer.special_ids();
    std::sort(special.begin(), special.end());
    std::vector<std::int32_t> ids;
    for (std::int64_t id = 0; id < end; ++id) {
        if (!std::binary_search(special.begin(), special.end(), static_cast<std::int32_t>(id))) {
            ids.push_back(static_cast<std::int32_t>(id));
        }
    }
    return ids;
}

std::vector<std::int32_t> encode_prompt(Tokenizer const& tokenizer, std::string const& text,
                                        std::string const& where, std::int64_t vocab_size) {
    std::vector<std::int32_t> ids = tokenizer.encode(text);
    require(!ids.empty(), ExitCode::input_data, "{}: the prompt has no tokens", where);
    for (std::int32_t const id : ids) {
        require(id >= 0 && id < vocab_size, ExitCode::input_data,
                "{}: token id {} is outside the model's vocabulary of {}: tokenizer.json and "
                "config.json do not belong together",
                where, id, vocab_size);
    }
    return ids;
}

EncodedPrompts prompts_of_file(SampleSet& set, Options const& options, ModelConfig const& model) {
    // Without a shuffle the prompts after the last one drawn are not read.
    std::int64_t const wanted = prompts_needed(options, 0);
    std::int64_t const limit =
        wanted == 0 || options.rollout_shuffle ? std::numeric_limits<std::int64_t>::max() : wanted;
    Prompts const read =
        read_prompts(options.prompt_data, options.input_key, limit, options.skip_bad);
    std::string const file = options.prompt_data.string();
    std::int64_t const available = std::ssize(read.prompts);
    require(available > 0, ExitCode::input_data, "{}: no usable prompt", file);
    if (read.skipped > 0) {
        set.notes.push_back(fmt::format("bad lines of {} passed over: {}", file, read.skipped));
    }
    std::int64_t const draws = prompts_needed(options, available);
    if (draws > available) {
        set.notes.push_back(fmt::format(
            "{} has {} prompts for the {} needed: they are used again with other responses", file,
            available, draws));
    }
    Tokenizer const tokenizer(options.hf_checkpoint / "tokenizer.json");
    std::vector<std::string> const texts = prompt_texts(options, read.prompts);
    EncodedPrompts encoded;
    encoded.response_ids = ordinary_ids(tokenizer, model.vocab_size);
    for (std::int64_t const p : draw_order(options, available, draws)) {
        encoded.prompts.push_back(encode_prompt(tokenizer, texts[p],
                                                fmt::format("{}:{}", file, read.prompts[p].line),
                                                model.vocab_size));
    }
    return encoded;
}

// Seeded prompts of one length need no tokenizer: any id of the model will do.
EncodedPrompts seeded_prompts(Options const& options, ModelConfig const& model) {
    std::int64_t const draws = prompts_needed(options, 0);
    require(draws > 0, ExitCode::usage,
            "--rollout-prompt-len needs --global-batch-size or --rollout-batch-size");
    EncodedPrompts encoded;
    for (std::int64_t p = 0; p < draws; ++p) {
        std::vector<std::int32_t>& ids = encoded.prompts.emplace_back();
        for (std::int64_t t = 0; t < options.rollout_prompt_len; ++t) {
            std::uint64_t const bits = counter_bits(static_cast<std::uint64_t>(options.seed),
                                                    stream_prompt_tokens, token_index(p, t));
            ids.push_back(
                static_cast<std::int32_t>(bits % static_cast<std::uint64_t>(model.vocab_size)));
        }
    }
    encoded.response_ids.resize(static_cast<std::size_t>(model.vocab_size));
    std::iota(encoded.response_ids.begin(), encoded.response_ids.end(), 0);
    return encoded;
}

// Appends a seeded response of sample j to the tokens and returns its length.
std::int64_t append_response(Rollout& rollout, Options const& options,
                             std::vector<std::int32_t> const& ids, std::int64_t j) {
    std::uint64_t const seed = static_cast<std::uint64_t>(options.seed);
    std::int64_t const longest = options.rollout_max_response_len;
    std::uint64_t const bits =
        counter_bits(seed, stream_response_length, static_cast<std::uint64_t>(j));
    std::int64_t const length =
        options.rollout_fixed_response_len
            ? longest
            : 1 + static_cast<std::int64_t>(bits % static_cast<std::uint64_t>(longest));
    for (std::int64_t t = 0; t < length; ++t) {
        std::uint64_t const draw = counter_bits(seed, stream_response_tokens, token_index(j, t));
        rollout.tokens.push_back(ids[draw % ids.size()]);
    }
    return length;
}

// Off-policy noise of one response: token noise, and a shift of the whole sequence so that the
// ratios of sequences differ however long they are. The rollout engine's own mismatch is smaller.
void append_noise(SampleSet& set, Options const& options, std::int64_t j, std::int64_t length) {
    std::uint64_t const seed = static_cast<std::uint64_t>(options.seed);
    double const sigma = options.rollout_noise;
    double const shift =
        0.25 * sigma * counter_normal(seed, stream_sequence_noise, static_cast<std::uint64_t>(j));
    for (std::int64_t t = 0; t < length; ++t) {
        std::uint64_t const index = token_index(j, t);
        set.old_noise.push_back(
            static_cast<float>(shift + sigma * counter_normal(seed, stream_token_noise, index)));
        set.rollout_noise.push_back(
            static_cast<float>(0.25 * sigma * counter_normal(seed, stream_engine_noise, index)));
    }
}

// Each prompt's samples in turn: tokens, response, reward in thousandths, group = number of the
// prompt.
void synthesize(SampleSet& set, Options const& options, EncodedPrompts const& encoded) {
    require(!encoded.response_ids.empty(), ExitCode::input_data,
            "the vocabulary has no ordinary token to draw responses from");
    require(options.rollout_max_response_len >= 1, ExitCode::usage,
            "--rollout-max-response-len must be at least 1");
    Rollout& rollout = set.rollout;
    for (std::size_t p = 0; p < encoded.prompts.size(); ++p) {
        for (std::int64_t s = 0; s < options.n_samples_per_prompt; ++s) {
            std::int64_t const j = rollout.samples();
            rollout.tokens.insert(rollout.tokens.end(), encoded.prompts[p].begin(),
                                  encoded.prompts[p].end());
            std::int64_t const length = append_response(rollout, options, encoded.response_ids, j);
            append_noise(set, options, j, length);
            rollout.token_offsets.push_back(std::ssize(rollout.tokens));
            rollout.response_offsets.push_back(rollout.response_tokens() + length);
            std::uint64_t const bits = counter_bits(static_cast<std::uint64_t>(options.seed),
                                                    stream_reward, static_cast<std::uint64_t>(j));
            rollout.rewards.push_back(static_cast<float>(static_cast<double>(bits % 1000) / 1000));
            rollout.groups.push_back(static_cast<std::int32_t>(p));
        }
    }
    rollout.loss_mask.assign(static_cast<std::size_t>(rollout.response_tokens()), 1);
    set.synthetic_old = true;
}

std::vector<float> advantages_of(Rollout const& rollout, Options const& options) {
    if (!rollout.advantages.empty()) {
        return rollout.advantages;
    }
    return group_advantages(rollout.rewards, rollout.groups, options.rewards_normalization,
                            options.grpo_std_normalization);
}

void load_recorded(SampleSet& set, Options const& options, ModelConfig const& model) {
    std::string const file = options.rollout_file.string();
    Rollout recorded = read_rollout(options.rollout_file);
    validate_rollout(recorded, model.vocab_size, file);
    // Over the whole file: a group cut by the global batch keeps the baseline of all its rewards.
    set.advantages = advantages_of(recorded, options);
    std::int64_t const available = recorded.samples();
    std::int64_t const count =
        options.global_batch_size > 0 ? options.global_batch_size : available;
    require(count <= available, ExitCode::usage,
            "--global-batch-size {} exceeds the {} samples of {}: give {} or less", count,
            available, file, available);
    if (count == available) {
        set.rollout = std::move(recorded);
        return;
    }
    set.notes.push_back(
        fmt::format("the first {} of the {} samples of {} are verified", count, available, file));
    set.rollout = first_samples(recorded, count);
    validate_rollout(set.rollout, model.vocab_size, file);
    set.advantages.resize(static_cast<std::size_t>(count));
}

void make_samples(SampleSet& set, Options const& options, ModelConfig const& model) {
    require(!options.prompt_data.empty() || options.rollout_prompt_len > 0, ExitCode::usage,
            "no samples: give --rollout-file, --prompt-data or --rollout-prompt-len");
    EncodedPrompts const encoded = options.prompt_data.empty()
                                       ? seeded_prompts(options, model)
                                       : prompts_of_file(set, options, model);
    synthesize(set, options, encoded);
    note_rollout_size(set, options, set.rollout.samples());
    set.advantages = advantages_of(set.rollout, options);
}

// Rotary positions go on beyond the trained length, so the numbers are right all the same.
void note_long_sequences(SampleSet& set, ModelConfig const& model) {
    std::int64_t longest = 0;
    for (std::int64_t j = 0; j < set.rollout.samples(); ++j) {
        longest = std::max(longest, set.rollout.total_length(j));
    }
    if (longest > model.max_position_embeddings) {
        set.notes.push_back(
            fmt::format("the longest sequence has {} tokens, config.json names {} positions",
                        longest, model.max_position_embeddings));
    }
}

}  // namespace

std::uint64_t counter_bits(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
    return splitmix(splitmix(splitmix(seed) ^ stream) ^ index);
}

double counter_normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
    // Box and Muller 1958: u in (0, 1], v in [0, 1), 53 bits each.
    double const unit = std::ldexp(1.0, -53);
    double const u = static_cast<double>((counter_bits(seed, stream, 2 * index) >> 11) + 1) * unit;
    double const v = static_cast<double>(counter_bits(seed, stream, 2 * index + 1) >> 11) * unit;
    return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

SampleSet load_samples(Options const& options, ModelConfig const& model) {
    SampleSet set;
    if (options.rollout_file.empty()) {
        make_samples(set, options, model);
    } else {
        load_recorded(set, options, model);
    }
    note_long_sequences(set, model);
    return set;
}

}  // namespace cpstep
