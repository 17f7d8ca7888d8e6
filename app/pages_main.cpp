// cpstep_pages DIR: writes DIR/man/man1/*.1 and DIR/bash-completion/completions/*. Runs at build
// time.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "app/pages.hpp"
#include "cuda/error.hpp"

namespace {

void write_text(std::filesystem::path const& file, std::string const& text) {
    std::filesystem::create_directories(file.parent_path());
    std::ofstream stream(file, std::ios::binary);
    stream << text;
    stream.close();
    cpstep::require(stream.good(), cpstep::ExitCode::output, "{}: cannot be written",
                    file.string());
}

void write_pages(std::filesystem::path const& folder) {
    auto const pages = cpstep::command_pages();
    std::filesystem::path const man = folder / "man/man1";
    std::set<std::string> programs;
    for (cpstep::CommandPage const& page : pages) {
        programs.insert(page.program);
        write_text(man / (page.title() + ".1"), cpstep::man_page(page, CPSTEP_VERSION));
        if (!page.command.empty()) {
            write_text(man / (page.program + ".1"),
                       cpstep::program_page(page.program, pages, CPSTEP_VERSION));
        }
    }
    for (std::string const& program : programs) {
        write_text(folder / "bash-completion/completions" / program,
                   cpstep::bash_completion(program, pages));
    }
}

}  // namespace

// Nothing is lost where even the error cannot be printed.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
    try {
        cpstep::require(argc == 2, cpstep::ExitCode::usage, "usage: cpstep_pages DIR");
        write_pages(argv[1]);
        return 0;
    } catch (std::exception const& error) {
        fmt::print(stderr, "cpstep_pages: {}\n", error.what());
        auto const* known = dynamic_cast<cpstep::Error const*>(&error);
        return static_cast<int>(known != nullptr ? known->code() : cpstep::ExitCode::internal);
    }
}
