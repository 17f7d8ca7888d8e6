#!/usr/bin/env python3
"""The program as a user runs it: exit codes, the printed table, summary.json, grids, recorded samples.

usage: cli.py CPSTEP MPIEXEC SOURCE_DIR [TEST ...]
"""
import collections
import re
import shutil

import h5py
import numpy as np

from e2e import Safetensors, expect, expect_code, main, make_rollout, smoke, smoke_run, snapshot, summary_of, write_rollout

LAUNCH_LINE = (
    "--train-backend fsdp --actor-num-nodes 1 --actor-num-gpus-per-node 2 --colocate --hf-checkpoint inputs/tiny "
    "--ref-load inputs/tiny-ref --prompt-data inputs/prompts.jsonl --input-key messages --apply-chat-template "
    "--rollout-shuffle --rollout-num 1 --rollout-batch-size 2 --n-samples-per-prompt 1 --rollout-max-response-len 64 "
    "--global-batch-size 8 --advantage-estimator gspo --use-kl-loss --kl-loss-coef 0.00 --kl-loss-type low_var_kl "
    "--entropy-coef 0.00 --optimizer adam --lr 1e-6 --lr-decay-style constant --weight-decay 0.1 --adam-beta1 0.9 "
    "--adam-beta2 0.98 --tensor-model-parallel-size 1 --sequence-parallel --pipeline-model-parallel-size 1 "
    "--context-parallel-size 2 --use-dynamic-batch-size --max-tokens-per-gpu 2048 --rollout-num-gpus-per-engine 1 "
    "--ci-test --ci-disable-kl-checker").split()
NOT_APPLICABLE = ("train-backend", "actor-num-nodes", "actor-num-gpus-per-node", "colocate", "rollout-num",
                  "rollout-num-gpus-per-engine", "ci-test", "ci-disable-kl-checker")

SHARP = 60  # bounds grow some thirty times

# The verdict, the table and summary.json ------------------------------------------------------------------------------

def section(text, first):
    """Rows of the table's block that begins with `first`."""
    rows = text[text.index("\n" + first) + 1:].split("\n\n")[0].splitlines()
    return rows[1:]


def test_the_smoke_run_passes_and_its_table_agrees_with_the_summary(program):
    output, result, summary = smoke_run(program)
    expect((summary["verdict"], summary["exit_code"]) == ("pass", 0), summary["verdict"])
    expect(f"verdict: PASS (exit 0): {summary['reason']}" in result.out, result.out[-300:])
    expect(f"signal: {summary['signal']['reason']}" in result.out and summary["signal"]["present"], summary["signal"])
    expect(str(output) in result.out.splitlines()[-1], result.out.splitlines()[-1])
    for note in summary["notes"]:
        expect(f"note: {note}" in result.out, note)
    expect([(v["name"], v["dp"], v["cp"]) for v in summary["variants"]] == [("cp1", 2, 1), ("cp2", 1, 2)], "variants")
    for v in summary["variants"]:
        how = "" if v["cp"] == 1 else f" ({v['cp_comm_type']}, {v['cp_layout']}, {v['cp_loss_comm']})"
        line = (f"{v['name']}: DP {v['dp']} x CP {v['cp']}{how}, {v['micro_batches']} micro-batches a rank, "
                f"loss {v['metrics']['loss']:.7g}, grad_norm {v['metrics']['grad_norm']:.7g}")
        expect(line in result.out, f"{line} is not in the table")


def test_every_parity_row_is_the_worst_check_of_the_summary(program):
    _, result, summary = smoke_run(program)
    for variant, first in (("cp1", "cp1 alone"), ("cp2", "cp2 against cp1")):
        groups = collections.defaultdict(list)
        for check in summary["parity"]:
            if check["variant"] == variant:
                name = check["check"]
                groups[name.split()[0] if name.startswith(("gradient ", "updated ")) else name].append(check)
        rows = section(result.out, first)[1:]
        expect(len(rows) == len(groups), f"{len(rows)} rows, {len(groups)} checks")
        for row, (name, checks) in zip(rows, groups.items()):
            worst = max(checks, key=lambda check: check["measured"])
            title = f"{name} ({len(checks)})" if len(checks) > 1 else name
            start = f"  {title:<17} {worst['measured']:>10.2e} {worst['bound']:>10.2e}  {worst['unit']}"
            expect(row.startswith(start) and " ok " in row + " ", f"{row!r}, expected {start!r}")
            expect(all(c["pass"] and c["measured"] <= c["bound"] for c in checks), name)
        expect(variant == "cp1" or len(groups["gradient"]) == len(groups["updated"]) == 26, "every tensor is checked")


