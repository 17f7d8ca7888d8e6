#!/usr/bin/env python3
"""Wrong inputs as a user meets them: one line on stderr with the place and the way out, the exit code of the class
of fault, no result file, nothing existing touched.

usage: bad_input.py CPSTEP MPIEXEC SOURCE_DIR [TEST ...]
"""
import os
import time

import numpy as np

from e2e import (SMALL_BYTES, check_refusal, expect, expect_code, main, make_rollout, refused, smoke, snapshot,
                 summary_of, write_rollout)

# Ranks, grids and folders ---------------------------------------------------------------------------------------------

def mpmd(program, first, second):
    parts = [program.line(["run", *smoke(program.folder / "mpmd", *more)], 0) for more in (first, second)]
    line = [program.mpiexec, "-np", "1", *parts[0], ":", "-np", "1", *parts[1]]
    return program.execute(line)


def test_ranks_with_different_settings_are_told_which_and_where(program):
    result = mpmd(program, ["--lr", "1e-6"], ["--lr", "2e-6"])
    check_refusal(result, program.folder / "mpmd", 2, ["lr: 1e-06 on rank 0; 2e-06 on rank 1"])
    result = mpmd(program, ["--lr", "1e-6", "--seed", "1"], ["--lr", "2e-6", "--seed", "2"])
    check_refusal(result, program.folder / "mpmd", 2, ["lr: 1e-06 on rank 0", "seed: 1 on rank 0; 2 on rank 1"])


def test_a_mistake_of_one_rank_ends_all_and_names_the_rank(program):
    result = mpmd(program, [], ["--use-tiss"])
    check_refusal(result, program.folder / "mpmd", 2, ["rank 1", "'--use-tiss'", "did you mean '--use-tis'"])


def test_a_world_that_cp_does_not_divide_states_what_is_allowed(program):
    refused(program, 2, ["context parallel size 2", "3 ranks", "1, 3"], "--context-parallel-size", "2", ranks=3)


def test_cp_above_the_world_states_what_is_allowed(program):
    refused(program, 2, ["context parallel size 8", "2 ranks", "1, 2"], "--context-parallel-size", "8")


def test_one_rank_without_launcher_is_given_the_line_to_use(program):
    for ranks in (0, 1):
        refused(program, 2, ["mpirun -np 2", "srun -n 2"], "--context-parallel-size", "1,2", ranks=ranks)


def test_a_finished_run_is_kept_unless_forced(program):
    output = program.path()
    expect_code(program.run(*smoke(output)), 0)
    before = snapshot(output)
    result = program.run(*smoke(output))
    expect_code(result, 2)
    expect(len(result.said) == 1 and str(output) in result.err and "--force" in result.err, result)
    expect(snapshot(output) == before, "the finished run was changed")
    # A forced run whose input is bad has not begun: the old results stay.
    expect_code(program.run(*smoke(output, "--force", "--hf-checkpoint", "inputs/qwen2.5-0.5b")), 4)
    expect(snapshot(output) == before, "a forced run with bad input removed the old results")
    expect_code(program.run(*smoke(output, "--force")), 0)
    after = snapshot(output)
    expect(after.keys() == before.keys() and after["run.h5"] != before["run.h5"], "--force did not replace")
    expect(summary_of(output)["config"]["force"] == "true", "the summary is that of the old run")


def wait_for(condition, process, what):
    end = time.monotonic() + 60
    while not condition():
        expect(process.poll() is None and time.monotonic() < end, f"the run ended, or a minute passed, without {what}")
        time.sleep(0.02)


def test_a_folder_in_use_is_refused_and_its_run_goes_on(program):
    """The first run is longer than the test and is ended when its files are still written after the refusals."""
    output = program.path()
    first = program.start(program.line(["run", *smoke(output, "--blocks", "2000")]))
    files = [output / f"ranks/000/rank{rank:05}.h5" for rank in range(2)]
    try:
        wait_for(lambda: all(file.exists() for file in files), first, "rank files")
        for more in ([], ["--force"]):
            check_refusal(program.run(*smoke(output, *more)), output, 2, ["in use", str(output), "--output"])
        before = [file.stat().st_mtime_ns for file in files]
        wait_for(lambda: all(f.stat().st_mtime_ns > t for f, t in zip(files, before)), first, "further steps")
    finally:
        first.terminate()  # the launcher ends its ranks
        first.communicate()


def test_of_two_runs_started_at_once_one_has_the_folder(program):
    output = program.path()
    line = program.line(["run", *smoke(output, "--blocks", "10")])
    results = [program.finish(process) for process in [program.start(line), program.start(line)]]
    expect(sorted(r.code for r in results) == [0, 2], "\n".join(map(str, results)))
    expect(summary_of(output)["verdict"] == "pass", "the result is not that of a whole run")


# Prompts --------------------------------------------------------------------------------------------------------------

GOOD = '{"messages": [{"role": "user", "content": "hello"}]}'


