#!/usr/bin/env python3
"""cpstep-report as a user starts it: on a real run, and on made-up ones whose every sum is known.

usage: offline_report.py CPSTEP MPIEXEC SOURCE_DIR [TEST ...]
"""
import csv
import json
import os
import pty
import shutil
import subprocess
import sys

import h5py
import numpy as np

from e2e import expect, expect_code, main, smoke, smoke_run
from run_output import COMM, COMPUTE, uncovered_ns


def run(program, *arguments, env=None):
    return program.execute([str(word) for word in [program.cpstep.with_name("cpstep-report"), *arguments]], env)


def report(program, *arguments, code=0):
    result = run(program, *arguments, "--json")
    expect_code(result, code)
    return json.loads(result.out)


def make_run(program, **more):
    sys.path.insert(0, str(program.source / "jobs"))
    from report_scale_make import make_run as make
    folder = program.path("made")
    folder.mkdir()
    return folder, make(folder, **more)


def rank_file(folder, rank):
    return folder / f"ranks/000/rank{rank:05}.h5"


def close(a, b):
    return abs(a - b) <= 1e-12 * max(abs(a), abs(b), 1e-9)


# The report -----------------------------------------------------------------------------------------------------------

def test_it_needs_neither_mpi_nor_cuda(program):
    libraries = subprocess.run(["ldd", program.cpstep.with_name("cpstep-report")], capture_output=True, text=True).stdout
    expect("libhdf5" in libraries and not any(word in libraries for word in ("mpi", "cuda", "nccl")), libraries)


def test_times_and_ratio_of_a_real_run_are_those_of_its_summary(program):
    output, _, summary = smoke_run(program)
    found = report(program, output)
    expect([v["name"] for v in found["variants"]] == ["cp1", "cp2"] and not found["problems"], found["problems"])
    for v, s in zip(found["variants"], summary["variants"]):
        t = s["timing"]
        expect(v["timed"] and v["steps"] == t["steps"], v)
        for mine, its in (("median_s", "median_s"), ("min_s", "min_s")):
            expect(close(v[mine], t[its]), f"{mine}: {v[mine]}, summary {t[its]}")
        for mine, its in (("value", "ratio"), ("low", "ratio_low"), ("high", "ratio_high")):
            expect(close(v["ratio"][mine], t[its]), f"{mine}: {v['ratio']}, summary {t[its]}")
        expect(v["ratio"]["blocks"] == t["blocks"], v["ratio"])
        wire = next(r["wire_bytes_a_rank"] for r in summary["ranking"] if r["variant"] == v["name"])
        expect(close(v["bus_gb_s"] * v["comm_s"]["median"] * 1e9, wire), f"{v['bus_gb_s']}")


def union_ns(events):
    total, end = 0, -1
    for begin, length in sorted((int(e["t0_ns"]), int(e["dur_ns"])) for e in events):
        total += max(begin + length - max(begin, end), 0)
        end = max(end, begin + length)
    return total


def test_the_sums_of_a_real_run_follow_from_its_events(program):
    output, _, _ = smoke_run(program)
    for rank in range(2):
        with h5py.File(rank_file(output, rank)) as file:
            events = file["events"][:]
            for step in file["steps"][:]:
                own = events[events["step"] == step["step"]]
                leaves = own[(own["kind"] == COMPUTE)]
                comm = own[own["kind"] == COMM]
                busy = own[(own["kind"] >= COMPUTE)]
                expect(step["compute_ns"] == union_ns(leaves), step)
                expect(step["comm_ns"] == union_ns(comm) and step["bytes"] == comm["bytes"].sum(), step)
                expect(step["exposed_ns"] == uncovered_ns(own), step)
                expect(step["wait_ns"] == union_ns(own[own["kind"] == 4]), step)
                expect(step["idle_ns"] == max(step["dur_ns"] - union_ns(busy), 0), step)
                expect(step["detail"] == 0, "a host traces layers")
            with h5py.File(output / "run.h5") as whole:
                blocks = list(whole["steps/block"][:])
            expect(list(file["steps"]["block"]) == [-1, -1, *blocks], file["steps"]["block"])


