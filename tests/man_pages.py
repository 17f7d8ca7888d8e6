#!/usr/bin/env python3
"""The man pages and the bash completion that the build writes, as man and bash see them.

usage: man_pages.py CPSTEP MPIEXEC SOURCE_DIR [TEST ...]; the pages lie in share/ beside the program's bin/
"""
import re
import shutil
import subprocess

from e2e import expect, main

SCRIPT = """
source "$1"; function=$2; shift 2
COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
"$function"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def share(program):
    return program.cpstep.parent.parent / "share"


def complete(program, *words, cwd=None, of="cpstep"):
    """What bash proposes for the last word of a line; `of`: whose completion is asked."""
    file = share(program) / "bash-completion/completions" / of
    line = ["bash", "-u", "-c", SCRIPT, "bash", file, "_" + of.replace("-", "_"), *words]
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True, cwd=cwd, check=True)
    expect(not done.stderr, done.stderr)
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


def options_of_help(*command):
    text = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"(?:^|  |\s)--([a-z][a-z0-9-]+)", text.split("\n", 3)[3]))


def options_of_page(text):
    return set(re.findall(r"^\\fB--([a-z0-9-]+)\\fR", text, re.MULTILINE))


def page_text(program, name):
    return (share(program) / f"man/man1/{name}.1").read_text().replace("\\-", "-")


def test_every_option_of_help_is_in_the_page_and_completed(program):
    for command, least in (("run", 80), ("doctor", 3)):
        wanted = options_of_help(program.cpstep, command) - {"help"}
        expect(len(wanted) >= least, sorted(wanted))
        completed = {word[2:] for word in complete(program, "cpstep", command, "--")} - {"help"}
        expect(completed == wanted, completed ^ wanted)
        named = options_of_page(page_text(program, f"cpstep-{command}")) - {"help"}
        expect(named == wanted, named ^ wanted)


def test_every_option_of_the_reports_commands_is_in_its_page_and_completed(program):
    report = program.cpstep.with_name("cpstep-report")
    head, *parts = re.split(r"(?m)^\.SS (\w+)\n", page_text(program, "cpstep-report").split(".SH EXIT STATUS")[0])
    sections = {"": head, **dict(zip(parts[::2], parts[1::2]))}
    expect(list(sections) == ["", "recover", "diff", "export"], list(sections))
    for command, text in sections.items():
        words = [command] if command else []
        wanted = options_of_help(report, *words)
        expect(len(wanted) >= 4, wanted)
        expect(options_of_page(text) == wanted, f"{command}: {options_of_page(text) ^ wanted}")
        completed = {word[2:] for word in complete(program, "cpstep-report", *words, "a", "--", of="cpstep-report")}
        expect(completed == wanted, f"{command}: {completed ^ wanted}")


def test_pages_list_exit_codes_and_name_each_other(program):
    codes = {"cpstep-run": "0 1 2 3 4 5 6 7 8 9 10", "cpstep-doctor": "0 1 2 3 7 8", "cpstep-report": "0 1 2 4 5 6 8 9 10"}
    for name, wanted in codes.items():
        text = page_text(program, name).split(".SH EXIT STATUS")[1]
        expect(re.findall(r"(?m)^\.B (\d+)$", text) == wanted.split(), f"{name}: {text}")
    text = page_text(program, "cpstep")
    for name in ("cpstep-run", "cpstep-doctor", "cpstep-report"):
        expect(f".BR {name} (1)" in text, name)


def test_pages_are_clean(program):
    if shutil.which("man") is None:
        print("SKIPPED: no man here")
        return
    for page in sorted((share(program) / "man/man1").iterdir()):
        done = subprocess.run(["man", "--warnings", "-E", "UTF-8", "-l", page], capture_output=True, text=True)
        expect(done.returncode == 0 and not done.stderr, f"{page}: {done.stderr}")
        for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES"):
            expect(f"\n{heading}\n" in done.stdout, f"{page}: no {heading}")
        if shutil.which("mandoc"):
            lint = subprocess.run(["mandoc", "-T", "lint", page], capture_output=True, text=True).stdout
            bad = [line for line in lint.splitlines() if "missing date" not in line]
            expect(not bad, bad)


def test_words_are_completed_where_they_are_typed(program):
    folder = program.path()
    (folder / "a folder").mkdir(parents=True)
    (folder / "a.jsonl").touch()
    for words, wanted in (
            (["cpstep", ""], ["run", "doctor", "--help", "--version"]),
            (["cpstep", "d"], ["doctor"]),
            (["cpstep", "doctor", "--f"], ["--full"]),
            (["cpstep", "doctor", "--output", "a"], ["a folder"]),
            (["mpirun", "-np", "2", "cpstep", "doctor", "--j"], ["--json"]),
            (["cpstep", "r"], ["run"]),
            (["cpstep", "run", "--eps-clip-"], ["--eps-clip-high", "--eps-clip-c"]),
            (["cpstep", "run", "--lr", "1e-6", "--balance"], ["--balance-data"]),
            (["cpstep", "run", "--init", ""], ["checkpoint", "random"]),
            (["cpstep", "run", "--init", "=", "r"], ["random"]),
            (["cpstep", "run", "--init", "="], ["checkpoint", "random"]),
            (["cpstep", "run", "--init=r"], ["--init=random"]),
            (["cpstep", "run", "--cp-comm-type", "a2"], ["a2a", "a2a+p2p"]),
            (["cpstep", "run", "--cp-comm-type", "p2p,a2a,"], ["p2p,a2a,all_gather", "p2p,a2a,a2a+p2p"]),
            (["cpstep", "run", "--save", "w"], ["weights"]),
            (["cpstep", "run", "--seed", ""], []),
            (["cpstep", "run", "--output", "a"], ["a folder"]),
            (["cpstep", "run", "--prompt-data", "a"], ["a folder", "a.jsonl"]),
            (["cpstep", "unknown", "--"], []),
            (["mpirun", "-np", "2", "/opt/bin/cpstep", "run", "--kl-loss-type", "k"], ["k1", "k2", "k3"]),
            (["mpirun", "-n"], []), (["mpirun", "-np", "2", "cps"], [])):
        got = complete(program, *words, cwd=folder)
        expect(sorted(got) == sorted(wanted), f"{words}: {got}, expected {wanted}")


def test_words_of_the_report_are_completed_where_they_are_typed(program):
    folder = program.path()
    (folder / "a folder").mkdir(parents=True)
    (folder / "a.h5").touch()
    (folder / "diffs").mkdir()
    for words, wanted in (
            ([""], ["recover", "diff", "export", "a folder", "diffs"]),
            (["d"], ["diff", "diffs"]), (["a"], ["a folder"]), (["--c"], ["--csv"]),
            (["x", "a"], ["a folder"]), (["x", "--csv", "a"], ["a folder", "a.h5"]), (["x", "--step", ""], []),
            (["x", "d"], ["diffs"]),  # a command only as the first word
            (["recover", "a"], ["a folder"]), (["diff", "a"], ["a folder", "a.h5"]), (["diff", "x", "a"], ["a folder", "a.h5"]),
            (["diff", "--gate"], ["--gate-ratio"]),
            (["export", "x", "--format", ""], ["perfetto", "hta"]), (["export", "x", "--format=h"], ["--format=hta"])):
        got = complete(program, "cpstep-report", *words, cwd=folder, of="cpstep-report")
        expect(sorted(got) == sorted(wanted), f"{words}: {got}, expected {wanted}")


if __name__ == "__main__":
    main(dict(globals()))