def prompt_file(program, *lines, end=b"\n"):
    file = program.path("prompts.jsonl")
    file.write_bytes(end.join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return file


def test_a_bad_prompt_line_is_refused_with_line_and_column(program):
    cases = [
        ('{"messages": [}', "2:15:", "syntax"), ('{"messages": 5}', "2:1:", "messages"),
        ('{"text": "a"}', "2:1:", "text"),
        ("[1, 2]", "2:1:", "object"), ('{"messages": []}', "2:1:", "empty"),
        ('{"messages": [{"role": "user"}]}', "2:1:", "content"),
        ('{"messages": [{"role": "user", "content": 3}]}', "2:1:", "string"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "2:", ""),
        (b'{"messages": [{"role": "user", "content": "a\0b"}]}', "2:", ""),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "2:", ""),
        ('{"messages": "a", "messages": "b"}', "2:", "messages"),
        ('{"messages": ' + "[" * 5000, "2:", ""),
    ]
    for line, place, text in cases:
        file = prompt_file(program, GOOD, line, GOOD)
        refused(program, 4, [f"{file}:{place}", text], "--prompt-data", file, "--global-batch-size", "0",
                ranks=0)
    refused(program, 4, [f"{file}:2:"], "--prompt-data", file, "--global-batch-size", "0")


def test_a_line_of_a_hundred_megabytes_is_not_held(program):
    file = prompt_file(program, GOOD, '{"messages": "' + "a" * 100_000_000 + '"}')
    output = program.path()
    result = program.alone(*smoke(output, "--prompt-data", file, "--dry-run", "--context-parallel-size", "1",
                                  "--global-batch-size", "0"))
    check_refusal(result, output, 4, [f"{file}:2:", "MiB"])
    expect(result.peak_bytes < SMALL_BYTES, f"peak {result.peak_bytes >> 20} MiB")
    file.unlink()


def test_files_without_prompts_are_refused(program):
    for file in (prompt_file(program), prompt_file(program, "", "  ", "")):
        refused(program, 4, [file, "no prompts"], "--prompt-data", file)
    refused(program, 4, ["no/such.jsonl"], "--prompt-data", "no/such.jsonl")
    refused(program, 4, ["inputs", "folder"], "--prompt-data", "inputs")
    bad = prompt_file(program, "x", "y")
    refused(program, 4, [bad, "2 bad lines"], "--prompt-data", bad, "--skip-bad", "--global-batch-size", "0")


def test_line_ends_and_marks_of_other_systems_are_accepted(program):
    plain = prompt_file(program, GOOD, GOOD, b"")
    files = [plain, prompt_file(program, GOOD, GOOD), prompt_file(program, GOOD, GOOD, b"", end=b"\r\n"),
             prompt_file(program, b"\xef\xbb\xbf" + GOOD.encode(), GOOD, b""), prompt_file(program, GOOD, b"", GOOD)]
    batches = []
    for file in files:
        result = program.run(*smoke(program.path(), "--prompt-data", file, "--global-batch-size", "0", "--dry-run"),
                             ranks=0)
        expect_code(result, 0)
        batches.append([line for line in result.out.splitlines() if line.startswith("model:")])
    expect(batches[0] and "4 samples" in batches[0][0], batches[0])
    expect(all(batch == batches[0] for batch in batches), batches)


def test_skipped_prompt_lines_are_counted_in_the_summary(program):
    file = prompt_file(program, GOOD, "bad", GOOD, '{"messages": 5}', "[]", GOOD, GOOD)
    output = program.path()
    result = program.run(*smoke(output, "--prompt-data", file, "--global-batch-size", "8", "--skip-bad"))
    expect_code(result, 0)
    notes = [note for note in summary_of(output)["notes"] if "bad lines" in note]
    expect(len(notes) == 1 and "3" in notes[0].split() and str(file) in notes[0], summary_of(output)["notes"])
    expect(f"note: {notes[0]}" in result.out, "the table has no such note")


# Recorded samples -----------------------------------------------------------------------------------------------------

def replay(output, file, *more):
    return ["--hf-checkpoint", "inputs/tiny", "--rollout-file", file, "--advantage-estimator", "gspo", "--blocks", "0",
            "--context-parallel-size", "1,2", "--output", output, "--quiet", *more]


def refused_rollout(program, change, *texts):
    rollout = make_rollout()
    rollout["old_log_probs"] = np.full(len(rollout["loss_mask"]), -5, np.float32)
    change(rollout)
    file, output = program.path("rollout.h5"), program.path()
    write_rollout(file, rollout)
    before = file.read_bytes()
    result = program.run(*replay(output, file))
    check_refusal(result, output, 4, [file, *texts])
    expect(file.read_bytes() == before, "the rollout file was changed")


def test_tokens_outside_the_vocabulary_name_file_and_sample(program):
    def token(sample, value):
        def change(rollout):
            rollout["tokens"][rollout["token_offsets"][sample]] = value
        return change
    refused_rollout(program, token(2, 384), "sample 2", "384")
    refused_rollout(program, token(1, -1), "sample 1", "-1")