def test_parts_of_a_made_up_run_are_known_exactly(program):
    folder, templates = make_run(program, ranks=4, events=3000, blocks=6)
    found = report(program, folder)
    steps = {}
    for rank in range(4):
        with h5py.File(rank_file(folder, rank)) as file:
            steps[rank] = file["steps"][:]
            names = [n.decode() for n in file["names"][:]]
    for v in found["variants"]:
        for key, column in (("compute_s", "compute_ns"), ("comm_s", "comm_ns"), ("exposed_s", "exposed_ns"),
                            ("wait_s", "wait_ns"), ("idle_s", "idle_ns")):
            medians = [np.median([s[column] for s in rows if names[s["variant"]] == v["name"] and s["block"] >= 0]) * 1e-9
                       for rows in steps.values()]
            for name, wanted in (("min", min(medians)), ("median", np.median(medians)), ("max", max(medians))):
                expect(close(v[key][name], wanted), f"{v['name']} {key} {name}: {v[key]}, expected {wanted}")
        expect(v["slowest_rank"] == 3 and v["slowest_share"] == 1, v)
        expect(v["bytes_a_rank"] == templates[v["name"]].bytes, v["bytes_a_rank"])
    hops = found["step"]["hops"]
    expect(found["step"]["variant"] == "cp4" and [(h["label"], h["hop"]) for h in hops] == [("cp.kv", 1)], hops)
    wait = 2 * 20_000e-9
    expect(abs(hops[0]["wait_s"]["median"] / wait - 1) < 0.02, f"a hop is waited for {hops[0]}, about {wait} s")
    phases = {p["name"]: p for p in found["step"]["phases"]}
    expect(list(phases) == ["train_forward", "backward", "optimizer"], list(phases))
    expect(phases["train_forward"]["exposed_s"]["max"] > 0, phases)


def test_a_chosen_step_is_shown_and_one_that_is_not_there_is_refused(program):
    folder, _ = make_run(program)
    found = report(program, folder, "--step", 0)
    expect((found["step"]["step"], found["step"]["variant"], found["step"]["block"]) == (0, "cp1", -1), found["step"])
    result = run(program, folder, "--step", 999)
    expect_code(result, 2)
    expect("no step 999: this run has steps 0 to 17" in result.err, result.err)


def test_the_csv_holds_every_row_of_the_ranks(program):
    folder, _ = make_run(program)
    file = program.path("rows.csv")
    expect_code(run(program, folder, "--csv", file), 0)
    rows = list(csv.DictReader(file.open()))
    with h5py.File(rank_file(folder, 1)) as ranks:
        steps, names = ranks["steps"][:], [n.decode() for n in ranks["names"][:]]
    own = [row for row in rows if row["rank"] == "1"]
    expect(len(own) == len(steps) and len(rows) == 2 * len(steps), len(rows))
    for row, step in zip(own, steps):
        for key in steps.dtype.names:
            wanted = {"variant": names[step["variant"]], "detail": "layers"}.get(key, str(step[key]))
            expect(row[key] == wanted, f"{key}: {row[key]}, expected {wanted}")
    result = run(program, folder, "--csv", "/dev/null/rows.csv")
    expect_code(result, 8)


def test_steps_that_trace_passes_only_have_phases_but_no_hops(program):
    output = program.path("passes")
    expect_code(program.run(*smoke(output, "--blocks", "2", "--trace-detail", "passes")), 0)
    found = report(program, output)
    step = found["step"]
    expect(step["block"] >= 0 and not step["hops"] and step["calls"], step)
    expect(any("passes only" in note for note in found["notes"]), found["notes"])
    for phase in step["phases"]:
        expect(phase["compute_s"]["max"] <= phase["total_s"]["max"], phase)
    verification = report(program, output, "--step", 1)["step"]
    expect(verification["block"] == -1 and verification["hops"], "the verification step traces layers")


