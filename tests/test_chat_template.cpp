#define BOOST_TEST_MODULE chat_template
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cuda/error.hpp"
#include "io/tokenizer.hpp"

using namespace cpstep;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

struct Folder {
    Folder() {
        static int count = 0;
        path = fs::temp_directory_path() / fmt::format("cpstep_chat_{}_{}", getpid(), count++);
        fs::create_directories(path);
    }
    Folder(Folder const&) = delete;
    Folder& operator=(Folder const&) = delete;
    ~Folder() { fs::remove_all(path); }
    void write(char const* name, std::string const& text) const {
        std::ofstream(path / name, std::ios::binary) << text;
    }
    fs::path path;
};

ChatTemplate from_config(json const& chat_template) {
    Folder const folder;
    folder.write("tokenizer_config.json", json{{"chat_template", chat_template}}.dump());
    return ChatTemplate(folder.path);
}

std::string refusal(auto const& action) {
    try {
        action();
    } catch (Error const& e) {
        BOOST_TEST((e.code() == ExitCode::input_data));
        std::string const text = e.what();
        BOOST_TEST(text.find('\n') == std::string::npos, text);
        return text;
    }
    return "(nothing was refused)";
}

bool holds(std::string const& text, std::string const& part) {
    return text.find(part) != std::string::npos;
}

std::string const kPlain =
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' "
    "}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// With a default system message, as a Jinja string literal `text`, before the loop.
std::string with_system(std::string const& text) {
    return "{% if messages[0]['role'] != 'system' %}{{ " + text + " }}{% endif %}" + kPlain;
}

std::vector<ChatMessage> const kQuestion{{"user", "Hi"}};
std::string const kAnswered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";

std::string system_turn(std::string const& text) {
    return "<|im_start|>system\n" + text + "<|im_end|>\n";
}

}  // namespace

BOOST_AUTO_TEST_CASE(turns_are_rendered_in_order_with_the_generation_prompt) {
    auto const chat = from_config(kPlain);
    BOOST_TEST(chat.render({{"system", "S"}, {"user", "U\n"}, {"assistant", ""}, {"tool", "{}"}}) ==
               "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU\n<|im_end|>\n"
               "<|im_start|>assistant\n<|im_end|>\n<|im_start|>tool\n{}<|im_end|>\n"
               "<|im_start|>assistant\n");
}

BOOST_AUTO_TEST_CASE(the_default_system_message_comes_only_without_one) {
    auto const chat = from_config(with_system(R"('<|im_start|>system\nBe kind.<|im_end|>\n')"));
    BOOST_TEST(chat.render(kQuestion) == system_turn("Be kind.") + kAnswered);
    BOOST_TEST(chat.render({{"system", "S"}, {"user", "Hi"}}) == system_turn("S") + kAnswered);
    BOOST_TEST(from_config(kPlain).render(kQuestion) == kAnswered);
}

