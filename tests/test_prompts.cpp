#define BOOST_TEST_MODULE prompts
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <fstream>

#include "cuda/error.hpp"
#include "io/prompts.hpp"

using namespace cpstep;
namespace fs = std::filesystem;

namespace {

constexpr std::int64_t kAll = 1'000'000;
std::string const kGood = R"({"messages":[{"role":"user","content":"hi"}]})";

struct File {
    explicit File(std::string const& bytes) {
        static int count = 0;
        path = fs::temp_directory_path() /
               fmt::format("cpstep_prompts_{}_{}.jsonl", getpid(), count++);
        std::ofstream(path, std::ios::binary) << bytes;
    }
    File(File const&) = delete;
    File& operator=(File const&) = delete;
    ~File() { fs::remove(path); }
    fs::path path;
};

Prompts read(std::string const& bytes, std::int64_t limit = kAll) {
    return read_prompts(File(bytes).path, "messages", limit, false);
}

std::string refusal(std::string const& bytes, bool skip_bad = false) {
    File const file(bytes);
    try {
        read_prompts(file.path, "messages", kAll, skip_bad);
    } catch (Error const& e) {
        BOOST_TEST((e.code() == ExitCode::input_data));
        std::string text = e.what();
        BOOST_TEST(text.find('\n') == std::string::npos, text);
        BOOST_TEST(text.starts_with(file.path.string() + ":"), text);
        return text.substr(file.path.string().size());
    }
    return "(nothing was refused)";
}

/// Refused with "...:line:column: cause", and with skip_bad passed over and counted.
void check_bad(std::string const& line, std::string const& cause) {
    std::string const text = refusal(kGood + "\n" + line + "\n" + kGood + "\n");
    BOOST_TEST(text.find(cause) == 0U, "wanted " << cause << ", got " << text);
    File const file(kGood + "\n" + line + "\n" + kGood + "\n");
    Prompts const prompts = read_prompts(file.path, "messages", kAll, true);
    BOOST_TEST(prompts.skipped == 1);
    BOOST_REQUIRE(prompts.prompts.size() == 2U);
    BOOST_TEST(prompts.prompts[1].line == 3);
}

}  // namespace

BOOST_AUTO_TEST_CASE(messages_and_strings_are_read_with_their_lines) {
    Prompts const got = read(
        R"({"id":1,"messages":[{"role":"system","content":"s"},{"role":"user","content":"\u4e2d"}]})"
        "\n"
        R"({"messages":"plain"})"
        "\n");
    BOOST_REQUIRE(got.prompts.size() == 2U);
    BOOST_TEST(got.skipped == 0);
    BOOST_REQUIRE(got.prompts[0].messages.size() == 2U);
    BOOST_TEST(got.prompts[0].line == 1);
    BOOST_TEST(got.prompts[0].messages[0].role == "system");
    BOOST_TEST(got.prompts[0].messages[1].content == "\u4e2d");
    BOOST_TEST(got.prompts[1].line == 2);
    BOOST_REQUIRE(got.prompts[1].messages.size() == 1U);
    BOOST_TEST(got.prompts[1].messages[0].role == "user");
    BOOST_TEST(got.prompts[1].messages[0].content == "plain");
}

BOOST_AUTO_TEST_CASE(another_key_can_hold_the_prompt) {
    File const file(R"({"prompt":"x"})");
    BOOST_TEST(read_prompts(file.path, "prompt", kAll, false).prompts[0].messages[0].content ==
               "x");
}

BOOST_AUTO_TEST_CASE(crlf_bom_blank_lines_and_a_missing_last_newline_are_accepted) {
    Prompts const got = read("\xef\xbb\xbf" + kGood + "\r\n\r\n  \t\n\n" + kGood + "\r\n" + kGood);
    BOOST_REQUIRE(got.prompts.size() == 3U);
    BOOST_TEST(got.prompts[0].line == 1);
    BOOST_TEST(got.prompts[1].line == 5);
    BOOST_TEST(got.prompts[2].line == 6);
    BOOST_TEST(got.prompts[2].messages[0].content == "hi");
    BOOST_TEST(read("\xef\xbb\xbf\r\n" + kGood).prompts[0].line == 2);
}

BOOST_AUTO_TEST_CASE(reading_stops_at_the_limit_before_a_bad_line) {
    BOOST_TEST(read(kGood + "\n" + kGood + "\n{bad", 2).prompts.size() == 2U);
    BOOST_TEST(read(kGood, 0).prompts.empty());
}