def test_the_timing_table_agrees_with_the_summary(program):
    _, result, summary = smoke_run(program)
    rows = section(result.out, "timing ")
    expect(len(rows) >= 2, rows)
    for v, row in zip(summary["variants"], rows):
        t = v["timing"]
        fields = row.split()
        numbers = [f"{t[key] * 1e3:.2f}" for key in ("median_s", "mad_s", "min_s", "max_s", "exposed_comm_s")]
        expect(fields[:7] == [v["name"], str(t["steps"]), *numbers], f"{row!r}, expected {numbers}")
        expect(t["steps"] == 6 and t["blocks"] == 3 and fields[-1] == t["gate"] == "off", t)
        expect(t["ratio_low"] <= t["ratio"] <= t["ratio_high"], t)
        if v["cp"] > 1:
            expect(f"{t['ratio']:.3f} ({t['ratio_low']:.3f} .. {t['ratio_high']:.3f})" in row, row)
    expect(summary["reproducible"] is True, "the loss of equal steps differs")


def test_the_ledger_table_agrees_with_the_summary_and_the_budget(program):
    _, result, summary = smoke_run(program)
    rows = [row.split() for row in section(result.out, "ledger label ")]
    expected = []
    for v in summary["variants"]:
        expect(v["ledger_faults"] == [], v["ledger_faults"])
        for label, e in v["ledger"].items():
            expected.append([v["name"], label, e["op"], *(str(e[k]) for k in ("calls", "bytes", "budget_calls",
                                                                               "budget_bytes"))])
            expect((e["calls"], e["bytes"]) == (e["budget_calls"], e["budget_bytes"]), label)
    expect(sorted(rows) == sorted(expected), f"{rows}\n{expected}")
    expect({"cp.kv", "cp.kv.backward", "cp.dkv", "grad"} <= set(summary["variants"][1]["ledger"]), "ring labels")


def test_the_default_smoke_run_holds_the_old_loss_path_against_the_scalar_one(program):
    output = program.path()
    result = program.run("--config", "inputs/smoke.ini", "--output", output, "--quiet")
    expect_code(result, 0)
    expect(result.seconds < 180, f"took {result.seconds:.0f} s")
    summary = summary_of(output)
    names = [v["name"] for v in summary["variants"]]
    expect(names == ["cp1", "cp2-gather", "cp2-scalar"], names)
    for key in ("by_time", "by_bytes"):
        expect(sorted(r[key] for r in summary["ranking"]) == [1, 2, 3], summary["ranking"])
    (saving,) = summary["loss_savings"]
    expect((saving["old"], saving["new"]) == ("cp2-gather", "cp2-scalar"), saving)
    expect("FSDP" in saving["trainer"] and f"old path of {saving['trainer']}: cp2-gather" in result.out, saving)
    # Two micro-batches: a gather in each of three passes and its backward against one sum of scalars.
    expect((saving["old_loss_calls_a_rank"], saving["new_loss_calls_a_rank"]) == (8, 2), saving)
    expect(saving["old_loss_bytes_a_rank"] > 100 * saving["new_loss_bytes_a_rank"], saving)
    expect(saving["step_ratio_low"] <= saving["step_ratio_new_to_old"] <= saving["step_ratio_high"], saving)


def test_many_variants_take_a_line_each(program):
    output = program.path()
    result = program.run(*smoke(output, "--cp-loss-comm", "gather,padded,scalar", "--cp-layout", "zigzag,contiguous"))
    expect_code(result, 0)
    variants = summary_of(output)["variants"]
    expect(len(variants) == 7, len(variants))
    for v in variants:
        expect(f"\n{v['name']}: " in result.out and " checks pass" in result.out, v["name"])
    expect("against cp1" not in result.out, "no table of a variant that passes")


