#define BOOST_TEST_MODULE pages
#include <boost/test/unit_test.hpp>
#include <sstream>

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

}  // namespace

BOOST_AUTO_TEST_CASE(every_option_of_the_table_is_in_the_pages_of_run) {
    for (CommandPage const& page : command_pages()) {
        std::string const man = man_page(page, "1.2.3");
        std::string const completion = bash_completion(page.program, command_pages());
        BOOST_TEST(!page.options.empty());
        for (OptionSpec const& spec : page.options) {
            std::string escaped = "\\-\\-";
            for (char const c : spec.name) {
                escaped += c == '-' ? "\\-" : std::string(1, c);
            }
            BOOST_TEST(contains(man, "\\fB" + escaped + "\\fR"), spec.name);
            BOOST_TEST(contains(completion, " --" + spec.name), spec.name);
            for (std::string const& choice : spec.choices) {
                BOOST_TEST(contains(completion, choice), choice);
            }
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
    BOOST_TEST(contains(with, "go --help --version"));
    BOOST_TEST(!contains(without, "--version"));
    BOOST_TEST(contains(without, "complete -F _cpstep_test cpstep-test"));
}
