#!/usr/bin/env python3
"""The man pages and the bash completion that the build writes, as man and bash see them.

usage: man_pages.py CPSTEP MPIEXEC SOURCE_DIR [TEST ...]; the pages lie in share/ beside the program's bin/
"""
import re
import shutil
import subprocess

from e2e import expect, main

SCRIPT = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
_cpstep
printf '%s\\n' "${COMPREPLY[@]}"
"""


def share(program):
    return program.cpstep.parent.parent / "share"


def complete(program, *words, cwd=None):
    """What bash proposes for the last word of a line."""
    line = ["bash", "-u", "-c", SCRIPT, "bash", share(program) / "bash-completion/completions/cpstep", *words]
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True, cwd=cwd, check=True)
    expect(not done.stderr, done.stderr)
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


def options_of_help(program):
    text = subprocess.run([program.cpstep, "run", "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"(?:^|  |\s)--([a-z][a-z0-9-]+)", text.split("\n", 3)[3]))


def test_every_option_of_help_is_in_the_page_and_completed(program):
    wanted = options_of_help(program)
    expect(len(wanted) > 80, sorted(wanted))
    completed = {word[2:] for word in complete(program, "cpstep", "run", "--")} - {"help"}
    expect(completed == wanted, completed ^ wanted)
    page = (share(program) / "man/man1/cpstep-run.1").read_text().replace("\\-", "-")
    named = set(re.findall(r"^\\fB--([a-z0-9-]+)\\fR", page, re.MULTILINE))
    expect(named == wanted, named ^ wanted)


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
            (["cpstep", ""], ["run", "--help", "--version"]),
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


if __name__ == "__main__":
    main(dict(globals()))