def test_steps_without_a_trace_have_times_but_no_parts(program):
    folder, _ = make_run(program)
    for rank in range(2):
        with h5py.File(rank_file(folder, rank), "r+") as file:
            steps = file["steps"][:]
            steps["detail"][steps["block"] >= 0] = 2
            file["steps"][:] = steps
    found = report(program, folder)
    for v in found["variants"]:
        expect(v["median_s"] > 0 and v["ratio"], v)
        expect(v["compute_s"]["median"] is None and v["imbalance"] is None and v["slowest_rank"] is None, v)
    expect(any("--trace-detail off" in note for note in found["notes"]), found["notes"])
    expect_code(run(program, folder, "--html", program.path("off.html")), 0)


def test_a_damaged_summary_is_bad_input(program):
    folder, _ = make_run(program)
    for text in (b"{", b"[]", b'{"verdict": 3}', b'{"variants": {"a": 1}, "parity": 7}'):
        with h5py.File(folder / "run.h5", "r+") as file:
            del file["verdict/summary"]
            file["verdict/summary"] = np.bytes_(text)
        result = run(program, folder, "--html", program.path("page.html"))
        expect_code(result, 4)
        expect(len(result.err.splitlines()) == 1 and "summary" in result.err, result.err)


# Files that are not whole ---------------------------------------------------------------------------------------------

def test_an_unfinished_run_is_sent_to_recover_which_reports_it(program):
    folder, _ = make_run(program, finished=False)
    result = run(program, folder)
    expect_code(result, 4)
    expect("did not finish" in result.err and "cpstep-report recover" in result.err, result.err)
    result = run(program, "recover", folder)
    expect_code(result, 0)
    expect("ranks 0-1: 18 steps" in result.out and "2 of 2 shards" in result.out, result.out)
    expect("verdict: NOT FINISHED" in result.out, result.out)
    found = report(program, "recover", folder)
    finished, _ = make_run(program)
    whole = report(program, finished)
    for mine, its in zip(found["variants"], whole["variants"]):
        for key in ("median_s", "compute_s", "exposed_s", "idle_s"):
            expect(mine[key] == its[key], f"{key}: {mine[key]}, of the finished run {its[key]}")
    expect(found["variants"][1]["ratio"]["value"] == whole["variants"][1]["ratio"]["value"], "ratio")


