#!/usr/bin/env python3
"""`cpstep doctor` as a user starts it: the table, JSON, exit codes, the measured wires and their plot.

usage: doctor.py CPSTEP MPIEXEC SOURCE_DIR [TEST ...]
"""
import json
import os
import re
import xml.etree.ElementTree as xml

from e2e import expect, expect_code, main, snapshot

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
CHECKS = ("GPUs", "driver", "CUDA", "GPU code", "attention", "GPU model", "MIG", "compute mode", "persistence",
          "other processes", "GPU memory", "Xid", "GPU clocks", "PCIe", "NVLink", "peer access", "NUMA", "network", "NCCL settings",
          "/dev/shm", "locked memory", "open files", "stack", "CPUs", "program", "MPI", "launcher", "NCCL",
          "rank clocks", "output", "wire mpi")


def doctor(program, *arguments, ranks=2, env=NO_GPU, cwd=None):
    return program.execute(program.line(["doctor", *arguments], ranks), env, cwd)


def checks_of(result):
    return {check["check"]: check for check in json.loads(result.out)["checks"]}


def test_every_check_has_a_row_on_one_two_and_three_ranks(program):
    for ranks in (0, 1, 2, 3):
        output = program.path()
        result = doctor(program, "--json", "--output", output, ranks=ranks)
        report = json.loads(result.out)
        expect_code(result, report["exit_code"])
        expect((report["format"], report["format_version"]) == ("cpstep-doctor", 1), report["format"])
        expect(report["ranks"] == max(ranks, 1), report["ranks"])
        checks = checks_of(result)
        expect(tuple(checks) == CHECKS, tuple(checks))
        failed = [c for c in checks.values() if c["status"] == "FAIL"]
        expect((report["exit_code"], report["verdict"]) == ((3, "not ready") if failed else (0, "ready")), failed)
        for check in checks.values():
            expect(check["status"] in ("PASS", "WARN", "FAIL", "SKIP"), check)
            expect(check["value"] and check["wanted"], check)
            expect(bool(check["fix"]) == (check["status"] in ("WARN", "FAIL")), check)
        for name in ("output", "program", "MPI", "launcher"):
            expect(checks[name]["status"] == "PASS", checks[name])
        expect(checks["GPUs"]["status"] == "SKIP", checks["GPUs"])
        if ranks > 1:
            expect(checks["wire mpi"]["status"] == "PASS", checks["wire mpi"])
            expect(checks["rank clocks"]["status"] in ("PASS", "WARN"), checks["rank clocks"])
            expect(re.match(r"known to [\d.]+ us", checks["rank clocks"]["value"]), checks["rank clocks"])
        else:
            expect(checks["wire mpi"]["status"] == "SKIP", checks["wire mpi"])
        expect(not output.exists(), "the probe left its folder")
        expect(result.seconds < 30, f"took {result.seconds:.0f} s")  # 10 s with room for a busy machine


def test_the_environment_of_nccl_is_told(program):
    settings = {**NO_GPU, "NCCL_DEBUG": "WARN", "NCCL_P2P_DISABLE": "1"}
    check = checks_of(doctor(program, "--json", "--output", program.path(), env=settings))["NCCL settings"]
    expect((check["status"], check["value"]) == ("PASS", "NCCL_DEBUG=WARN NCCL_P2P_DISABLE=1"), check)


def test_the_table_says_what_the_json_says(program):
    table = doctor(program, "--output", program.path())
    for name in CHECKS:
        expect(re.search(rf"(?m)^{re.escape(name)} +(PASS|WARN|FAIL|SKIP)  \S", table.out), f"{name}: {table.out}")
    last = table.out.splitlines()[-1]
    passed, warned, failed, skipped = map(int, re.findall(r"\d+", last)[:4])
    rows = [line for line in table.out.splitlines() if re.match(r"\S.* (PASS|WARN|FAIL|SKIP)  ", line)]
    expect(passed + warned + failed + skipped == len(rows) == len(CHECKS), last)
    expect(last.endswith("not ready (exit 3)" if failed else "ready (exit 0)"), last)
    expect(table.out.count("fix: ") == warned + failed, table.out)
    expect_code(table, 3 if failed else 0)