def test_progress_is_a_line_a_step_and_none_when_quiet(program):
    _, result, _ = smoke_run(program)
    memory, *lines = result.said
    expect(memory.startswith("cpstep: memory of a rank, at most: "), memory)
    expect(len(lines) == 2 + 2 * (2 + 2 * 3), f"{len(lines)} lines for 18 steps")
    for i, line in enumerate(lines):
        expect(re.match(rf"cpstep: \[{i + 1}/{len(lines)}\] cp[12] ", line), line)
        expect(bool(re.search(r", \d+ s left$", line)) == (i >= 2), f"timed steps say what is left: {line}")
    expect(lines[-1].endswith(", 0 s left"), lines[-1])
    quiet = program.run(*smoke(program.path()))
    expect_code(quiet, 0)
    expect(quiet.err.strip() == "", f"--quiet said {quiet.err}")


def test_a_run_without_signal_is_inconclusive_and_says_why(program):
    output = program.path()
    result = program.run("--config", "inputs/vacuous.ini", "--output", output, "--blocks", "3")
    expect_code(result, 10)
    summary = summary_of(output)
    expect(summary["verdict"] == "inconclusive" and not summary["signal"]["present"], summary["verdict"])
    for text in ("one sample per prompt", "KL loss coefficient is 0", "entropy coefficient is 0"):
        expect(text in summary["reason"] and text in result.out, f"'{text}' is missing: {summary['reason']}")
    expect(all(v["metrics"]["grad_norm"] == 0 for v in summary["variants"]), "grad_norm")
    expect("timing" not in summary["variants"][0], "a step without signal was timed")
    expect(any("timing was skipped" in note for note in summary["notes"]), summary["notes"])


def sharp_checkpoint(program, scale):
    """The tiny model with K biases of size `scale`, as trained Qwen2 models have: scores far above 1."""
    folder = program.path("sharp")
    shutil.copytree(program.source / "inputs/tiny", folder)
    tensors = Safetensors(folder / "model.safetensors").tensors()
    for name, entry in tensors.items():
        if name.endswith("k_proj.bias"):
            biases = np.random.default_rng(1).normal(0, scale, entry[1]).astype("<f4")
            entry[0], entry[2] = "F32", biases.tobytes()
    (folder / "model.safetensors").write_bytes(Safetensors.pack(tensors))
    return folder


def test_bounds_grow_with_the_rounding_that_a_sharp_model_amplifies(program):
    output = program.path()
    result = program.run(*smoke(output, "--hf-checkpoint", sharp_checkpoint(program, SHARP)))
    expect_code(result, 0)
    notes = [note for note in summary_of(output)["notes"] if note.startswith("this model amplifies rounding")]
    expect(len(notes) == 1 and notes[0] in result.out, summary_of(output)["notes"])


def test_a_model_too_sharp_for_float32_is_inconclusive(program):
    output = program.path()
    expect_code(program.run(*smoke(output, "--hf-checkpoint", sharp_checkpoint(program, 50 * SHARP))), 10)
    expect("float32 cannot tell" in summary_of(output)["reason"], summary_of(output)["reason"])


def test_the_gate_passes_and_fails(program):
    for gate, code, name in (("1000", 0, "pass"), ("0.001", 6, "FAIL")):
        output = program.path()
        result = program.run(*smoke(output, "--blocks", "3", "--gate-ratio", gate))
        expect_code(result, code)
        summary = summary_of(output)
        expect(summary["exit_code"] == code and summary["gate_ratio"] == float(gate), summary["exit_code"])
        expect(summary["variants"][1]["timing"]["gate"] == name, summary["variants"][1]["timing"])
        with h5py.File(output / "run.h5", "r") as run:
            expect(run["verdict"].attrs["exit_code"] == code, "the verdict of run.h5 differs")


