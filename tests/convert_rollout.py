#!/usr/bin/env python3
"""jobs/convert_rollout.py: what a trainer dumps arrives in a rollout file and in a run; what is no data is refused.

usage: convert_rollout.py CPSTEP MPIEXEC SOURCE_DIR [TEST ...]
"""
import os
import pickle
import sys
import zipfile

import h5py
import numpy as np

from dump import Tensor, write_dump
from e2e import expect, expect_code, main, summary_of

VOCABULARY = 384  # of inputs/tiny


def samples_of(count=6, seed=5):
    """As slime's Sample.to_dict(): two samples a prompt, lists of plain numbers."""
    draw = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        prompt, response = int(draw.integers(5, 20)), int(draw.integers(3, 30))
        mask = None if i % 3 == 0 else [1] + [int(m) for m in draw.random(response - 1) > 0.2]
        samples.append({
            "group_index": 70 + i // 2, "index": i, "prompt": [{"role": "user", "content": "é"}],
            "tokens": [int(t) for t in draw.integers(0, VOCABULARY, prompt + response)], "multimodal_inputs": None,
            "response": "x", "response_length": response, "label": "4", "reward": float(i % 2), "loss_mask": mask,
            "weight_versions": ["1"], "rollout_log_probs": [float(x) for x in -draw.random(response) * 6],
            "remove_sample": False, "status": "completed", "metadata": {"tags": {"a"}, "raw": b"\x00\xff"},
            "session_id": None, "spec_info": {"spec_verify_ct": 0}})
    return samples


def convert(program, dump, *more):
    output = program.path("rollout.h5")
    line = [sys.executable, program.source / "jobs/convert_rollout.py", dump, output, *more]
    return program.execute([str(word) for word in line]), output


def dump_of(program, samples, **more):
    path = program.path("dump.pt")
    write_dump(path, {"rollout_id": 3, "samples": samples, **more})
    return path


