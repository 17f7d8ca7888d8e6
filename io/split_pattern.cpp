#include "io/split_pattern.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cctype>

#include "cuda/error.hpp"

namespace cpstep {

void free_pattern(pcre2_real_code_8* code) noexcept {
    pcre2_code_free(code);
}

namespace {

void free_context(pcre2_compile_context* context) noexcept {
    pcre2_compile_context_free(context);
}
void free_match(pcre2_match_data* data) noexcept {
    pcre2_match_data_free(data);
}
using CompileContext = Handle<pcre2_compile_context*, free_context>;
using MatchData = Handle<pcre2_match_data*, free_match>;

std::string message_of(int code) {
    std::array<PCRE2_UCHAR, 256> buffer{};
    pcre2_get_error_message(code, buffer.data(), buffer.size());
    return reinterpret_cast<char const*>(buffer.data());
}

/// Oniguruma's pattern in PCRE2's terms. PCRE2's own \s also takes U+180E.
std::string to_pcre2(std::string_view pattern, std::string const& where) {
    constexpr std::string_view same_in_both = "rntpPdDx";
    std::string out;
    for (std::size_t i = 0; i < pattern.size(); ++i) {
        if (pattern[i] != '\\' || i + 1 == pattern.size()) {
            out += pattern[i];
            continue;
        }
        char const c = pattern[++i];
        if (c == 's') {
            out += "\\p{wspace}";
        } else if (c == 'S') {
            out += "\\P{wspace}";
        } else {
            require(std::isalnum(static_cast<unsigned char>(c)) == 0 ||
                        same_in_both.find(c) != std::string_view::npos,
                    ExitCode::input_data, "{}: \\{} in the split pattern is not supported", where,
                    c);
            out += '\\';
            out += c;
        }
    }
    return out;
}

}  // namespace

SplitPattern::SplitPattern(std::string_view oniguruma, std::string const& where) {
    std::string const pattern = to_pcre2(oniguruma, where);
    CompileContext const context(pcre2_compile_context_create(nullptr));
    // As in Oniguruma: '.' stops at LF only, ^ and $ match at every line.
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset,
                              context.get()));
    require(static_cast<bool>(code_), ExitCode::input_data,
            "{}: split pattern, near character {}: {}", where, offset, message_of(error));
    std::uint32_t matches_empty = 0;
    pcre2_pattern_info(code_.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
    require(matches_empty == 0, ExitCode::input_data, "{}: the split pattern can match empty text",
            where);
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // without JIT matching works, only slower
}

std::vector<std::string_view> SplitPattern::split(std::string_view text) const {
    MatchData const data(pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    std::vector<std::string_view> pieces;
    std::size_t at = 0;
    while (at < text.size()) {
        int const found = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()),
                                      text.size(), at, PCRE2_NO_UTF_CHECK, data.get(), nullptr);
        if (found == PCRE2_ERROR_NOMATCH) {
            break;
        }
        require(found >= 0, ExitCode::input_data,
                "the split pattern failed at byte {} of a text: {}", at, message_of(found));
        PCRE2_SIZE const* const range = pcre2_get_ovector_pointer(data.get());
        if (range[0] > at) {
            pieces.push_back(text.substr(at, range[0] - at));
        }
        pieces.push_back(text.substr(range[0], range[1] - range[0]));
        at = range[1];
    }
    if (at < text.size()) {
        pieces.push_back(text.substr(at));
    }
    return pieces;
}

}  // namespace cpstep