def test_steps_without_a_trace_are_timed_and_say_nothing_of_what_was_in_them(program):
    output = program.path()
    result = program.run("--config", "inputs/smoke.ini", "--blocks", "3", "--trace-detail", "off", "--output", output)
    expect_code(result, 0)
    for v, row in zip(summary_of(output)["variants"], section(result.out, "timing ")):
        expect(row.split()[6] == "-", row)
        expect(v["timing"]["exposed_comm_s"] is None and v["timing"]["rank0_phases_s"] == {}, v["timing"])
    expect("nan" not in result.out, result.out)


def test_a_variant_without_a_trace_stands_beside_its_traced_twin(program):
    output = program.path()
    variants = ("--variant", "traced", "--variant", "plain:trace-detail=off")
    expect_code(program.run(*smoke(output, "--blocks", "2", *variants)), 0)
    timing = {v["name"]: v["timing"] for v in summary_of(output)["variants"]}
    expect(timing["traced"]["exposed_comm_s"] is not None and timing["cp1"]["rank0_phases_s"] != {}, timing)
    expect(timing["plain"]["exposed_comm_s"] is None and timing["plain"]["rank0_phases_s"] == {}, timing["plain"])


# The command line -----------------------------------------------------------------------------------------------------

def test_the_trainers_launch_line_runs_and_is_found_vacuous(program):
    output = program.path()
    result = program.run(*LAUNCH_LINE, "--output", output)
    expect_code(result, 10)
    summary = summary_of(output)
    expect("one sample per prompt" in summary["reason"], summary["reason"])
    for name in NOT_APPLICABLE:
        note = next((note for note in summary["notes"] if note.startswith(f"not applicable: --{name}")), None)
        expect(note and f"note: {note}" in result.out, f"--{name}: {summary['notes']}")


def test_a_dry_run_of_the_launch_line_lists_what_is_not_applicable(program):
    result = program.run(*LAUNCH_LINE, "--output", program.path(), "--dry-run", ranks=0)
    expect_code(result, 0)
    text = result.out[result.out.lower().index("not applicable"):]
    for name in NOT_APPLICABLE:
        expect(f"--{name}" in text, f"--{name} is not listed:\n{text}")
    expect("--lr" not in text.split("model:")[0], "an option in use is listed as not applicable")


def test_a_dry_run_needs_no_launcher_and_makes_nothing(program):
    here = program.path("empty")
    here.mkdir()
    source = program.source
    result = program.run("--hf-checkpoint", source / "inputs/tiny", "--prompt-data", source / "inputs/prompts.jsonl",
                         "--input-key", "messages", "--context-parallel-size", "1,2", "--output", "new/folder",
                         "--global-batch-size", "8", "--seed", "5", "--dry-run", ranks=0, cwd=here)
    expect_code(result, 0)
    expect(snapshot(here) == {}, "the dry run made files")
    for pattern in (r"(?m)^seed +5 +command line$", r"(?m)^blocks +5 +default$", r"cp1: 2 ranks as DP 2 x CP 1",
                    r"cp2: 2 ranks as DP 1 x CP 2", r"DP rank 1, ranks 1\.\.1: .*\{[0-9,]+\} = \d+ tokens",
                    r"memory of a rank, at most: [\d.]+ [KMG]iB", r"disk, at most: [\d.]+ [KMG]iB in new/folder"):
        expect(re.search(pattern, result.out), f"{pattern} is not in\n{result.out}")
    dealt = [int(i) for line in re.findall(r"cp2: .*\n(.*)\n", result.out) for g in re.findall(r"\{([\d,]+)\}", line)
             for i in g.split(",")]
    expect(sorted(dealt) == list(range(8)), f"samples {dealt}")


