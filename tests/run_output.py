#!/usr/bin/env python3
"""What a run leaves on disk: run.h5, the rank files with their spans, and the files of a run that was killed.

usage: run_output.py CPSTEP MPIEXEC SOURCE_DIR [TEST ...]
"""
import collections
import os
import pathlib
import shutil
import signal
import time

import h5py
import numpy as np

from e2e import Safetensors, check_refusal, expect, expect_code, main, smoke, smoke_run, summary_of

STEP, PASS, COMPUTE, COMM, WAIT = range(5)
LAYERS = 2  # of inputs/tiny


# run.h5 ---------------------------------------------------------------------------------------------------------------

def test_run_h5_has_the_documented_names_sizes_and_units(program):
    output, _, summary = smoke_run(program)
    with h5py.File(output / "run.h5", "r") as run:
        expect({"config", "environment", "topology", "clock", "steps", "events", "event_count", "ledger", "verdict",
                "variants"} <= set(run), sorted(run))
        expect(run.attrs["format"] == b"cpstep-run" and run.attrs["status"] == b"complete", dict(run.attrs))
        expect(set(run["variants"]) == set(run["ledger"]) == {"cp1", "cp2"}, list(run["variants"]))
        sizes = dict.fromkeys(("log_probs", "ref_log_probs", "entropy"), summary["run"]["response_tokens"])
        sizes.update(dict.fromkeys(("seq_kl", "advantages"), summary["run"]["samples"]))
        for v in summary["variants"]:
            group = run["variants"][v["name"]]
            expect(set(group) == set(sizes), f"{sorted(group)}: gradients and updated only when asked for")
            for name, size in sizes.items():
                expect(group[name].shape == (size,) and np.isfinite(group[name][:]).all(), f"{name} {group[name]}")
            expect({k: float(x) for k, x in group.attrs.items()} == v["metrics"], "metrics")
        missing = []
        run.visititems(lambda name, item: missing.append(name)
                       if isinstance(item, h5py.Dataset) and not item.attrs.get("units") else None)
        expect(not missing, f"no units: {missing}")
        expect(b"ns" in run["events"].attrs["units"], f"units of /events: {run['events'].attrs['units']}")
        expect(run["clock"].attrs["epoch_unix_ns"] > 1.6e18, "clock")
        expect(run["gpu_clock/lowest_sm_clock"].shape == (0,), "there is no GPU to watch")
        expect(len(run["topology/host"]) == len(run["topology/local_rank"]) == 2, "topology")
        expect(run["config"].attrs["eps-clip"] == b"0.01", "config")
        expect(run["config/origin"].attrs["eps-clip"] == b"inputs/smoke.ini:17", "origin")


