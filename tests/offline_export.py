#!/usr/bin/env python3
"""What cpstep-report writes for viewers: the Perfetto file, HTA's folder, the HTML page.

usage: offline_export.py CPSTEP MPIEXEC SOURCE_DIR [TEST ...]
"""
import html.parser
import json

import h5py
import numpy as np

from e2e import expect, expect_code, main, smoke_run
from offline_report import make_run, rank_file, run
from run_output import COMM, COMPUTE

# Exports --------------------------------------------------------------------------------------------------------------

def slices_of(program, folder):
    """Slices of the perfetto export by (process, track), and the names of processes."""
    file = program.path("trace.json")
    expect_code(run(program, "export", folder, "--format", "perfetto", "--output", file), 0)
    slices, names = {}, {}
    for event in json.loads(file.read_text())["traceEvents"]:
        if event["ph"] == "X":
            slices.setdefault((event["pid"], event["tid"]), []).append(event)
        elif event["name"] == "process_name":
            names[event["pid"]] = event["args"]["name"]
    return slices, names


def expect_nested(slices):
    rounding = 2e-3
    for track, found in slices.items():
        ends = []
        for event in sorted(found, key=lambda e: (e["ts"], -e["dur"])):
            while ends and ends[-1] <= event["ts"] + rounding:
                ends.pop()
            end = event["ts"] + event["dur"]
            expect(not ends or end <= ends[-1] + rounding, f"track {track}: {event} crosses a border")
            ends.append(end)


def test_the_perfetto_file_holds_every_event_on_tracks_that_nest(program):
    output, _, _ = smoke_run(program)
    slices, names = slices_of(program, output)
    expect(len(names) == 2 and names[1].startswith("rank 1 ("), names)
    for rank in range(2):
        with h5py.File(rank_file(output, rank)) as ranks:
            events, table = ranks["events"][:], [n.decode() for n in ranks["names"][:]]
        own = [e for track, found in slices.items() if track[0] == rank for e in found]
        expect(len(own) == len(events), f"rank {rank}: {len(own)} slices, {len(events)} events")
        comm = sorted((e["ts"], e["dur"], e["name"], e["args"]["bytes"]) for e in own if e["cat"] == "comm")
        wanted = sorted((int(e["t0_ns"]), int(e["dur_ns"]), table[e["name"]], int(e["bytes"]))
                        for e in events[events["kind"] == COMM])
        for found, event in zip(comm, wanted):
            expect(abs(found[0] - event[0] * 1e-3) < 2e-3 and abs(found[1] - event[1] * 1e-3) < 2e-3, found)
            expect(found[2:] == event[2:], f"{found}, expected {event}")
    expect_nested(slices)


def test_calls_that_overlap_are_on_tracks_of_their_own(program):
    folder, _ = make_run(program)
    with h5py.File(rank_file(folder, 0), "r+") as file:
        events, names = file["events"][:], list(file["names"][:])
        events["dur_ns"][(events["kind"] == COMM) & (events["name"] == names.index(b"cp.kv"))] *= 4  # into the next
        file["events"][:] = events
    slices, _ = slices_of(program, folder)
    expect_nested(slices)
    expect({track for rank, track in slices if rank == 0} >= {0, 1, 2}, sorted(slices))
    expect({track for rank, track in slices if rank == 1} == {0, 1}, sorted(slices))


def test_an_export_names_what_is_wrong_with_its_arguments(program):
    folder, _ = make_run(program)
    for line, code, text in ((["--format", "svg", "--output", "x"], 2, "perfetto or hta, not 'svg'"),
                             (["--format", "hta"], 2, "--output"),
                             (["--format", "hta", "--output", "/dev/null/x"], 8, "cannot make this folder"),
                             (["--format", "perfetto", "--output", "/dev/null/x"], 8, "/dev/null/x"),
                             (["--format", "perfetto", "--output", "x", "--step", "99"], 2, "no step 99")):
        result = run(program, "export", folder, *line)
        expect_code(result, code)
        expect(text in result.err and len(result.err.splitlines()) == 1, result.err)
    output = program.path("one")
    expect_code(run(program, "export", folder, "--format", "hta", "--output", output, "--step", "3"), 0)
    kernels = [e for e in json.loads((output / "rank00001.json").read_text())["traceEvents"] if e["cat"] == "kernel"]
    with h5py.File(rank_file(folder, 1)) as ranks:
        events = ranks["events"][:]
    own = events[(events["step"] == 3) & ((events["kind"] == COMM) | (events["kind"] == COMPUTE))]
    expect(len(kernels) == len(own), f"{len(kernels)} kernels, {len(own)} events")


# The page -------------------------------------------------------------------------------------------------------------

def test_the_page_is_whole_in_itself_at_one_rank_and_at_many(program):
    real, _, _ = smoke_run(program)
    for folder in (real, make_run(program, ranks=1)[0], make_run(program, ranks=300, events=200)[0]):
        file = program.path("page.html")
        expect_code(run(program, folder, "--html", file), 0)
        page = file.read_text()
        for word in ("<script", "http:", "https:", "src=", "@import", "url(", ">nan<", ">inf<"):
            expect(word not in page.lower(), f"{word} in the page of {folder}")
        expect("prefers-color-scheme:dark" in page and len(page) < 2 << 20, f"{len(page)} bytes")
        parser = Balance()
        parser.feed(page)
        expect(not parser.open and not parser.faults, f"{parser.open} {parser.faults}")
        for title in ("Step time", "What a step is made of", "Ranks and steps", "Validity", "Numbers"):
            expect(f"<h2>{title}</h2>" in page, title)
    labels = page.count(">rank ") - page.count(">rank 299 in ")  # of timelines and rows of the heat map
    expect(labels == 32 + 16, f"{labels} labels of ranks")
    folder, _ = make_run(program, finished=False)
    expect_code(run(program, "recover", folder, "--html", file), 0)
    expect("NOT FINISHED" in file.read_text(), "verdict")


def test_the_page_escapes_what_it_did_not_write(program):
    folder, _ = make_run(program)
    with h5py.File(folder / "run.h5", "r+") as file:
        summary = json.loads(file["verdict/summary"][()])
        del file["verdict/summary"]
        summary["reason"] = "<script>alert(1)</script> & \"more\""
        file["verdict/summary"] = np.bytes_(json.dumps(summary).encode())
    page = program.path("page.html")
    expect_code(run(program, folder, "--html", page), 0)
    expect("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;more&quot;" in page.read_text(), "not escaped")


class Balance(html.parser.HTMLParser):
    """Every tag that opens is closed."""
    def __init__(self):
        super().__init__()
        self.open, self.faults = [], []

    def handle_starttag(self, tag, attrs):
        self.open += [] if tag == "meta" else [tag]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_startendtag(self, tag, attrs):
        pass


if __name__ == "__main__":
    main(dict(globals()))