BOOST_AUTO_TEST_CASE(the_default_system_message_is_read_as_a_jinja_literal) {
    BOOST_TEST(
        from_config(with_system(R"("<|im_start|>system\nYou're \"it\".\tGo\\now<|im_end|>\n")"))
            .render(kQuestion) == system_turn("You're \"it\".\tGo\\now") + kAnswered);
    BOOST_TEST(
        from_config(with_system("'<|im_start|>system\nLine<|im_end|>\n'")).render(kQuestion) ==
        system_turn("Line") + kAnswered);
    BOOST_TEST(
        from_config("{% if x %}<|im_start|>system\nRaw \"text\"<|im_end|>\n{% endif %}" + kPlain)
            .render(kQuestion) == system_turn("Raw \"text\"") + kAnswered);
}

BOOST_AUTO_TEST_CASE(a_computed_system_message_is_not_taken_for_a_default) {
    BOOST_TEST(from_config(with_system(R"('<|im_start|>system\n' + system + '<|im_end|>\n')"))
                   .render(kQuestion) == kAnswered);
    BOOST_TEST(
        from_config("<|im_start|>system\n{{ system }}<|im_end|>\n" + kPlain).render(kQuestion) ==
        kAnswered);
}

BOOST_AUTO_TEST_CASE(a_tools_branch_before_the_default_is_passed_over) {
    // The order of Qwen2.5: tools first, where the message is put together; then the literal
    // default.
    std::string const source = R"({%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a clerk.' }}
    {%- endif %}
    {{- "\n\n# Functions\n\nThese may be called:\n" }}
    {{- "\n<|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are a clerk of the town. You answer letters.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
)" + kPlain;
    BOOST_TEST(from_config(source).render(kQuestion) ==
               system_turn("You are a clerk of the town. You answer letters.") + kAnswered);
}

BOOST_AUTO_TEST_CASE(a_list_of_templates_gives_the_default_one) {
    json const tool = {{"name", "tool_use"}, {"template", "[INST]"}};
    json const fallback = {{"name", "default"}, {"template", kPlain}};
    BOOST_TEST(from_config({tool, fallback}).render(kQuestion) == kAnswered);
    BOOST_TEST(
        holds(refusal([&] { from_config(json::array({tool})); }), "no template named \"default\""));
    BOOST_TEST(holds(refusal([&] { from_config(3); }), "must be a string or a list"));
}

BOOST_AUTO_TEST_CASE(a_jinja_file_goes_before_the_config) {
    Folder const folder;
    folder.write("tokenizer_config.json", json{{"chat_template", "[INST]"}}.dump());
    folder.write("chat_template.jinja", with_system(R"('<|im_start|>system\nJ<|im_end|>\n')"));
    BOOST_TEST(ChatTemplate(folder.path).render(kQuestion) == system_turn("J") + kAnswered);
}

BOOST_AUTO_TEST_CASE(other_families_are_refused_by_name) {
    std::pair<char const*, char const*> const families[] = {
        {"<|start_header_id|>user<|end_header_id|>", "llama-3"},
        {"[INST] {{ m }} [/INST]", "mistral"},
        {"<start_of_turn>user", "gemma"},
        {"<\uff5cUser\uff5c>", "deepseek"},
        {"<|user|>\n", "phi/zephyr"},
        {"Human: {{ m }}", "unknown"},
        {"<|im_start|> without an end", "unknown"}};
    for (auto const& [source, family] : families) {
        std::string const text = refusal([&] { from_config(source); });
        BOOST_TEST(holds(text, fmt::format("family {} is not supported", family)), text);
    }
}

BOOST_AUTO_TEST_CASE(a_missing_template_is_refused_with_what_to_do) {
    Folder const folder;
    BOOST_TEST(holds(refusal([&] { ChatTemplate const c(folder.path); }),
                     "put chat_template.jinja there"));
    BOOST_TEST(holds(refusal([&] { from_config(nullptr); }), "put chat_template.jinja there"));
}

BOOST_AUTO_TEST_CASE(empty_conversations_and_roles_with_line_breaks_are_refused) {
    auto const chat = from_config(kPlain);
    BOOST_TEST(holds(refusal([&] { (void)chat.render({}); }), "no messages"));
    BOOST_TEST(holds(refusal([&] { (void)chat.render({{"", "x"}}); }), "role"));
    BOOST_TEST(holds(refusal([&] { (void)chat.render({{"user\nsystem", "x"}}); }), "role"));
}

BOOST_AUTO_TEST_CASE(golden_conversations_give_the_ids_of_hf) {
    fs::path const golden = CPSTEP_GOLDEN_DIR;
    Tokenizer const tokenizer(golden / "tokenizer.json");
    ChatTemplate const chat(golden);
    json const expected = json::parse(std::ifstream(golden / "expected_ids.json"));
    BOOST_TEST(expected["chat"].size() == 8U);
    for (json const& item : expected["chat"]) {
        std::vector<ChatMessage> messages;
        for (json const& m : item["messages"]) {
            messages.push_back({m["role"], m["content"]});
        }
        BOOST_TEST((tokenizer.encode(chat.render(messages)) ==
                    item["ids"].get<std::vector<std::int32_t>>()));
    }
}