def test_a_dry_run_shows_named_variants_and_plans_for_their_size(program):
    result = program.run(*smoke(program.path(), "--variant", "ring:context-parallel-size=4,cp-comm-type=p2p", "--variant",
                                "half:context-parallel-size=2", "--dry-run"), ranks=0)
    expect_code(result, 0)
    for pattern in (r"(?m)^variant +ring:context-parallel-size=4,cp-comm-type=p2p;half:context-parallel-size=2 +command",
                    r"(?m)^cp-comm-type +p2p +default$", r"(?m)^cp-loss-comm +scalar +command line$",
                    r"(?m)^cp-layout +zigzag +default$", r"(?m)^hierarchical-context-parallel-sizes +- +default$",
                    r"cp1: 4 ranks as DP 4 x CP 1", r"ring: 4 ranks as DP 1 x CP 4", r"half: 4 ranks as DP 2 x CP 2"):
        expect(re.search(pattern, result.out), f"{pattern} is not in\n{result.out}")


def test_named_variants_run_and_are_recorded(program):
    output = program.path()
    expect_code(program.run(*smoke(output, "--blocks", "0"), env={"CPSTEP_VARIANT": "a;b:context-parallel-size=2"}), 0)
    names = [(v["name"], v["cp"]) for v in summary_of(output)["variants"]]
    expect(names == [("cp1", 1), ("a", 2), ("b", 2)], names)
    with h5py.File(output / "run.h5", "r") as run:
        names = ("variant", "cp-comm-type", "cp-loss-comm", "cp-layout")
        config = [run["config"].attrs[name].decode() for name in names]
    expect(config == ["a;b:context-parallel-size=2", "p2p", "scalar", "zigzag"], config)


def test_a_method_that_cannot_share_the_heads_stops_before_anything_is_made(program):
    output = program.path()
    result = program.run(*smoke(output, "--cp-comm-type", "a2a+p2p"))
    expect_code(result, 2)
    expect(len(result.said) == 1 and "variant cp2: a2a+p2p needs a CP size of two factors" in result.err, result)
    expect(not output.exists(), "a folder was made")


def test_cuda_without_a_device_says_why_and_auto_computes_on_the_host(program):
    output, no_gpu = program.path(), {"CUDA_VISIBLE_DEVICES": ""}
    result = program.run(*smoke(output, "--device", "cuda"), env=no_gpu)
    expect_code(result, 3)
    expect(len(result.said) == 1 and "--device cuda: no CUDA device can be used: " in result.err, result)
    expect("--device cpu" in result.err and not output.exists(), result)
    result = program.run(*smoke(output, "--precision", "bf16"), env=no_gpu)
    expect_code(result, 2)
    expect(len(result.said) == 1 and "--precision bf16 needs a GPU (none here: " in result.err, result)
    result = program.run(*smoke(output, "--device", "auto", "--blocks", "0"), env=no_gpu)
    expect_code(result, 0)
    summary = summary_of(output)
    expect((summary["precision"], summary["reference"]) == ("fp32", None), summary["precision"])
    expect("host backend: step times say nothing about a GPU" in summary["notes"], summary["notes"])
    expect("\nprecision: fp32" in result.out, result.out)


def test_a_misspelt_option_stops_with_the_nearest_name(program):
    output = program.path()
    result = program.run(*smoke(output, "--use-tiss"))
    expect_code(result, 2)
    expect(len(result.said) == 1 and "'--use-tiss'" in result.err and "did you mean '--use-tis'" in result.err, result)
    expect(not output.exists(), "a folder was made")


def test_help_fits_a_screen_and_version_and_unknown_commands_answer(program):
    result = program.execute([program.cpstep, "run", "--help"])
    lines = result.out.splitlines()
    expect(result.code == 0 and 10 < len(lines) <= 60 and max(map(len, lines)) <= 100, result)
    version = program.execute([program.cpstep, "--version"])
    expect(version.code == 0 and re.fullmatch(r"cpstep \d+\.\d+\.\d+.*\n", version.out), version)
    for line in ([program.cpstep, "--help"], [program.cpstep, "help"]):
        usage = program.execute(line)
        expect(usage.code == 0 and usage.out.startswith("usage: cpstep run") and not usage.err, usage)
    for line, texts in (([program.cpstep, "rum"], ["cpstep: unknown command 'rum'", "usage:"]),
                        ([program.cpstep], ["usage:"])):
        wrong = program.execute(line)
        expect(wrong.code == 2 and not wrong.out and all(text in wrong.err for text in texts), wrong)


