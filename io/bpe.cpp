#include "io/bpe.hpp"

#include <limits>
#include <queue>

#include "cuda/error.hpp"

namespace cpstep {
namespace {

using nlohmann::json;

constexpr std::int64_t kMaxId = std::numeric_limits<std::int32_t>::max() - 1;

/// GPT-2's letter for each byte, in UTF-8: printable Latin-1 stands for itself, the other 68 bytes
/// take U+0100.. in order.
std::array<std::string, 256> make_alphabet() {
    std::array<std::string, 256> letters;
    unsigned next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
        bool const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
        unsigned const code = printable ? byte : next++;
        if (code < 0x80) {
            letters[byte].assign(1, static_cast<char>(code));
        } else {
            letters[byte].assign(1, static_cast<char>(0xc0 | (code >> 6)));
            letters[byte].push_back(static_cast<char>(0x80 | (code & 0x3f)));
        }
    }
    return letters;
}

std::array<std::string, 256> const& alphabet() {
    static std::array<std::string, 256> const letters = make_alphabet();
    return letters;
}

std::unordered_map<std::string_view, char> const& byte_of_letter() {
    static std::unordered_map<std::string_view, char> const bytes = [] {
        std::unordered_map<std::string_view, char> map;
        for (std::size_t byte = 0; byte < 256; ++byte) {
            map[alphabet()[byte]] = static_cast<char>(byte);
        }
        return map;
    }();
    return bytes;
}

std::string spelled(std::string_view bytes) {
    std::string text;
    for (char const c : bytes) {
        text += alphabet()[static_cast<unsigned char>(c)];
    }
    return text;
}

/// A value that asks for something: not null, false, zero or empty.
bool asks_for_something(json const& value) {
    return !value.is_null() && value != "" && value != false && !(value.is_number() && value == 0);
}

void refuse_other_models(json const& model, std::string const& where) {
    require(model.is_object(), ExitCode::input_data, "{}: model must be an object", where);
    // Older files have no type; all of those are BPE.
    json const type = model.value("type", json("BPE"));
    require(type == "BPE", ExitCode::input_data,
            "{}: model type {} is not supported; only \"BPE\" is", where, type.dump());
    for (char const* const key :
         {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"}) {
        json const value = model.value(key, json());
        require(!asks_for_something(value), ExitCode::input_data,
                "{}: model.{} = {} is not supported", where, key, value.dump());
    }
}

/// A merge is ["a", "b"] or, in older files, "a b".
std::pair<std::string, std::string> merge_parts(json const& merge, std::size_t rank,
                                                std::string const& where) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        return {merge[0].get<std::string>(), merge[1].get<std::string>()};
    }
    if (merge.is_string()) {
        auto const& text = merge.get_ref<std::string const&>();
        auto const space = text.find(' ');
        if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
            return {text.substr(0, space), text.substr(space + 1)};
        }
    }
    fail(ExitCode::input_data, "{}: model.merges[{}] is neither [\"a\", \"b\"] nor \"a b\"", where,
         rank);
}

constexpr std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
    return (std::uint64_t{static_cast<std::uint32_t>(left)} << 32) |
           static_cast<std::uint32_t>(right);
}

/// A token of the piece under way; `id` is -1 once it is merged into the one on its left.
struct Symbol {
    std::int32_t id;
    std::int32_t previous;
    std::int32_t next;
};

/// A merge that was possible when queued: of the symbol at `position` with its right neighbour.
struct Candidate {
    std::int32_t rank;
    std::int32_t position;
    std::int32_t id;
    bool operator>(Candidate const& other) const {
        return std::pair(rank, position) > std::pair(other.rank, other.position);
    }
};

/// One symbol a byte.
std::vector<Symbol> symbols_of(std::string_view piece,
                               std::array<std::int32_t, 256> const& byte_id) {
    require(piece.size() <= static_cast<std::size_t>(kMaxId), ExitCode::input_data,
            "a text has a word of {} bytes, over 2^31", piece.size());
    auto const length = static_cast<std::int32_t>(piece.size());
    std::vector<Symbol> symbols(piece.size());
    for (std::int32_t i = 0; i < length; ++i) {
        auto const byte = static_cast<unsigned char>(piece[static_cast<std::size_t>(i)]);
        require(byte_id[byte] >= 0, ExitCode::input_data,
                "byte 0x{:02x} of a text is not in the tokenizer's vocabulary", byte);
        symbols[static_cast<std::size_t>(i)] = {byte_id[byte], i - 1, i + 1 < length ? i + 1 : -1};
    }
    return symbols;
}

}  // namespace