def check_content(file, samples):
    with h5py.File(file, "r") as f:
        expect(f.attrs["format"] == "cpstep-rollout" and f.attrs["format_version"] == 1, dict(f.attrs))
        tokens, responses = f["token_offsets"][:], f["response_offsets"][:]
        expect(f["groups"][:].tolist() == [i // 2 for i in range(len(samples))], f["groups"][:])
        expect(f["rewards"][:].tolist() == [s["reward"] for s in samples], f["rewards"][:])
        for j, sample in enumerate(samples):
            own = slice(responses[j], responses[j + 1])
            expect(f["tokens"][tokens[j]:tokens[j + 1]].tolist() == sample["tokens"], f"tokens of {j}")
            mask = sample["loss_mask"] or [1] * sample["response_length"]
            mask = [0] * len(mask) if sample["remove_sample"] else mask
            expect(f["loss_mask"][own].tolist() == mask, f"mask of {j}")
            if "rollout_log_probs" in f:
                wanted = np.asarray(sample["rollout_log_probs"], np.float32)
                expect((f["rollout_log_probs"][own] == wanted).all(), f"log-probs of {j}")
        for name in f:
            expect("units" in f[name].attrs and f[name].fletcher32, name)


def refused(program, dump, *texts, code=4, arguments=()):
    result, output = convert(program, dump, *arguments)
    expect_code(result, code)
    expect(len(result.err.splitlines()) == 1, f"expected one line: {result}")
    for text in texts:
        expect(text in result.err, f"'{text}' is missing: {result.err}")
    expect(not output.exists(), "a file was written")


# What arrives ----------------------------------------------------------------------------------------------------------

def test_lists_of_a_dump_arrive(program):
    samples = samples_of()
    samples[4]["remove_sample"] = True
    result, output = convert(program, dump_of(program, samples))
    expect_code(result, 0)
    check_content(output, samples)
    expect("6 samples of 3 prompts" in result.out and "rollout_log_probs" in result.out, result.out)


def test_tensors_of_every_type_arrive(program):
    samples = samples_of()
    stored = [dict(sample) for sample in samples]
    for sample, kind in zip(stored, ("<f4", "<f8", "<f2", "bfloat16", "<f4", "<f4")):
        values = np.asarray(sample["rollout_log_probs"], "<f2" if kind == "<f2" else "<f4")
        if kind == "bfloat16":
            values = (values.view("<u4") & 0xffff0000).view("<f4")
        samples[sample["index"]]["rollout_log_probs"] = values.astype(np.float64).tolist()
        sample["rollout_log_probs"] = Tensor(values, kind)
        sample["tokens"] = Tensor(sample["tokens"], "<i8" if sample["index"] % 2 else "<i4")
        sample["reward"] = Tensor([sample["reward"]], size=(), stride=())
        if sample["loss_mask"]:
            sample["loss_mask"] = Tensor(sample["loss_mask"], "|b1")
    # A view: every second value of a longer storage, beginning at the second.
    wide = np.repeat(np.asarray(samples[5]["rollout_log_probs"], "<f4"), 2)
    stored[5]["rollout_log_probs"] = Tensor(wide, size=(len(wide) // 2,), stride=(2,), offset=1)
    result, output = convert(program, dump_of(program, stored))
    expect_code(result, 0)
    check_content(output, samples)


def test_numpy_arrays_and_scalars_arrive(program):
    samples = samples_of()
    stored = [dict(s, tokens=np.asarray(s["tokens"], np.int32), reward=np.float64(s["reward"]),
                   rollout_log_probs=np.asarray(s["rollout_log_probs"]),
                   rollout_routed_experts=np.asfortranarray(np.ones((2, 3), np.int16))) for s in samples]
    result, output = convert(program, dump_of(program, stored))
    expect_code(result, 0)
    check_content(output, samples)


def test_a_dump_of_real_torch_arrives(program):
    try:
        import torch
    except ImportError:
        print("SKIPPED: no torch here")
        return
    samples, path = samples_of(), program.path("dump.pt")
    stored = [dict(s, tokens=torch.tensor(s["tokens"]), rollout_log_probs=torch.tensor(s["rollout_log_probs"]),
                   weight=torch.nn.Parameter(torch.zeros(3, 4).t())) for s in samples]
    torch.save({"rollout_id": 3, "samples": stored}, path)
    result, output = convert(program, path)
    expect_code(result, 0)
    check_content(output, samples)
    torch.save({"samples": stored}, path, _use_new_zipfile_serialization=False)
    refused(program, path, "not a zip archive", "load and save it again")


def test_options_say_what_a_dump_leaves_open(program):
    samples = samples_of()
    for sample in samples:
        sample["reward"] = {"score": sample["reward"], "length": 3}
        sample["group_index"] = None
    dump = dump_of(program, samples)
    refused(program, dump, "sample 0", "--reward-key", "score, length")
    refused(program, dump, "sample 0", "no group_index", "--n-samples-per-prompt", arguments=["--reward-key", "score"])
    options = ["--reward-key", "score", "--n-samples-per-prompt", "2", "--use-rollout-logprobs"]
    result, output = convert(program, dump, *options)
    expect_code(result, 0)
    check_content(output, [dict(s, reward=s["reward"]["score"]) for s in samples])
    with h5py.File(output, "r") as f:
        expect((f["old_log_probs"][:] == f["rollout_log_probs"][:]).all(), "old log-probs")
    refused(program, dump, "not a multiple", arguments=["--reward-key", "score", "--n-samples-per-prompt", "4"])


def test_a_converted_dump_runs_and_agrees_over_layouts(program):
    samples = samples_of(8)
    result, rollout = convert(program, dump_of(program, samples), "--use-rollout-logprobs")
    expect_code(result, 0)
    output = program.path()
    result = program.run("--hf-checkpoint", "inputs/tiny", "--rollout-file", rollout, "--advantage-estimator", "gspo",
                         "--n-samples-per-prompt", "2", "--context-parallel-size", "1,2", "--blocks", "0", "--quiet",
                         "--use-tis", "--output", output)
    expect_code(result, 0)
    summary = summary_of(output)
    expect(summary["verdict"] == "pass" and summary["signal"]["present"], summary["reason"])
    expect(summary["run"]["samples"] == 8, summary["run"])
    with h5py.File(output / "run.h5", "r") as run:
        new = run["variants/cp1/log_probs"][:]
        at = 0
        for j, sample in enumerate(samples):  # the sequence KL is taken to the dump's log-probs
            own = slice(at, at := at + sample["response_length"])
            mask = np.asarray(sample["loss_mask"] or [1] * sample["response_length"], float)
            wanted = (mask * (np.asarray(sample["rollout_log_probs"]) - new[own])).sum() / mask.sum()
            expect(abs(run["variants/cp1/seq_kl"][j] - wanted) < 1e-4, f"sequence KL of {j}")


# What is refused -------------------------------------------------------------------------------------------------------

class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def test_code_in_a_pickle_is_refused_by_name_and_does_not_run(program):
    proof = program.path("proof")
    touch = f"touch {proof}"
    # Names as protocol 2 writes them, for Python 2.
    for name, call in (("posix.system", Call(os.system, touch)),
                       ("__builtin__.eval", Call(eval, f"open({str(proof)!r}, 'w')")),
                       ("__builtin__.getattr", Call(getattr, "x", "upper")),
                       ("commands.Popen", Call(__import__("subprocess").Popen, touch))):
        samples = samples_of()
        samples[3]["metadata"] = {"note": call}
        refused(program, dump_of(program, samples), f"names {name},")
    expect(not proof.exists(), "the pickle was executed")
    write_dump(program.folder / "x.pt", b"ctorch.storage\n_load_from_bytes\n(C\x01xtR.")  # a pickle within a pickle
    refused(program, program.folder / "x.pt", "torch.storage._load_from_bytes")
    write_dump(program.folder / "x.pt", b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.")
    refused(program, program.folder / "x.pt", "collections.OrderedDict.__init__")


def test_operations_that_change_or_claim_are_refused(program):
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    for pickled, text in ((rebuild + b"}X\x08\x00\x00\x00__call__K\x01sb.", "sets the state"),
                          (b"ccollections\nOrderedDict\n}X\x01\x00\x00\x00xK\x01sb.", "sets the state"),
                          (b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.", "no dump needs"),
                          (b"\x82\x01.", "no dump needs"),
                          (b"Nr\xff\xff\xff\xff.", "holds no list 'samples'"),  # a memo of 2^32 places
                          (b"B\xff\xff\xff\x7f.", "broken archive or pickle"),
                          (b"", "broken archive or pickle")):
        path = program.path("dump.pt")
        write_dump(path, pickled)
        refused(program, path, text)


def test_tensors_that_claim_more_than_their_bytes_are_refused(program):
    for tensor, text in ((Tensor([1.0], count=10**9), "storage 0 has 4 bytes"),
                         (Tensor([1.0], size=(10**9,), stride=(0,)), "lies outside"),
                         (Tensor([1.0], size=(2**62, 4), stride=(0, 0)), "lies outside"),
                         (Tensor([1.0, 2.0], size=(2,), stride=(1,), offset=1), "lies outside"),
                         (Tensor([1.0, 2.0], size=(2,), stride=(-1,), offset=1), "lies outside")):
        refused(program, dump_of(program, [dict(samples_of()[0], rollout_log_probs=tensor)]), text)
    dump = program.path("dump.pt")
    write_dump(dump, {"samples": samples_of()}, zipfile.ZIP_DEFLATED)
    refused(program, dump, "is compressed")


def test_what_is_no_rollout_dump_is_refused_with_the_place(program):
    refused(program, program.path("none.pt"), "No such file or directory")
    path = program.path("text.pt")
    path.write_text("not a zip")
    refused(program, path, "not a zip archive")
    path.write_bytes(pickle.dumps({"samples": samples_of()}))
    refused(program, path, "not a zip archive")
    whole = dump_of(program, samples_of()).read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    refused(program, path, "not a zip archive")
    path.write_bytes(whole.replace(b"response_length", b"response_lengtX"))
    refused(program, path, "broken archive or pickle")  # the archive's checksum
    refused(program, dump_of(program, []), "holds no list 'samples'")
    refused(program, dump_of(program, [1]), "sample 0: not a dictionary")
    for change, *texts in (({"tokens": None}, "no tokens"), ({"tokens": [1, -1] * 20}, "tokens: not all in"),
                           ({"tokens": [[1], [2]]}, "tokens: not a flat list"), ({"tokens": ["a"]}, "tokens: not a list"),
                           ({"tokens": [1.5] * 50}, "tokens: not whole numbers"),
                           ({"loss_mask": [1]}, "loss_mask: 1 values for"), ({"response_length": None}, "response_length"),
                           ({"rollout_log_probs": None}, "no rollout_log_probs, which other samples have"),
                           ({"rollout_log_probs": [float("nan")] * 99}, "not a list of finite numbers"),
                           ({"reward": None}, "reward: missing"), ({"reward": float("inf")}, "reward: inf"),
                           ({"response_length": 0, "rollout_log_probs": [], "loss_mask": None}, "--skip-bad")):
        samples = samples_of()
        samples[2].update(change)
        refused(program, dump_of(program, samples), "sample 2", *texts)
    everything = [dict(s, loss_mask=[0] * s["response_length"]) for s in samples_of()]
    refused(program, dump_of(program, everything), "no response token that counts")
    dump = dump_of(program, samples_of())
    result = program.execute([sys.executable, str(program.source / "jobs/convert_rollout.py"), str(dump),
                              str(program.path() / "no-folder/x.h5")])
    expect_code(result, 8)
    expect("cannot be written: No such file" in result.err, result.err)


def test_bad_samples_can_be_left_out(program):
    samples = samples_of()
    samples[1].update(response_length=0, rollout_log_probs=[], loss_mask=None, status="aborted")
    result, output = convert(program, dump_of(program, samples), "--skip-bad")
    expect_code(result, 0)
    expect("5 samples of 3 prompts" in result.out and "left out: 1" in result.out, result.out)
    with h5py.File(output, "r") as f:
        expect(f["groups"][:].tolist() == [0, 1, 1, 2, 2], f["groups"][:])


if __name__ == "__main__":
    main(dict(globals()))