KILLED_WRITER = """
import os, signal, sys, h5py
file = h5py.File(sys.argv[1], "r+", libver=("v110", "v110"))
file.swmr_mode = True
events = file["events"]
events.resize((len(events) + 3,))
events[-3:] = events[:3]
file.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_files_of_killed_writers_are_read_and_what_no_step_lists_is_counted(program):
    folder, _ = make_run(program, finished=False)
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(rank_file(folder, 1))], capture_output=True)
    expect(killed.returncode == -9, killed)
    result = run(program, "recover", folder)
    expect_code(result, 0)
    expect("rank 0: 18 steps" in result.out, result.out)
    expect("rank 1: 18 steps" in result.out and "3 events of an unfinished step" in result.out, result.out)


def test_missing_damaged_and_foreign_rank_files_are_named_and_the_others_reported(program):
    folder, _ = make_run(program, ranks=6)
    rank_file(folder, 1).unlink()
    with open(rank_file(folder, 2), "r+b") as file:
        file.truncate(3000)
    rank_file(folder, 4).write_bytes(b"")
    with h5py.File(rank_file(folder, 5), "r+") as file:
        file.attrs["run_id"] = np.bytes_(b"another")
    result = run(program, folder)
    expect_code(result, 4)
    problems = [line for line in result.out.splitlines() if line.startswith("problem: ")]
    for text in ("rank00002.h5: cannot open", "rank00004.h5: the file is empty", "rank00005.h5: of another run (another)",
                 "no file of rank 1-2, 4-5"):
        expect(sum(text in line for line in problems) == 1, f"{text}: {problems}")
    expect("cp6" in result.out and "PASS" in result.out, result.out)
    shutil.rmtree(folder / "ranks")
    result = run(program, folder)
    expect_code(result, 4)
    expect("no rank file can be read" in result.err and not result.out, result)


def test_damage_inside_a_file_ends_with_one_line(program):
    folder, _ = make_run(program)
    with h5py.File(rank_file(folder, 0), "r+") as file:
        steps = file["steps"][:]
        steps["variant"][3] = 77
        file["steps"][:] = steps
    result = run(program, folder)
    expect_code(result, 4)
    expect("step 3 names row 77 of /names" in result.out, result.out)
    folder, _ = make_run(program)
    for rank in range(2):
        with h5py.File(rank_file(folder, rank), "r+") as file:
            events = file["events"][:]
            events["name"] = 1000
            file["events"][:] = events
    result = run(program, folder)
    expect_code(result, 4)
    expect(len(result.err.splitlines()) == 1 and "is damaged" in result.err, result.err)
    with h5py.File(folder / "run.h5", "r+") as file:
        file.attrs["format_version"] = 2
    result = run(program, folder)
    expect_code(result, 4)
    expect("written by a newer tool" in result.err, result.err)


# Two runs -------------------------------------------------------------------------------------------------------------

def test_a_run_equals_itself_and_a_changed_value_is_found(program):
    folder, _ = make_run(program)
    result = run(program, "diff", folder, folder)
    expect_code(result, 0)
    expect("verdict: EQUAL" in result.out, result.out)
    other = program.path("changed")
    shutil.copytree(folder, other)
    with h5py.File(other / "run.h5", "r+") as file:
        before = file["variants/cp2/log_probs"][17]
        file["variants/cp2/log_probs"][17] = before + 0.125
        largest = abs(file["variants/cp1/log_probs"][:]).max()
    found = report(program, "diff", folder, other, code=5)
    tensors = {(v["a"], t["name"]): t for v in found["variants"] for t in v["tensors"]}
    worst = tensors["cp2", "log_probs"]
    expect((worst["where"], worst["b"]) == ("[17]", before + 0.125) and abs(worst["max_abs"] - 0.125) < 1e-15, worst)
    expect(abs(worst["judged"] / (0.125 / largest) - 1) < 1e-3 and worst["max_ulp"] > 1000, worst)
    expect(all(t["max_abs"] == 0 for key, t in tensors.items() if key != ("cp2", "log_probs")), "others differ")
    expect_code(run(program, "diff", folder, other, "--variant", "cp1"), 0)
    expect_code(run(program, "diff", folder, other, "--tolerance", "1"), 0)
    with h5py.File(other / "run.h5", "r+") as file:
        file["variants/cp2/entropy"][5] = np.nan
    result = run(program, "diff", folder, other)
    expect_code(result, 9)
    expect("entropy: NaN or Inf at [5]" in result.out, result.out)
    with h5py.File(other / "run.h5", "r+") as file:
        del file["variants/cp1/entropy"]
    result = run(program, "diff", folder, other, "--variant", "cp1")
    expect_code(result, 5)
    expect("entropy: only in A" in result.out, result.out)


def test_two_variants_of_a_run_are_compared_in_value_and_time(program):
    folder, templates = make_run(program, blocks=8)
    found = report(program, "diff", folder, folder, "--variant", "cp1", "--variant", "cp2")
    ratio = found["variants"][0]["ratio"]
    expect(ratio["paired"] and abs(ratio["value"] / (templates["cp2"].at / templates["cp1"].at) - 1) < 0.01, ratio)
    whole = report(program, folder)
    expect(close(whole["variants"][1]["ratio"]["value"], ratio["value"]), "the ratio of the report")
    gate = ["diff", folder, folder, "--variant", "cp1", "--variant", "cp2", "--gate-ratio"]
    expect_code(run(program, *gate, 10), 0)
    expect_code(run(program, *gate, 1.01), 6)
    expect_code(run(program, *gate, ratio["value"]), 10)
    result = run(program, "diff", folder, folder, "--variant", "cp9")
    expect_code(result, 2)
    expect("no variant cp9; it has cp1, cp2" in result.err, result.err)


def test_two_runs_are_compared_phase_by_phase(program):
    output, _, summary = smoke_run(program)
    made, _ = make_run(program)
    found = report(program, "diff", output, output)
    for v, s in zip(found["variants"], summary["variants"]):
        expect({p["name"]: p["a_s"] for p in v["phases"]} == s["timing"]["rank0_phases_s"], v["phases"])
    other = program.path("copy")
    shutil.copytree(made, other)
    ratio = report(program, "diff", made, other)["variants"][0]["ratio"]
    expect(ratio["value"] == 1 and ratio["low"] <= 1 <= ratio["high"] and not ratio["paired"], ratio)


def test_files_of_expected_values_are_compared_as_a_whole(program):
    golden = program.source / "tests/golden/expected.h5"
    expect_code(run(program, "diff", golden, golden), 0)
    other = program.path("expected.h5")
    shutil.copy(golden, other)
    with h5py.File(other, "r+") as file:
        gradient = file["cases/grpo_dual_clip_per_token/gradients/model.norm.weight"]
        gradient[0] *= 1.5
    result = run(program, "diff", golden, other)
    expect_code(result, 5)
    expect("gradients/model.norm.weight" in result.out and "[0] DIFFERS" in result.out, result.out)


# At a terminal --------------------------------------------------------------------------------------------------------

def test_help_fits_a_screen_and_a_misspelt_option_names_the_nearest(program):
    for command in ([], ["recover"], ["diff"], ["export"]):
        result = run(program, *command, "--help")
        expect_code(result, 0)
        lines = result.out.splitlines()
        expect(len(lines) <= 24 and max(map(len, lines)) <= 80, f"{len(lines)} lines, {max(map(len, lines))} columns")
    for line, text in ((["--jsn", "x"], "did you mean '--json'?"), ([], "usage: cpstep-report DIR"),
                       (["diff", "x"], "usage: cpstep-report diff A B"), (["x", "--step", "one"], "step"),
                       (["x", "--csv", "--json"], "'--csv' needs a value"),
                       (["diff", "a", "b", "--tolerance", "-1"], "not a positive number")):
        result = run(program, *line)
        expect_code(result, 2)
        expect(text in result.err and len(result.err.splitlines()) == 1, result.err)
    result = run(program, "/no/such/folder")
    expect_code(result, 4)
    expect("/no/such/folder: no such folder" in result.err, result.err)


def terminal_output(line, env):
    parent, child = pty.openpty()
    process = subprocess.Popen([str(word) for word in line], stdout=child, env=env)
    os.close(child)
    out = b""
    try:
        while chunk := os.read(parent, 4096):
            out += chunk
    except OSError:
        pass  # the other end is closed
    process.wait()
    return out.decode()


def test_colours_are_for_terminals_that_want_them(program):
    folder, _ = make_run(program)
    line = [program.cpstep.with_name("cpstep-report"), folder]
    env = {k: v for k, v in program.environment({"TERM": "xterm"}).items() if k != "NO_COLOR"}
    expect("\033[32mPASS" in terminal_output(line, env), "no colour at a terminal")
    for more in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        expect("\033" not in terminal_output(line, {**env, **more}), more)
    expect("\033" not in run(program, folder).out, "colour in a pipe")


if __name__ == "__main__":
    main(dict(globals()))