# Determinism, grids, recorded samples ---------------------------------------------------------------------------------

def values_of(output, variant, *names):
    with h5py.File(output / "run.h5", "r") as run:
        return [run["variants"][variant][name][:] for name in names]


def test_equal_seeds_give_equal_bits_and_other_seeds_other_samples(program):
    outputs = [smoke_run(program)[0], program.path(), program.path()]
    expect_code(program.run(*smoke(outputs[1])), 0)
    expect_code(program.run(*smoke(outputs[2], "--seed", "99")), 0)
    for variant in ("cp1", "cp2"):
        first, again, other = (values_of(o, variant, "log_probs", "ref_log_probs", "entropy") for o in outputs)
        for a, b in zip(first, again):
            expect(len(a) > 0 and a.tobytes() == b.tobytes(), f"{variant}: two runs differ")
        expect(first[0].tobytes() != other[0].tobytes(), "the seed has no effect")


def test_more_ranks_and_groups_of_four_and_three_agree(program):
    results = []
    for world, sizes in ((4, "1,2,4"), (3, "1,3")):
        output = program.path()
        expect_code(program.run(*smoke(output, "--context-parallel-size", sizes), ranks=world), 0)
        summary = summary_of(output)
        grids = [(v["name"], v["dp"], v["cp"]) for v in summary["variants"]]
        expect(grids == [(f"cp{n}", world // int(n), int(n)) for n in sizes.split(",")], grids)
        results += [values_of(output, name, "log_probs")[0] for name, _, _ in grids]
    for result in results:  # the samples do not depend on the layout, so neither do their values
        expect(np.abs(result - results[0]).max() < 2e-4, "log-probs depend on the grid")


def test_recorded_samples_are_replayed_with_their_own_log_probs(program):
    """Without --ref-load the reference values are the file's, and the sequence KL is taken to the file's old ones."""
    rollout, file, outputs = make_rollout(), program.path("rollout.h5"), [program.path(), program.path()]
    arguments = ["--hf-checkpoint", "inputs/tiny", "--rollout-file", file, "--advantage-estimator", "gspo", "--quiet",
                 "--use-kl-loss", "--kl-loss-coef", "0.01", "--blocks", "0", "--context-parallel-size", "1,2",
                 "--micro-batch-size", "2"]
    write_rollout(file, rollout)
    expect_code(program.run(*arguments, "--output", outputs[0]), 0)
    now, = values_of(outputs[0], "cp1", "log_probs")
    noise = np.random.default_rng(3)
    rollout["old_log_probs"] = (now + noise.normal(0, 0.05, len(now))).astype(np.float32)
    rollout["ref_log_probs"] = (now + noise.normal(0, 0.05, len(now))).astype(np.float32)
    write_rollout(file, rollout)
    expect_code(program.run(*arguments, "--output", outputs[1]), 0)
    mask, ends = rollout["loss_mask"].astype(float), rollout["response_offsets"]
    for variant in ("cp1", "cp2"):
        log_probs, ref, seq_kl = values_of(outputs[1], variant, "log_probs", "ref_log_probs", "seq_kl")
        expect((ref.astype(np.float32) == rollout["ref_log_probs"]).all(), f"{variant}: not the file's reference")
        expect(np.abs(log_probs - now).max() < 2e-4, "the policy's values depend on the recorded ones")
        difference = mask * (rollout["old_log_probs"] - log_probs)
        want = [difference[a:b].sum() / mask[a:b].sum() for a, b in zip(ends, ends[1:])]
        expect(np.abs(seq_kl - want).max() < 1e-5, f"{variant}: sequence KL {seq_kl}, expected {want}")
    labels = set(summary_of(outputs[1])["variants"][1]["ledger"])
    with h5py.File(outputs[1] / "ranks/000/rank00000.h5", "r") as f:
        names = {name.decode() for name in f["names"][:]}
    expect("loss.seq_kl" in labels and not names & {"ref_forward", "old_forward"}, f"no extra passes: {names}")


if __name__ == "__main__":
    main(dict(globals()))
