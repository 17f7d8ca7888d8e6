#!/usr/bin/env python3
"""jobs/cpstep_files.py and plot_run.py on runs that ended, that were killed, and on what is no run.

usage: python_files.py CPSTEP MPIEXEC SOURCE_DIR [TEST ...]
"""
import shutil
import sys
import warnings

import h5py
import numpy as np

from e2e import expect, expect_code, main, smoke, smoke_run
from run_output import killed_run, uncovered_ns

KINDS = ("step", "pass", "compute", "comm", "wait")


def raises(text, function, *arguments):
    try:
        function(*arguments)
    except files.CpstepFileError as error:
        expect(str(text) in str(error) and "\n" not in str(error), f"'{text}' is missing: {error}")
        return
    raise AssertionError(f"no error that says '{text}'")


def rank_files(output, ranks=2):
    return [h5py.File(output / f"ranks/000/rank{rank:05}.h5", "r") for rank in range(ranks)]


def test_events_are_those_of_the_rank_files_with_names_for_numbers(program):
    output, _, _ = smoke_run(program)
    events = files.load_events(output)
    expect(list(events.columns) == ["rank", "step", "variant", "kind", "stream", "t0_ns", "dur_ns", "bytes", "peer", "name"],
           events.columns)
    raw = rank_files(output)
    expect(len({int(file.attrs["epoch_unix_ns"]) for file in raw}) == 1, "the ranks' files have one epoch")
    for rank, file in enumerate(raw):
        table, own = file["events"][:], events[events["rank"] == rank]
        names = [name.decode() for name in file["names"][:]]
        expect(len(table) == len(own), f"{len(own)} of {len(table)} events")
        for column in ("step", "stream", "t0_ns", "dur_ns", "bytes", "peer"):
            expect((own[column].to_numpy() == table[column]).all(), column)
        expect(list(own.name) == [names[n] for n in table["name"]], "names")
        expect(list(own.kind) == [KINDS[k] for k in table["kind"]], "kinds")
        steps = {s["step"]: names[s["variant"]] for s in file["steps"][:]}
        expect(list(own.variant) == [steps[s] for s in table["step"]], "variants")
    expect(len(files.load_events(output, [1])) == len(raw[1]["events"]), "one rank alone")
    # A call of all ranks ends on each after the last one posted it: clocks on one host agree.
    calls = events[(events.kind == "comm") & (events.name == "grad")]
    begin = calls.groupby(["step", "rank"]).t0_ns.min().unstack().max(axis=1)
    end = (calls.t0_ns + calls.dur_ns).groupby([calls.step, calls["rank"]]).max().unstack().min(axis=1)
    expect(len(begin) and (end > begin - 10**6).all(), f"time lines disagree: {(begin - end).max()} ns")


def test_steps_of_a_finished_run_are_its_warm_up_and_timed_steps(program):
    output, _, summary = smoke_run(program)
    steps = files.load_steps(output)
    with h5py.File(output / "run.h5", "r") as run:
        for name in ("block", "seconds", "exposed_comm", "loss"):
            expect((steps[name].to_numpy() == run["steps"][name][:]).all(), name)
        expect(list(steps.variant) == [v.decode() for v in run["steps/variant"][:]], "variants")
    timed = steps[steps.block >= 0].groupby("variant").seconds.median()
    for variant in summary["variants"]:
        expect(abs(timed[variant["name"]] - variant["timing"]["median_s"]) < 1e-12, f"median of {variant['name']}")
    durations = files.load_events(output)
    durations = durations[durations.kind == "step"].groupby("step").dur_ns.max() * 1e-9
    slack = durations.reindex(steps.step).to_numpy() - steps.seconds
    expect((abs(slack) < 5e-3).all(), f"numbers of steps: {slack.abs().max()}")


def test_the_breakdown_adds_up_and_its_exposed_communication_is_the_sweeps(program):
    output, _, _ = smoke_run(program)
    parts = files.load_breakdown(output)
    for rank, file in enumerate(rank_files(output)):
        events = file["events"][:]
        for _, row in parts[parts["rank"] == rank].iterrows():
            own = uncovered_ns(events[events["step"] == row.step])
            expect(abs(own * 1e-9 - row.exposed_comm) < 1e-12, f"rank {rank} step {row.step}")
    total = parts.compute + parts.exposed_comm + parts.other
    expect(np.allclose(total, parts.seconds, rtol=0, atol=1e-9) and (parts.other > -1e-9).all(), "parts of a step")
    expect((parts.exposed_comm <= parts.comm).all() and (parts.comm > 0).all(), "communication")
    worst = parts.groupby("step").exposed_comm.max()
    steps = files.load_steps(output)
    expect(np.allclose(worst.reindex(steps.step), steps.exposed_comm, rtol=0, atol=1e-12), "as in run.h5")


def test_a_trace_of_passes_or_of_nothing_has_a_breakdown_too(program):
    for detail in ("passes", "off"):
        output = program.path()
        expect_code(program.run(*smoke(output, "--blocks", "1", "--trace-detail", detail)), 0)
        steps, parts = files.load_steps(output), files.load_breakdown(output)
        timed = steps[steps.block >= 0]
        worst = parts.groupby("step").exposed_comm.max().reindex(timed.step)
        if detail == "off":
            expect(worst.isna().all() and timed.exposed_comm.isna().all(), worst)
        else:
            expect(np.allclose(worst, timed.exposed_comm, rtol=0, atol=1e-12), f"{worst} {timed.exposed_comm}")
            expect((parts.compute > 0).all(), "compute")


