#!/usr/bin/env python3
"""`cpstep run --self-test`: every planted bug is caught, and a bug that is not caught fails the run.

usage: self_test.py CPSTEP MPIEXEC SOURCE_DIR [TEST ...]
"""
import re

from e2e import check_refusal, expect, expect_code, main, snapshot

LONGEST_S = 60  # of one self-test
ROW = re.compile(r"(\S+) +(.*\S) +(caught|SURVIVED|not planted|green|RED) +(\d+|-)  (.+)")


class Row:
    def __init__(self, variant, kind, code, by):
        self.variant, self.kind, self.code, self.by = variant, kind, code, by

    def __repr__(self):
        return f"{self.variant}: {self.kind} {self.code} {self.by}"


def planted_names(program):
    """Every fault of the source, as the report writes it."""
    source = (program.source / "cuda/fault.hpp").read_text()
    body = re.search(r"enum class Fault[^{]*\{([^}]*)\}", source).group(1)
    names = [name.replace("_", "-") for name in re.findall(r"\w+", body)]
    expect(names[0] == "none" and len(names) > 20, names)
    return names[1:]


def rows_of(program, result):
    """Row of each fault by name; the rows without a fault are looked at here."""
    found = [match.groups() for match in map(ROW.fullmatch, result.out.splitlines()) if match]
    clean = [Row(*rest) for name, *rest in found if name == "none"]
    expect(len(clean) >= 5 and all((row.kind, row.code) == ("green", "0") for row in clean), clean)
    expect(all(re.fullmatch(r"\d+ checks pass", row.by) for row in clean), clean)
    faults = [(name, Row(*rest)) for name, *rest in found if name != "none"]
    expect(sorted(name for name, _ in faults) == sorted(planted_names(program)), [name for name, _ in faults])
    return dict(faults)


def self_test(program, *arguments, ranks, cwd=None, code=0):
    result = program.run("--self-test", *arguments, ranks=ranks, cwd=cwd)
    expect_code(result, code)
    expect(result.seconds < LONGEST_S, f"took {result.seconds:.0f} s")
    return rows_of(program, result), result


def expect_caught(rows, but):
    """All are caught, by the exit code a run would have; those of `but` are not planted, for its reasons."""
    for name, row in rows.items():
        if name in but:
            expect((row.kind, row.code) == ("not planted", "-") and but[name] in row.by, f"{name} {row}")
        else:
            expect(row.kind == "caught" and row.code in ("5", "6", "7"), f"{name} {row}")


def expect_total(result, rows):
    planted = sum(row.kind != "not planted" for row in rows.values())
    total = f"self-test: PASS (exit 0): {planted} of {planted} planted faults caught, {len(rows) - planted} not planted"
    expect(total in result.out.splitlines()[-1], result.out[-300:])


def built_in(program, ranks, but):
    """In an empty folder, which stays empty: a self-test leaves nothing behind."""
    folder = program.path("cwd")
    folder.mkdir()
    rows, result = self_test(program, ranks=ranks, cwd=folder)
    expect(snapshot(folder) == {}, snapshot(folder))
    expect(f"self-test: CP {ranks} on a built-in model" in result.out, result.out[:200])
    expect_caught(rows, but)
    expect_total(result, rows)
    skipped = rows["collective-skipped"]
    expect(skipped.code == "7" and "timed out" in skipped.by, skipped)
    return rows


def test_two_ranks_catch_every_fault_but_the_direction_of_a_ring_of_two(program):
    built_in(program, 2, {"ring-direction-flipped": "needs 3 ranks"})


def test_three_ranks_catch_every_fault(program):
    built_in(program, 3, {})


def test_four_ranks_catch_every_fault(program):
    built_in(program, 4, {})


def test_the_smoke_run_catches_every_fault_that_its_samples_can_show(program):
    output = program.path()
    rows, result = self_test(program, "--config", "inputs/smoke.ini", "--output", output, ranks=2)
    expect_caught(rows, {"ring-direction-flipped": "needs 3 ranks",
                         "entropy-of-masked-rows": "every response token of these samples counts",
                         "collective-skipped": "every rank has response rows"})
    expect_total(result, rows)
    expect("self-test: CP 2 on inputs/tiny" in result.out, result.out[:200])
    expect(not output.exists(), "a folder was made")


def test_a_finished_run_is_not_touched(program):
    output = program.path()
    output.mkdir()
    (output / "run.h5").write_text("of another run")
    before = snapshot(output)
    self_test(program, "--output", output, ranks=2)
    expect(snapshot(output) == before, "the folder was changed")


def test_a_fault_that_survives_fails_the_run(program):
    """Without advantages no gradient flows through the sequence KL, so that a wrong one cannot be seen."""
    rows, result = self_test(program, "--config", "inputs/vacuous.ini", ranks=2, code=5)
    survivors = [name for name, row in rows.items() if row.kind == "SURVIVED"]
    expect(survivors == ["seq-kl-gradient-of-local-tokens"], survivors)
    expect(rows[survivors[0]].code == "0" and "checks pass" in rows[survivors[0]].by, rows[survivors[0]])
    expect("self-test: FAILED (exit 5)" in result.out, result.out[-300:])


def test_one_rank_is_a_usage_error(program):
    for ranks in (0, 1):
        check_refusal(program.run("--self-test", ranks=ranks), None, 2, ["--self-test", "2 ranks or more"])


if __name__ == "__main__":
    main(dict(globals()))