Bpe::Bpe(json const& model, std::string const& where) {
    refuse_other_models(model, where);
    auto const flag = model.find("ignore_merges");
    ignore_merges_ = flag != model.end() && *flag == true;
    read_vocabulary(model, where);
    read_merges(model, where);
}

void Bpe::read_vocabulary(json const& model, std::string const& where) {
    auto const vocab = model.find("vocab");
    require(vocab != model.end() && vocab->is_object() && !vocab->empty(), ExitCode::input_data,
            "{}: model.vocab must be a non-empty object", where);
    std::unordered_map<std::int32_t, std::string> token_of;
    for (auto const& [token, id] : vocab->items()) {
        require(id.is_number_unsigned() && id <= kMaxId, ExitCode::input_data,
                "{}: model.vocab[{}] must be an integer from 0 to 2^31 - 2", where,
                json(token).dump());
        auto const value = id.get<std::int32_t>();
        auto const [other, fresh] = token_of.try_emplace(value, token);
        require(fresh, ExitCode::input_data, "{}: model.vocab gives id {} to {} and {}", where,
                value, json(other->second).dump(), json(token).dump());
        vocabulary_[token] = value;
    }
    for (std::size_t byte = 0; byte < byte_id_.size(); ++byte) {
        auto const found = vocabulary_.find(alphabet()[byte]);
        byte_id_[byte] = found == vocabulary_.end() ? -1 : found->second;
    }
}

void Bpe::read_merges(json const& model, std::string const& where) {
    auto const merges = model.find("merges");
    require(merges != model.end() && merges->is_array(), ExitCode::input_data,
            "{}: model.merges must be a list", where);
    auto const id_of = [&](std::string const& token, std::size_t rank) {
        auto const found = vocabulary_.find(token);
        require(found != vocabulary_.end(), ExitCode::input_data,
                "{}: model.merges[{}] uses {}, which is not in model.vocab", where, rank,
                json(token).dump());
        return found->second;
    };
    for (std::size_t rank = 0; rank < merges->size(); ++rank) {
        auto const [left, right] = merge_parts((*merges)[rank], rank, where);
        merges_.insert_or_assign(pair_key(id_of(left, rank), id_of(right, rank)),
                                 Merge{static_cast<std::int32_t>(rank), id_of(left + right, rank)});
    }
}

Bpe::Merge const* Bpe::find_merge(std::int32_t left, std::int32_t right) const {
    auto const found = merges_.find(pair_key(left, right));
    return found == merges_.end() ? nullptr : &found->second;
}

void Bpe::encode(std::string_view piece, std::vector<std::int32_t>& ids) const {
    if (ignore_merges_) {
        auto const whole = vocabulary_.find(spelled(piece));
        if (whole != vocabulary_.end()) {
            ids.push_back(whole->second);
            return;
        }
    }
    std::vector<Symbol> symbols = symbols_of(piece, byte_id_);
    auto const length = static_cast<std::int32_t>(symbols.size());
    auto const at = [&](std::int32_t i) -> Symbol& { return symbols[static_cast<std::size_t>(i)]; };

    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
    auto const offer = [&](std::int32_t i) {
        if (i < 0 || at(i).next < 0) {
            return;
        }
        if (Merge const* const merge = find_merge(at(i).id, at(at(i).next).id)) {
            queue.push({merge->rank, i, merge->id});
        }
    };
    for (std::int32_t i = 0; i < length; ++i) {
        offer(i);
    }
    while (!queue.empty()) {
        Candidate const best = queue.top();
        queue.pop();
        Symbol& left = at(best.position);
        if (left.id < 0 || left.next < 0) {
            continue;
        }
        Symbol& right = at(left.next);
        Merge const* const merge = find_merge(left.id, right.id);
        if (merge == nullptr || merge->rank != best.rank) {
            continue;  // a neighbour changed since it was queued
        }
        left.id = merge->id;
        left.next = right.next;
        right.id = -1;
        if (left.next >= 0) {
            at(left.next).previous = best.position;
        }
        offer(left.previous);
        offer(best.position);
    }
    for (std::int32_t i = 0; i >= 0 && i < length; i = at(i).next) {
        ids.push_back(at(i).id);
    }
}

std::string Bpe::bytes_of(std::string_view token) {
    std::string bytes;
    for (std::size_t i = 0; i < token.size();) {
        std::size_t const width = static_cast<unsigned char>(token[i]) < 0x80 ? 1 : 2;
        auto const found = byte_of_letter().find(token.substr(i, width));
        if (found == byte_of_letter().end()) {
            return std::string(token);
        }
        bytes += found->second;
        i += width;
    }
    return bytes;
}

}  // namespace cpstep