def test_a_response_without_a_prompt_names_file_and_sample(program):
    def change(rollout):
        offsets = rollout["token_offsets"]
        cut = int(offsets[2] - offsets[1] - (rollout["response_offsets"][2] - rollout["response_offsets"][1]))
        rollout["tokens"] = np.delete(rollout["tokens"], np.arange(offsets[1], offsets[1] + cut))
        offsets[2:] -= cut
    refused_rollout(program, change, "sample 1", "prompt")


def test_masks_without_a_token_name_the_file(program):
    refused_rollout(program, lambda rollout: rollout["loss_mask"].fill(0), "loss_mask", "masked")


def test_recorded_numbers_that_are_not_finite_name_file_and_sample(program):
    def change(rollout):
        rollout["old_log_probs"][rollout["response_offsets"][3]] = np.nan
    refused_rollout(program, change, "old_log_probs", "sample 3", "nan")


def test_one_masked_sample_is_no_division_by_zero(program):
    rollout = make_rollout()
    rollout["loss_mask"][:rollout["response_offsets"][1]] = 0
    file, output = program.path("rollout.h5"), program.path()
    write_rollout(file, rollout)
    expect_code(program.run(*replay(output, file)), 0)
    metrics = summary_of(output)["variants"][0]["metrics"]
    expect(all(value is not None for value in metrics.values()), metrics)


def test_files_that_are_no_rollouts_are_refused(program):
    for content in (b"", b"not hdf5" * 100):
        file, output = program.path("rollout.h5"), program.path()
        file.write_bytes(content)
        check_refusal(program.run(*replay(output, file)), output, 4, [file])
    refused_rollout(program, lambda rollout: rollout.pop("tokens"), "tokens")
    refused_rollout(program, lambda rollout: rollout.update(rewards=rollout["rewards"][:-1]), "rewards")
    good = program.path("rollout.h5")
    write_rollout(good, make_rollout())
    cut = program.path("rollout.h5")
    cut.write_bytes(good.read_bytes()[:-200])
    output = program.path()
    check_refusal(program.run(*replay(output, cut)), output, 4, [cut])


# Settings -------------------------------------------------------------------------------------------------------------

def ini(program, text):
    file = program.path("settings.ini")
    file.write_text(text)
    return file


def test_mistakes_of_the_ini_carry_file_line_and_the_nearest_key(program):
    cases = [("lr = 1e-6\nlrr = 2\n", "2: unknown key 'lrr'; did you mean 'lr'?"),
             ("seed = 1\n\nseed = 2\n", "3: 'seed' is already set in line 1"), ("\nblocks = 1e30\n", "2: blocks:"),
             ("comm-timeout = 5ms\n", "1: comm-timeout:"), ("", "1: the file holds no settings"),
             ("config = other.ini\n", "1: an ini file cannot name another"), ("[run]\nlr = 1\n", "1: sections")]
    for text, place in cases:
        file = ini(program, text)
        output = program.path()
        result = program.run("--config", file, "--output", output, "--hf-checkpoint", "inputs/tiny",
                             "--prompt-data", "inputs/prompts.jsonl")
        check_refusal(result, output, 2, [f"{file}:{place}"])


def test_command_line_beats_environment_beats_file_beats_default(program):
    file = ini(program, "hf-checkpoint = inputs/tiny\nprompt-data = inputs/prompts.jsonl\ninput-key = messages\n"
                        "lr = 3e-6\nseed = 5\nblocks = 7\n")
    result = program.run("--config", file, "--lr", "1e-5", "--dry-run", "--context-parallel-size", "2",
                         "--output", program.path(), ranks=0, env={"CPSTEP_LR": "2e-5", "CPSTEP_SEED": "6"})
    expect_code(result, 0)
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in result.out.splitlines() if line.strip()}
    for name, row in {"lr": "1e-05 command line", "seed": "6 CPSTEP_SEED", "blocks": f"7 {file}:6",
                      "warmup-steps": "2 default"}.items():
        expect(rows.get(name) == row, f"{name}: {rows.get(name)}, expected {row}")


def test_an_unknown_variable_of_the_environment_is_refused(program):
    refused(program, 2, ["CPSTEP_USE_TISS", "'CPSTEP_USE_TIS'"], env={"CPSTEP_USE_TISS": "1"})


def test_an_output_that_cannot_be_written_is_an_environment_error(program):
    file = program.path("a-file")
    file.write_text("mine")
    result = program.run(*smoke(file / "out"))
    check_refusal(result, None, 3, [file, "output"])
    expect(file.read_text() == "mine", "the file was changed")
    if os.geteuid() != 0:  # root may write anywhere
        folder = program.path("locked")
        folder.mkdir(mode=0o555)
        check_refusal(program.run(*smoke(folder)), folder, 3, [folder, "--output"])


if __name__ == "__main__":
    main(dict(globals()))
