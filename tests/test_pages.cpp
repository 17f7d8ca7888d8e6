#define BOOST_TEST_MODULE pages
#include <boost/test/unit_test.hpp>
#include <sstream>

#include "app/analysis/command_line.hpp"
#include "app/doctor/doctor.hpp"
#include "app/pages.hpp"

using namespace cpstep;

namespace {

CommandPage made_up(std::string const& command) {
    CommandPage page;
    page.program = "cpstep-test";
    page.command = command;
    page.summary = "a program";
    page.synopsis = "cpstep-test DIR";
    OptionSpec dotted;
    dotted.name = "hard-words";
    dotted.help = ".begins like a request, has a \\ and 'quotes'";
    dotted.section = "Section";
    dotted.metavar = "FILE";
    OptionSpec listed;
    listed.name = "pick";
    listed.kind = OptionKind::list;
    listed.section = "Section";
    listed.choices = {"one", "two"};
    page.options = {dotted, listed};
    return page;
}

bool contains(std::string const& text, std::string const& part) {
    return text.find(part) != std::string::npos;
}

void check_options(CommandPage const& page, std::string const& man, std::string const& completion) {
    BOOST_TEST(!page.options.empty());
    for (OptionSpec const& spec : page.options) {
        std::string escaped = "\\-\\-";
        for (char const c : spec.name) {
            escaped += c == '-' ? "\\-" : std::string(1, c);
        }
        BOOST_TEST(contains(man, "\\fB" + escaped + "\\fR"), spec.name);
        BOOST_TEST(contains(completion, "--" + spec.name), spec.name);
        for (std::string const& choice : spec.choices) {
            BOOST_TEST(contains(completion, choice), choice);
        }
    }
    for (CommandPage const& command : page.subcommands) {
        BOOST_TEST(contains(man, ".SS " + command.command + "\n"));
        check_options(command, man, completion);
    }
}

}  // namespace

BOOST_AUTO_TEST_CASE(every_option_that_is_parsed_is_in_the_page_and_the_completion) {
    for (CommandPage const& page : command_pages()) {
        check_options(page, man_page(page, "1.2.3"),
                      bash_completion(page.program, command_pages()));
    }
}

BOOST_AUTO_TEST_CASE(pages_of_described_options_have_their_values_and_defaults) {
    auto const pages = command_pages();
    BOOST_REQUIRE(pages.size() == 3u);
    std::string const doctor = man_page(pages[1], "1");
    BOOST_TEST(pages[1].options.size() == doctor_text().options.options().size());
    BOOST_TEST(contains(doctor, "\\fB\\-\\-output\\fR \\fIDIR\\fR\n"));
    BOOST_TEST(contains(doctor, "[out]"));
    BOOST_TEST(contains(doctor, "\\fB\\-\\-full\\fR\n"));
    std::string const report = man_page(pages[2], "1");
    BOOST_TEST(pages[2].subcommands.size() + 1 == report_commands().size());
    BOOST_TEST(contains(report, "\\fB\\-\\-format\\fR \\fIWORD\\fR\n"));
    BOOST_TEST(contains(report, "one of perfetto, hta"));
    BOOST_TEST(contains(report, "[1e\\-5]"));
}

BOOST_AUTO_TEST_CASE(every_exit_code_of_a_command_is_in_its_page) {
    for (CommandPage const& page : command_pages()) {
        std::string const man = man_page(page, "1");
        std::string const statuses = man.substr(man.find(".SH EXIT STATUS"));
        BOOST_TEST(page.exits.size() >= 6u, page.title());
        for (auto const& [code, text] : page.exits) {
            BOOST_TEST(contains(statuses, fmt::format(".B {}\n", static_cast<int>(code))), text);
        }
    }
}

BOOST_AUTO_TEST_CASE(help_text_never_becomes_a_request) {
    std::string const man = man_page(made_up(""), "1");
    BOOST_TEST(contains(man, "\n\\&.begins like a request, has a \\e and"));
    std::istringstream lines(man);
    for (std::string line; std::getline(lines, line);) {
        BOOST_TEST(line.size() <= 90u, line);
        bool const request = !line.empty() && (line[0] == '.' || line[0] == '\'');
        BOOST_TEST((!request || (line.size() > 1 && std::isalpha(line[1]) != 0)), line);
    }
}

BOOST_AUTO_TEST_CASE(a_list_shows_its_words_and_not_its_metavar) {
    std::string const man = man_page(made_up(""), "1");
    BOOST_TEST(contains(man, "\\fB\\-\\-pick\\fR \\fILIST\\fR\na list of one, two\n"));
}

BOOST_AUTO_TEST_CASE(the_page_of_a_program_names_its_commands) {
    std::string const page = program_page("cpstep-test", {made_up("go"), made_up("stop")}, "1");
    BOOST_TEST(contains(page, ".BR cpstep\\-test\\-go (1)"));
    BOOST_TEST(contains(page, ".BR cpstep\\-test\\-stop (1)"));
}

BOOST_AUTO_TEST_CASE(a_program_without_commands_completes_its_options_at_once) {
    std::string const with = bash_completion("cpstep-test", {made_up("go")});
    std::string const without = bash_completion("cpstep-test", {made_up("")});
    BOOST_TEST(contains(with, "commands=\"go\""));
    BOOST_TEST(contains(with, "$commands --help --version"));
    BOOST_TEST(!contains(without, "--version"));
    BOOST_TEST(contains(without, "complete -F _cpstep_test cpstep-test"));
}

BOOST_AUTO_TEST_CASE(a_program_with_an_operand_completes_it_beside_its_commands) {
    CommandPage page = made_up("");
    page.operand = "DIR";
    page.subcommands = {made_up("go")};
    std::string const text = bash_completion("cpstep-test", {page});
    BOOST_TEST(contains(text, "commands=\"go\""));
    BOOST_TEST(text.find("    go) options=") < text.find("    *) options="));
    BOOST_TEST(contains(text, "operand=folder\n"));
    BOOST_TEST(!contains(text, "--version"));
}
