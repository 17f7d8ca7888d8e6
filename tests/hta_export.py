#!/usr/bin/env python3
"""HolisticTraceAnalysis reads our export and finds our numbers: compute, exposed communication, overlap.

usage: hta_export.py CPSTEP MPIEXEC SOURCE_DIR [TEST ...]
Runs where the package is (pip install HolisticTraceAnalysis, into the interpreter of HTA_PYTHON); skipped elsewhere.
"""
import json
import os
import subprocess
import sys

import h5py

from e2e import expect, expect_code, main, smoke, smoke_run
from offline_report import make_run, rank_file, run

PYTHON = os.environ.get("HTA_PYTHON", sys.executable)
ASK = """
import json, logging, sys
logging.disable(logging.WARNING)
from hta.trace_analysis import TraceAnalysis
trace = TraceAnalysis(trace_dir=sys.argv[1], include_last_profiler_step=True)
times = trace.get_temporal_breakdown(visualize=False)
overlap = trace.get_comm_comp_overlap(visualize=False)
print("ANSWER", json.dumps([times.to_dict("list"), overlap.to_dict("list")]))
"""
AGREE = 0.01


def ask_hta(folder):
    env = {**os.environ, "HTA_DISABLE_NS_ROUNDING": "1"}
    answer = subprocess.run([PYTHON, "-c", ASK, str(folder)], capture_output=True, text=True, env=env)
    lines = [line for line in answer.stdout.splitlines() if line.startswith("ANSWER ")]
    expect(lines, answer.stdout[-2000:] + answer.stderr[-2000:])
    return json.loads(lines[0][len("ANSWER "):])


def near(found, wanted, what):
    expect(abs(found - wanted) <= AGREE * abs(wanted), f"{what}: HTA {found}, ours {wanted}")


def check(program, folder, step=None):
    output = program.path("hta")
    expect_code(run(program, "export", folder, "--format", "hta", "--output", output,
                    *(() if step is None else ("--step", step))), 0)
    times, overlap = ask_hta(output)
    for i, rank in enumerate(times["rank"]):
        with h5py.File(rank_file(folder, rank)) as file:
            steps = [s for s in file["steps"][:] if step is None or s["step"] == step]
        total = {key: sum(int(s[key]) for s in steps) for key in ("compute_ns", "comm_ns", "exposed_ns")}
        near(times["compute_time(us)"][i], total["compute_ns"] * 1e-3, f"rank {rank} compute")
        near(times["non_compute_time(us)"][i], total["exposed_ns"] * 1e-3, f"rank {rank} exposed")
        hidden = 100 * (1 - total["exposed_ns"] / total["comm_ns"])
        near(overlap["comp_comm_overlap_pctg"][overlap["rank"].index(rank)], hidden, f"rank {rank} overlap")


def test_a_real_run_gives_the_same_compute_exposed_and_overlap(program):
    output, _, _ = smoke_run(program)
    check(program, output)
    check(program, output, step=1)


def test_steps_of_passes_give_the_same_where_waits_are_cut_out(program):
    output = program.path("passes")
    expect_code(program.run(*smoke(output, "--blocks", "2", "--trace-detail", "passes")), 0)
    check(program, output)


def test_a_made_up_run_gives_the_same_compute_exposed_and_overlap(program):
    folder, _ = make_run(program, ranks=4, events=2000)
    check(program, folder)


if __name__ == "__main__":
    if subprocess.run([PYTHON, "-c", "import hta"], capture_output=True).returncode != 0:
        print("SKIPPED: HolisticTraceAnalysis is not installed for", PYTHON)
        sys.exit(0)
    main(dict(globals()))