def test_a_folder_that_cannot_be_written_fails(program):
    target = program.path("file")
    target.write_text("in the way")
    for ranks in (1, 2):
        result = doctor(program, "--json", "--output", target / "below", ranks=ranks)
        expect_code(result, 3)
        check = checks_of(result)["output"]
        expect(check["status"] == "FAIL" and "cannot be made" in check["value"] and "--output" in check["fix"], check)
    expect(target.read_text() == "in the way", "the file was touched")


def test_an_output_folder_is_left_as_it_was(program):
    folder = program.path("kept")
    folder.mkdir()
    (folder / "run.h5").write_text("a run")
    before = snapshot(folder)
    result = doctor(program, "--output", folder)
    expect(result.code in (0, 3), result)
    expect(snapshot(folder) == before, snapshot(folder))


def test_more_ranks_than_cpus_are_warned_of(program):
    cpus = len(os.sched_getaffinity(0))
    result = doctor(program, "--json", "--output", program.path(), ranks=cpus + 1)
    check = checks_of(result)["CPUs"]
    expect(check["status"] == "WARN" and f"{cpus + 1} ranks on {cpus} CPUs" in check["value"], check)


def test_the_wrong_word_of_a_launcher_is_noticed(program):
    env = {**NO_GPU, "SLURM_STEP_ID": "0", "SLURM_LOCALID": "3"}
    check = checks_of(doctor(program, "--json", "--output", program.path(), ranks=0, env=env))["launcher"]
    expect(check["status"] == "WARN" and check["value"].startswith("srun: rank 0 is told to be 3"), check)


def test_full_measures_the_wire_and_draws_it(program):
    output = program.path("full")
    result = doctor(program, "--full", "--json", "--output", output)
    expect(result.code in (0, 3), result)
    wire, = json.loads(result.out)["wires"]
    rates = wire["rates"]
    sizes = sorted({r["bytes"] for r in rates})
    expect(sizes[0] == 4096 and sizes[-1] <= 256 << 20 and len(rates) == 2 * len(sizes), sizes)
    expect(all(b == 4 * a for a, b in zip(sizes, sizes[1:])), sizes)
    for rate in rates:  # on two ranks the all-reduce's factor is 1 too
        expect(abs(rate["bus_gb_per_s"] * 1e9 * rate["seconds"] / rate["bytes"] - 1) < 1e-9, rate)
    ring = {r["bytes"]: r["seconds"] for r in rates if r["op"] == "ring"}
    expect(ring[sizes[-1]] > ring[sizes[0]], ring)
    root = xml.parse(output / "doctor-wires.svg").getroot()
    curves = root.findall(".//{http://www.w3.org/2000/svg}polyline")
    expect([len(c.get("points").split()) for c in curves] == [len(sizes)] * 2, len(curves))
    expect(sorted(p.name for p in output.iterdir()) == ["doctor-wires.svg"], list(output.iterdir()))


def test_full_on_one_rank_has_no_wire_and_draws_nothing(program):
    output = program.path()
    result = doctor(program, "--full", "--output", output, ranks=0)
    expect(result.code in (0, 3) and not output.exists(), result)


def test_help_fits_a_screen_and_wrong_options_stop(program):
    result = doctor(program, "--help", ranks=0)
    lines = result.out.splitlines()
    expect(result.code == 0 and 8 < len(lines) <= 24 and max(map(len, lines)) <= 90, result)
    expect("cpstep doctor" in program.execute([program.cpstep, "--help"]).out, "not in the usage")
    for ranks in (0, 2):
        wrong = doctor(program, "--ful", ranks=ranks)
        expect_code(wrong, 2)
        expect(len(wrong.said) == 1 and "did you mean '--full'?" in wrong.err and not wrong.out, wrong)


if __name__ == "__main__":
    main(dict(globals()))
