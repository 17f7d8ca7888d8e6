#include <fmt/format.h>

#include <algorithm>

#include "app/pages.hpp"
#include "cuda/error.hpp"

namespace cpstep {
namespace {

/// "none" for a word that is no path.
std::string path_kind(std::string const& metavar) {
    return metavar == "DIR" ? "folder" : metavar == "FILE" ? "file" : "none";
}

/// How the word after an option is completed; the names are those of the script.
std::string value_kind(OptionSpec const& spec) {
    if (!spec.choices.empty()) {
        return spec.kind == OptionKind::list ? "list" : "word";
    }
    return path_kind(spec.metavar);
}

/// The case of one command: its options, and what each takes.
std::string command_case(CommandPage const& page) {
    std::string names = "--help";
    std::string values;
    for (OptionSpec const& spec : page.options) {
        if (spec.name == "help") {
            continue;
        }
        names += " --" + spec.name;
        if (spec.kind != OptionKind::flag) {
            values += fmt::format("        --{}) takes={} words=\"{}\" ;;\n", spec.name,
                                  value_kind(spec), fmt::join(spec.choices, " "));
        }
    }
    return fmt::format(
        "    {}) options=\"{}\" operand={}\n"
        "        case $before in\n{}"
        "        esac ;;\n",
        page.command.empty() ? "*" : page.command, names, path_kind(page.operand), values);
}

constexpr char const* find_words = R"BASH(
# Fails without the program's name $1 before the cursor. Sets command, before (the option whose value is typed), current and glue (what bash keeps of the word).
_@_where() {
    local i start=-1
    for ((i = 0; i < COMP_CWORD; i++)); do
        if [[ ${COMP_WORDS[i]##*/} == "$1" ]]; then start=$i; fi
    done
    ((start >= 0)) || return
    current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} glue= command=
    if ((COMP_CWORD > start + 1)); then command=${COMP_WORDS[start + 1]}; fi
    if [[ $current == "=" ]]; then
        current=
    elif [[ $before == "=" ]] && ((COMP_CWORD > 1)); then
        before=${COMP_WORDS[COMP_CWORD - 2]}
    elif [[ $current == --*=* ]]; then
        before=${current%%=*} glue=${current%%=*}= current=${current#*=}
    fi
}
)BASH";

constexpr char const* propose = R"BASH(
# Proposes what fits current.
_@_propose() {
    local word rest= chosen
    if [[ $takes == option && $operand != none && $current != -* ]]; then takes=$operand; else commands=; fi
    case $takes in
    option) mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current") ;;
    word) mapfile -t COMPREPLY < <(compgen -P "$glue" -W "$words" -- "$current") ;;
    list)
        chosen=${current%"${current##*,}"}
        for word in $words; do
            if [[ ,$chosen != *,"$word",* ]]; then rest+=" $word"; fi
        done
        mapfile -t COMPREPLY < <(compgen -P "$glue$chosen" -W "$rest" -- "${current##*,}")
        compopt -o nospace 2>/dev/null ;;
    folder) mapfile -t COMPREPLY < <(compgen -P "$glue" -d -- "$current") ;;
    file) mapfile -t COMPREPLY < <(compgen -P "$glue" -f -- "$current") ;;
    none) COMPREPLY=() ;;
    esac
    case $takes in folder | file) compopt -o filenames 2>/dev/null ;; esac
    if [[ -z $command && -n $commands ]]; then
        mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -W "$commands" -- "$current")
    fi
}
)BASH";

/// Of a program whose first word is a command.
constexpr char const* only_commands = R"BASH(    if [[ -z $command ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$commands --help --version" -- "$current")
        return
    fi
)BASH";

/// '@' in the text becomes `name`.
std::string named(std::string text, std::string const& name) {
    for (std::size_t at = 0; (at = text.find("_@_", at)) != std::string::npos;) {
        text.replace(at + 1, 1, name);
    }
    return text;
}

}  // namespace

std::string bash_completion(std::string const& program, std::vector<CommandPage> const& pages) {
    std::string name = program;
    std::replace(name.begin(), name.end(), '-', '_');
    std::string commands;
    std::string cases;
    std::string fallback = "    *) return ;;\n";
    bool first_is_command = true;
    bool launched = false;
    auto const add = [&](CommandPage const& page) {
        commands += (commands.empty() ? "" : " ") + page.command;
        cases += command_case(page);
    };
    for (CommandPage const& page : pages) {
        if (page.program != program) {
            continue;
        }
        launched = launched || page.launched;
        if (page.command.empty()) {
            first_is_command = false;
            fallback = command_case(page);
        } else {
            add(page);
        }
        std::for_each(page.subcommands.begin(), page.subcommands.end(), add);
    }
    std::string const where = "_" + name + "_where " + program + " || return\n";
    std::string const launchers =
        "# For launchers too:\n#   complete -o bashdefault -o default -F _" + name +
        " mpirun srun\n";
    return fmt::format(
        "# bash completion of {0}, written from its option table.\n{2}{3}{4}\n"
        "_{1}() {{\n"
        "    local command before current glue options= takes=option words= operand=none\n"
        "    local commands=\"{5}\"\n"
        "    {6}{7}"
        "    case $command in\n{8}{9}    esac\n"
        "    _{1}_propose\n"
        "}}\n"
        "complete -F _{1} {0}\n",
        program, name, launched ? launchers : "", named(find_words, name), named(propose, name),
        commands, where, first_is_command ? only_commands : "", cases, fallback);
}

}  // namespace cpstep