BOOST_AUTO_TEST_CASE(bad_json_is_refused_at_its_column) {
    check_bad("{\"messages\": tru}", ":2:17: ");
    check_bad("{", ":2:2: ");
    check_bad(kGood + " x", ":2:" + std::to_string(kGood.size() + 2) + ": ");
    check_bad(kGood + kGood, ":2:" + std::to_string(kGood.size() + 1) + ": ");
    check_bad("{\"messages\":\"\xff\"}", ":2:14: ");
    check_bad("\xef\xbb\xbf" + kGood, ":2:1: byte order mark");
    check_bad(R"({"messages":"a","messages":"b"})", ":2:1: duplicate key \"messages\"");
    check_bad(R"({"messages":"a","x":1e999})", ":2:1: ");
    check_bad("{\"x\":" + std::string(100'000, '['), ":2:69: nested deeper than 64 levels");
    BOOST_TEST(refusal("\xef\xbb\xbf{").find(":1:5: ") == 0U);
}

BOOST_AUTO_TEST_CASE(nul_bytes_are_refused_at_their_column) {
    check_bad(kGood + std::string("\0", 1),
              ":2:" + std::to_string(kGood.size() + 1) + ": NUL byte");
    check_bad(std::string("{\"messages\":\"a\0\"}", 17), ":2:15: NUL byte");
    check_bad(std::string("\0", 1), ":2:1: NUL byte");
}

BOOST_AUTO_TEST_CASE(surrogate_halves_are_refused) {
    check_bad(R"({"messages":"\ud800"})", ":2:20: ");
    check_bad(R"({"messages":"\ud800x"})", ":2:20: ");
    check_bad(R"({"messages":"\udc00"})", ":2:19: ");
    BOOST_TEST(read(R"({"messages":"\ud83d\ude00"})").prompts[0].messages[0].content ==
               "\U0001f600");
}

BOOST_AUTO_TEST_CASE(wrong_types_are_refused_by_name) {
    check_bad("[1]", ":2:1: must be a JSON object, is array");
    check_bad("3", ":2:1: must be a JSON object, is number");
    check_bad(R"({"messages":3})",
              ":2:1: messages must be a string or a non-empty list of messages, is number");
    check_bad(R"({"messages":null})", ":2:1: messages must be a string");
    check_bad(R"({"messages":[]})",
              ":2:1: messages must be a string or a non-empty list of messages, is an empty array");
    check_bad(R"({"messages":["a"]})", ":2:1: messages[0] must be an object");
    check_bad(R"({"messages":[{"role":"user"}]})", ":2:1: messages[0] has no content");
    check_bad(R"({"messages":[{"content":"x"}]})", ":2:1: messages[0] has no role");
    check_bad(R"({"messages":[{"role":"user","content":null}]})",
              ":2:1: messages[0].content must be a string, is null");
    check_bad(R"({"messages":[{"role":"user","content":"a"},{"role":1,"content":"x"}]})",
              ":2:1: messages[1].role must be a string, is number");
    check_bad(R"({"messages":[{"role":"a\nb","content":"x"}]})",
              ":2:1: messages[0].role must be one");
}

BOOST_AUTO_TEST_CASE(a_missing_key_lists_those_that_exist) {
    check_bad(R"({"prompt":"x","label":"y"})",
              ":2:1: no key \"messages\"; the keys are: label, prompt");
}

BOOST_AUTO_TEST_CASE(a_line_over_64_mib_is_refused_without_being_held) {
    std::string const longer = R"({"messages":")" + std::string(std::size_t{65} << 20, 'x') + "\"}";
    check_bad(longer, ":2:67108865: line over 64 MiB");
    std::string const allowed = R"({"messages":")" + std::string(std::size_t{3} << 20, 'x') + "\"}";
    BOOST_TEST(read(allowed).prompts[0].messages[0].content.size() == std::size_t{3} << 20);
}

BOOST_AUTO_TEST_CASE(missing_files_folders_and_files_without_prompts_are_refused) {
    auto const refused = [](fs::path const& path) {
        try {
            read_prompts(path, "messages", kAll, false);
        } catch (Error const& e) {
            BOOST_TEST((e.code() == ExitCode::input_data));
            return std::string(e.what());
        }
        return std::string("(nothing was refused)");
    };
    BOOST_TEST(refused("/nonexistent/p.jsonl") == "/nonexistent/p.jsonl: no such file");
    BOOST_TEST(refused(fs::temp_directory_path()).find("is a folder") != std::string::npos);
    BOOST_TEST(refusal("") == ": holds no prompts (0 bad lines skipped)");
    BOOST_TEST(refusal("\n\r\n") == ": holds no prompts (0 bad lines skipped)");
    BOOST_TEST(refusal("{\n[]\n", true) == ": holds no prompts (2 bad lines skipped)");
}

BOOST_AUTO_TEST_CASE(the_golden_prompts_are_read) {
    fs::path const file = fs::path(CPSTEP_GOLDEN_DIR) / "cp_smoke.jsonl";
    BOOST_TEST(read_prompts(file, "messages", kAll, false).prompts.size() == 8U);
}