def test_gradients_and_weights_are_saved_when_asked_for(program):
    output = program.path()
    expect_code(program.run(*smoke(output, "--save", "gradients,weights")), 0)
    tensors = Safetensors(program.source / "inputs/tiny/model.safetensors").tensors()
    with h5py.File(output / "run.h5", "r") as run:
        for variant in ("cp1", "cp2"):
            base = run["variants"][variant]
            norm = 0.0
            for name, (_, shape, content) in tensors.items():
                gradient, updated = base["gradients"][name], base["updated"][name]
                expect(list(gradient.shape) == list(updated.shape) == shape, f"{name} {gradient.shape}")
                expect(gradient.attrs["units"] and updated.attrs["units"], name)
                norm += float(np.sum(gradient[...].astype(np.float64) ** 2))
                before = (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
                # AdamW moves a weight by at most lr (1 + decay |w|) in its first step, and half an ulp of rounding.
                bound = 1e-6 * (1 + 0.01 * np.abs(before)) * 1.01 + np.abs(before) * 2.0**-24
                expect((np.abs(updated[...] - before) <= bound).all() and (updated[...] != before).any(), name)
            expect(abs(np.sqrt(norm) / base.attrs["grad_norm"] - 1) < 1e-5, "norm of the saved gradients")
            expect(set(base["gradients"]) == set(base["updated"]) == set(tensors), "names")


def test_virtual_events_are_those_of_the_rank_files_wherever_the_folder_is(program):
    output, _, _ = smoke_run(program)
    moved = program.path("moved")
    shutil.copytree(output, moved)
    for folder in (output, moved):
        with h5py.File(folder / "run.h5", "r") as run:
            count, events = run["event_count"][:], run["events"]
            expect(events.shape == (2, count.max()) and (count > 0).all(), f"{events.shape} {count}")
            for rank in range(2):
                with h5py.File(folder / f"ranks/000/rank{rank:05}.h5", "r") as file:
                    own = file["events"][:]
                    expect(len(own) == count[rank], f"rank {rank}: {len(own)} events, event_count {count[rank]}")
                    expect((events[rank, :count[rank]] == own).all(), f"rank {rank}: the virtual table differs")
                    expect(file.attrs["run_id"] == run.attrs["run_id"] and file.attrs["rank"] == rank, "run id")


def test_ranks_of_one_host_are_on_its_clock_to_within_the_bound_printed(program):
    output, result, summary = smoke_run(program)
    with h5py.File(output / "run.h5", "r") as run:
        clock = run["clock"]
        values = {name: clock[name][:] for name in clock}
        expect(set(values) == {"start_at", "start_offset", "start_bound", "end_at", "end_offset", "end_bound", "bound",
                               "drift"}, sorted(values))
        expect(all(v.shape == (2,) for v in values.values()), values)
        for when in ("start", "end"):  # both ranks read one clock: the true offset is 0
            offset, bound = values[when + "_offset"], values[when + "_bound"]
            expect((np.abs(offset) <= bound).all() and offset[0] == bound[0] == 0 < bound[1], f"{offset} {bound}")
        moved = np.abs(values["end_offset"] - values["start_offset"])
        expect((values["bound"] == np.maximum(values["start_bound"], values["end_bound"] + moved)).all(), values)
        pair = int(clock.attrs["pair_bound_ns"])
        expect(pair == values["bound"].sum() == summary["clock"]["pair_bound_ns"], pair)
    for rank, told in enumerate(summary["clock"]["ranks"]):
        expect((told["offset_ns"], told["bound_ns"]) == (values["start_offset"][rank], values["bound"][rank]), told)
    expect(f"\nclock bound: {pair / 1e3:.1f} us between any two ranks" in result.out, result.out[:600])
    epochs = []
    for rank in range(2):
        with h5py.File(output / f"ranks/000/rank{rank:05}.h5", "r") as file:
            epochs.append((int(file.attrs["epoch_ns"]), int(file.attrs["epoch_unix_ns"])))
    expect(abs(epochs[0][0] - epochs[1][0]) <= pair and epochs[0][1] == epochs[1][1], f"{epochs}, bound {pair}")


def test_calls_of_all_ranks_overlap_on_the_one_time_axis(program):
    """An all-reduce ends on no rank before it has begun on every one."""
    output, _, summary = smoke_run(program)
    with h5py.File(output / "ranks/000/rank00000.h5", "r") as file:
        name = [n.decode() for n in file["names"][:]].index("grad")
    with h5py.File(output / "run.h5", "r") as run:
        events = [run["events"][rank, :count] for rank, count in enumerate(run["event_count"][:])]
    calls = []
    for own in events:
        chosen = own[(own["kind"] == COMM) & (own["name"] == name)]
        calls.append((chosen["t0_ns"], chosen["t0_ns"] + chosen["dur_ns"]))
    begin, end = (np.array([c[i] for c in calls]) for i in range(2))
    expect(begin.shape == (2, 18), begin.shape)
    late = begin.max(axis=0) - end.min(axis=0)
    expect((late <= summary["clock"]["pair_bound_ns"]).all(), f"ended {late.max()} ns before a rank had begun")


def test_the_memory_plan_holds_and_is_close(program):
    output, result, summary = smoke_run(program)
    ranks = summary["memory"]["ranks"]
    expect(len(ranks) == 2 and all(0 < r["peak_bytes"] <= r["planned_bytes"] for r in ranks), ranks)
    expect(max(r["peak_bytes"] for r in ranks) >= 0.9 * ranks[0]["planned_bytes"], ranks)
    expect(sum(summary["memory"]["parts_bytes"].values()) == ranks[0]["planned_bytes"], summary["memory"])
    with h5py.File(output / "run.h5", "r") as run:
        peaks = run["memory/peak"][:].tolist()
    expect(peaks == [r["peak_bytes"] for r in ranks], peaks)
    expect("\nmemory          planned        peak  peak / plan\n" in result.out, result.out)


# Rank files -----------------------------------------------------------------------------------------------------------

def rank_steps(file):
    """[(variant, /steps row, events)] and names of a rank file."""
    names = [name.decode() for name in file["names"][:]]
    events = file["events"][:]
    return [(names[s["variant"]], s, events[events["step"] == s["step"]]) for s in file["steps"][:]], names


def smoke_steps(program):
    output, _, summary = smoke_run(program)
    ranks = []
    for rank in range(2):
        with h5py.File(output / f"ranks/000/rank{rank:05}.h5", "r") as file:
            ranks.append(rank_steps(file))
    return ranks, {v["name"]: v for v in summary["variants"]}


def test_every_pass_and_layer_is_a_span_of_every_step(program):
    ranks, variants = smoke_steps(program)
    for rank, (steps, names) in enumerate(ranks):
        expect(len(steps) == 18, f"{len(steps)} steps")
        for variant, step, events in steps:
            batches, cp = variants[variant]["micro_batches"], variants[variant]["cp"]
            count = collections.Counter((int(e["kind"]), names[e["name"]]) for e in events)
            expected = {(STEP, variant): 1, (PASS, "ref_forward"): 1, (PASS, "old_forward"): 1,
                        (COMPUTE, "old_noise"): 1, (PASS, "train_forward"): batches, (PASS, "loss"): batches,
                        (PASS, "backward"): batches, (PASS, "optimizer"): 1, (COMPUTE, "adamw"): 1,
                        (PASS, "layer.attention"): 3 * LAYERS * batches,
                        (PASS, "layer.attention.backward"): LAYERS * batches,
                        (COMPUTE, "attention.forward"): 3 * LAYERS * batches * cp,
                        (COMPUTE, "attention.backward"): LAYERS * batches * cp,
                        (COMPUTE, "layer.mlp"): 3 * LAYERS * batches, (COMPUTE, "lm_head"): 3 * batches}
            for key, number in expected.items():
                expect(count[key] == number, f"rank {rank} {variant} {key}: {count[key]}, expected {number}")
            expect(step["events"] == len(events), f"/steps says {step['events']}, {len(events)} found")
            begin, end = events["t0_ns"], events["t0_ns"] + events["dur_ns"]
            expect((events["dur_ns"] >= 0).all() and begin.min() >= step["t0_ns"]
                   and end.max() <= step["t0_ns"] + step["dur_ns"], "a span lies outside its step")


def test_every_call_is_a_span_with_the_numbers_of_the_ledger(program):
    ranks, variants = smoke_steps(program)
    totals = collections.defaultdict(lambda: collections.defaultdict(lambda: [0, 0]))  # step -> label -> calls, bytes
    for rank, (steps, names) in enumerate(ranks):
        for number, (variant, _, events) in enumerate(steps):
            comm, wait = events[events["kind"] == COMM], events[events["kind"] == WAIT]
            expect((comm["stream"] == 1).all() and (comm["bytes"] > 0).all(), "comm spans")
            expect((events[events["kind"] != COMM]["stream"] == 0).all(), "only communication is on stream 1")
            expect(collections.Counter(comm["name"]) == collections.Counter(wait["name"]), "a wait for each call")
            for event in comm:
                label = names[event["name"]]
                exchange = variants[variant]["ledger"][label]["op"] == "exchange"
                expect(event["peer"] == (1 - rank if exchange else -1), f"peer {event['peer']} of {label}")
                entry = totals[number, variant][label]
                entry[0] += 1
                entry[1] += int(event["bytes"])
    for (_, variant), labels in totals.items():
        ledger = {label: [e["calls"], e["bytes"]] for label, e in variants[variant]["ledger"].items()}
        expect(dict(labels) == ledger, f"{variant}: spans {dict(labels)}, ledger {ledger}")
    batches = variants["cp2"]["micro_batches"]
    expect(totals[1, "cp2"]["cp.kv"][0] == 2 * 3 * LAYERS * batches, "a hop a layer, pass and micro-batch on each rank")


def uncovered_ns(events):
    """Communication not under compute, by the sweep over all ends of intervals."""
    ends = []
    for kind, which in ((COMM, 0), (COMPUTE, 1)):
        for e in events[events["kind"] == kind]:
            ends += [(int(e["t0_ns"]), which, 1), (int(e["t0_ns"] + e["dur_ns"]), which, -1)]
    total, open_, before = 0, [0, 0], 0
    for at, which, change in sorted(ends):
        if open_[0] > 0 and open_[1] == 0:
            total += at - before
        open_[which] += change
        before = at
    return total


def test_exposed_communication_and_step_times_follow_from_the_spans(program):
    output, _, _ = smoke_run(program)
    ranks, _ = smoke_steps(program)
    with h5py.File(output / "run.h5", "r") as run:
        steps = {name: run["steps"][name][:] for name in ("variant", "block", "seconds", "exposed_comm")}
    first = len(ranks[0][0]) - len(steps["seconds"])  # the verification steps come before
    expect(first == 2 and list(steps["block"]) == [-1] * 4 + [b for b in range(3) for _ in range(4)], steps["block"])
    order = [name.decode() for name in steps["variant"][4:]]
    expect(order == ["cp1", "cp2", "cp2", "cp1"] * 3, f"blocks are not A B B A: {order}")
    for i, exposed in enumerate(steps["exposed_comm"]):
        own = [rank[0][first + i] for rank in ranks]
        expect(all(o[0] == steps["variant"][i].decode() for o in own), "order of variants")
        expect(abs(max(uncovered_ns(o[2]) for o in own) * 1e-9 - exposed) < 1e-9, f"step {i}: exposed {exposed}")
        # The step's span ends just after the clock of /steps is read.
        slack = max(int(o[1]["dur_ns"]) for o in own) * 1e-9 - steps["seconds"][i]
        expect(slack >= 0, f"step {i}: the span is shorter than the time by {-slack} s")


def test_shards_of_the_ranks_make_up_the_gathered_arrays(program):
    output, _, _ = smoke_run(program)
    with h5py.File(output / "run.h5", "r") as run:
        for variant in ("cp1", "cp2"):
            for name in ("log_probs", "ref_log_probs", "entropy"):
                whole = run["variants"][variant][name][:]
                parts = np.full(len(whole), np.nan)
                seen = 0
                for rank in range(2):
                    with h5py.File(output / f"ranks/000/rank{rank:05}.h5", "r") as file:
                        shard = file["tensors"][variant]
                        index = shard["response_index"][:]
                        parts[index] = shard[name][:]
                        seen += len(index)
                expect(seen == len(whole) and (parts == whole).all(), f"{variant}/{name}")


def children(pid):
    """Processes whose parent is `pid`: the fourth field of their stat, after the name in brackets."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return sorted(found)


def wait_for_steps(file, process, wanted):
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            with h5py.File(file, "r", swmr=True, libver="latest") as f:
                if len(f["steps"]) >= wanted:
                    return
        except (OSError, KeyError):
            pass  # not yet written
        time.sleep(0.05)
    raise AssertionError(f"{file} has no {wanted} steps; exit of the run: {process.poll()}")


def check_flushed(file):
    with h5py.File(file, "r", swmr=True, libver="latest") as f:
        steps, names = rank_steps(f)
        expect(len(steps) >= 4, f"{len(steps)} steps")
        for variant, step, events in steps:
            expect(variant in ("cp1", "cp2") and step["events"] == len(events), f"step {step}")
            expect(names[events[-1]["name"]] == variant and events[-1]["kind"] == STEP, "the step's own span")


def killed_run(program, output, which):
    """Starts a long run in `output`, kills the ranks `which` after some steps, and checks what is left."""
    files = [output / f"ranks/000/rank{rank:05}.h5" for rank in range(2)]
    process = program.start(program.line(["run", *smoke(output, "--blocks", "1000", "--comm-timeout", "20")]))
    try:
        for file in files:
            wait_for_steps(file, process, 4)
        ranks = children(process.pid)
        expect(len(ranks) == 2, f"processes {ranks}")
        for pid in ranks[which]:
            os.kill(pid, signal.SIGKILL)
        result = program.finish(process)
    finally:
        if process.poll() is None:
            process.terminate()  # the launcher ends its ranks
            process.communicate()
    expect(result.code != 0 and result.seconds < 40, result)
    unfinished = [name for name in ("run.h5", "summary.json") if (output / name).exists()]
    expect(not unfinished, f"an unfinished run has {unfinished}")
    for file in files:
        check_flushed(file)


def test_a_killed_run_leaves_its_flushed_steps_and_a_folder_to_use_again(program):
    """An ended process that its parent has not collected (a container without init) does not hold the folder."""
    for which in (slice(1, 2), slice(0, 2)):
        output = program.path()
        killed_run(program, output, which)
        expect_code(program.run(*smoke(output)), 0)
        expect(summary_of(output)["verdict"] == "pass" and not (output / ".lock").exists(), "the lock stayed")


def test_a_rank_whose_disk_is_full_ends_the_job_and_leaves_the_files_of_others(program):
    """The limit on the size of a file stands for the disk; rank 1 meets it after some steps."""
    output = program.path()
    cpstep = program.line(["run", *smoke(output, "--blocks", "1000")], 0)
    limited = ["bash", "-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "limited", *cpstep]
    result = program.execute([program.mpiexec, "-np", "1", *cpstep, ":", "-np", "1", *limited])
    check_refusal(result, output, 8, ["[rank 1/2 ", "rank00001.h5", "File too large"])
    check_flushed(output / "ranks/000/rank00000.h5")


if __name__ == "__main__":
    main(dict(globals()))