def test_tensors_have_the_names_and_shapes_of_the_file(program):
    output = program.path()
    expect_code(program.run(*smoke(output, "--save", "gradients,weights")), 0)
    tensors = files.load_tensors(output, "cp2")
    with h5py.File(output / "run.h5", "r") as run:
        group = run["variants/cp2"]
        for name in ("log_probs", "entropy", "seq_kl", "gradients/model.embed_tokens.weight", "updated/model.norm.weight"):
            expect((tensors[name] == group[name][()]).all() and tensors[name].shape == group[name].shape, name)
        expect(sum(name.startswith("updated/") for name in tensors) == len(group["updated"]), "number of weights")
    raises("no variant 'cp3'; there are: cp1, cp2", files.load_tensors, output, "cp3")


def test_a_killed_run_gives_its_finished_steps(program):
    whole, _, _ = smoke_run(program)
    output = program.path("killed")
    killed_run(program, output, slice(0, 2))
    steps = files.load_steps(output)
    expect(len(steps) >= 4 and list(steps.step) == list(range(len(steps))), steps)
    expect(steps.block.isna().all() and steps.loss.isna().all() and (steps.seconds > 0).all(), steps)
    expect((steps.exposed_comm > 0).all() and (steps.exposed_comm < steps.seconds).all(), steps)
    events = files.load_events(output)
    expect(set(steps.step) <= set(events.step) and set(events["rank"]) == {0, 1}, "events")
    tensors, known = files.load_tensors(output, "cp1"), files.load_tensors(whole, "cp1")
    for name in ("log_probs", "ref_log_probs", "entropy"):
        expect((tensors[name] == known[name].astype(np.float32)).all(), f"{name} of a killed run")
    raises("no variant 'cp3'; there are: cp1, cp2", files.load_tensors, output, "cp3")
    (output / "ranks/000/rank00001.h5").unlink()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        expect(set(files.load_events(output)["rank"]) == {0}, "rank 0 alone")
    expect(any("no file of rank 1" in str(w.message) for w in seen), [str(w.message) for w in seen])


def test_events_of_a_step_that_was_cut_off_are_left_out(program):
    output, _, _ = smoke_run(program)
    cut = program.path("cut")
    shutil.copytree(output / "ranks", cut / "ranks")
    with h5py.File(cut / "ranks/000/rank00001.h5", "r+") as file:  # killed between its events and its row of /steps
        last = int(file["steps"]["step"][-1])
        file["steps"].resize((len(file["steps"]) - 1,))
    events = files.load_events(cut)
    expect(events.groupby("rank").step.max().to_dict() == {0: last, 1: last - 1}, "events")
    expect(files.load_steps(cut).step.iloc[-1] == last - 1, "a step that only rank 0 finished is no step")


def test_what_is_no_run_is_named(program):
    output, _, _ = smoke_run(program)
    raises("no such folder", files.load_events, program.path())
    empty = program.path()
    empty.mkdir()
    raises("holds neither run.h5 nor rank files", files.load_steps, empty)
    raises("no rank 5; the run had 2", files.load_events, output, [5])
    copy = program.path()
    shutil.copytree(output, copy)
    second = copy / "ranks/000/rank00001.h5"
    whole = second.read_bytes()
    second.write_bytes(whole[:1000])
    raises("rank00001.h5: not readable", files.load_events, copy)
    second.unlink()
    raises("rank00001.h5: missing; the run had 2 ranks", files.load_events, copy)
    shutil.copy(copy / "run.h5", second)
    raises("format 'cpstep-run' version 1, expected 'cpstep-trace'", files.load_events, copy)
    second.write_bytes(whole)
    with h5py.File(second, "r+") as file:
        file.attrs["run_id"] = np.bytes_("another")
    raises("of another run", files.load_events, copy)
    with h5py.File(copy / "run.h5", "r+") as run:
        run.attrs["format_version"] = 2
    raises("version 2", files.load_steps, copy)


def test_three_pictures_are_drawn(program):
    try:
        import matplotlib.image
    except ImportError:
        print("SKIPPED: no matplotlib here")
        return
    output, _, _ = smoke_run(program)
    script = str(program.source / "jobs/plot_run.py")
    result = program.execute([sys.executable, script, str(output)])
    expect_code(result, 0)
    unfinished = program.path()
    shutil.copytree(output / "ranks", unfinished / "ranks")
    expect_code(program.execute([sys.executable, script, str(unfinished), "--step", "3", "--ranks", "1"]), 0)
    for folder in (output, unfinished):
        for name in ("steps", "breakdown", "timeline"):
            picture = matplotlib.image.imread(folder / f"plots/{name}.png")
            colours = len(np.unique((picture[..., :3] * 255).astype(np.uint8).reshape(-1, 3), axis=0))
            expect(picture.shape[0] > 200 and colours > 20, f"{name}: {picture.shape}, {colours} colours")
    for arguments, text in (([str(program.path())], "no such folder"), ([str(output), "--step", "999"], "no traced step 999")):
        result = program.execute([sys.executable, script, *arguments])
        expect_code(result, 4)
        expect(text in result.err and len(result.err.splitlines()) == 1, result)


if __name__ == "__main__":
    try:
        import pandas  # noqa: F401
    except ImportError:
        print("SKIPPED: no pandas here")
        sys.exit(0)
    sys.path.insert(0, f"{sys.argv[3]}/jobs")
    import cpstep_files as files
    main(dict(globals()))
