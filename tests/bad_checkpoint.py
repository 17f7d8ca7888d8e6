#!/usr/bin/env python3
"""Broken checkpoints as a user meets them: one line on stderr with file and tensor, exit 4, nothing touched.

usage: bad_checkpoint.py CPSTEP MPIEXEC SOURCE_DIR [TEST ...]
"""
import json
import shutil
import struct

import numpy as np

from e2e import (SMALL_BYTES, Safetensors, check_refusal, expect, expect_code, main, refused, smoke, summary_of)


def checkpoint(program, content=None):
    folder = program.path("model")
    shutil.copytree(program.source / "inputs/tiny", folder)
    if content is not None:
        (folder / "model.safetensors").write_bytes(content)
    return folder


def refused_weights(program, content, *texts, ranks=0):
    folder = checkpoint(program, content)
    return refused(program, 4, [folder / "model.safetensors", *texts], "--hf-checkpoint", folder, watch=folder,
                   ranks=ranks)


def tiny(program):
    return Safetensors(program.source / "inputs/tiny/model.safetensors")


def test_a_claimed_header_length_is_not_believed(program):
    good = tiny(program)
    for length in (2**64 - 1, 2**63, 100_000_001, 100_000_000, len(good.raw)):
        folder = checkpoint(program, struct.pack("<Q", length) + good.raw[8:])
        output = program.path()
        result = program.alone(*smoke(output, "--hf-checkpoint", folder, "--context-parallel-size", "1"))
        check_refusal(result, output, 4, [folder / "model.safetensors", "header length", length])
        expect(result.peak_bytes < SMALL_BYTES, f"length {length}: peak {result.peak_bytes >> 20} MiB")
    refused_weights(program, struct.pack("<Q", 2**64 - 1) + good.raw[8:], "header length", ranks=2)


def test_a_checkpoint_cut_at_any_byte_is_refused(program):
    good = tiny(program)
    for size in (0, 7, 8, 9, good.header_end - 1, good.header_end, good.header_end + 1, len(good.raw) - 1):
        refused_weights(program, good.raw[:size])
    refused_weights(program, good.raw[:-1], "truncated", ranks=2)


def test_a_broken_header_is_refused_with_its_place(program):
    good = tiny(program)
    text = json.dumps(good.header)
    first = next(name for name in good.header if name != "__metadata__")
    cases = {
        b"\xff\xfe" + text.encode(): ["byte"],
        "[" + text + "]": ["must start with '{'"],
        text[:-1] + ',"x":': ["byte"],
        text[:-1] + f',"{first}":' + json.dumps(good.header[first]) + "}": [first],
        "{" + '"a":' + "[" * 100_000 + "]" * 100_000 + "}": ["nest", "deep"],
    }
    for header, texts in cases.items():
        result = refused_weights(program, Safetensors.join(header, good.data))
        expect(any(text in result.err for text in texts), f"none of {texts} in {result.said}")


def test_offsets_and_shapes_that_do_not_fit_are_refused_by_name(program):
    def changed(change):
        good = tiny(program)
        names = sorted((n for n in good.header if n != "__metadata__"),
                       key=lambda n: good.header[n]["data_offsets"])
        data = change(good.header, names, good.data)
        return Safetensors.join(json.dumps(good.header), good.data if data is None else data), names

    def shift(delta_begin, delta_end):
        def change(header, names, _):
            offsets = header[names[1]]["data_offsets"]
            header[names[1]]["data_offsets"] = [offsets[0] + delta_begin, offsets[1] + delta_end]
        return change

    def swapped(header, names, _):
        header[names[1]]["data_offsets"] = header[names[1]]["data_offsets"][::-1]

    def entry(**values):
        return lambda header, names, _: header[names[1]].update(values)

    cases = [(shift(-2, -2), 1), (shift(2, 2), 1), (swapped, 1), (shift(2**40, 2**40), 2),
             (lambda header, names, data: data + b"\0\0", None), (lambda header, names, data: data[:-2], -1),
             (entry(shape=[2**62, 2**62]), 1), (entry(shape=[1, 1]), 1), (entry(shape=[-1]), 1),
             (entry(shape=[1.5]), 1), (entry(dtype="F17"), 1), (entry(dtype=16), 1)]
    for change, named in cases:
        content, names = changed(change)
        refused_weights(program, content, *([] if named is None else [names[named]]))


def test_tensors_that_do_not_fit_the_model_are_listed_completely(program):
    tensors = tiny(program).tensors()
    q, k, norm = (f"model.layers.{i}.{n}" for i, n in
                  ((0, "self_attn.q_proj.weight"), (1, "self_attn.k_proj.bias"), (1, "input_layernorm.weight")))
    del tensors[q], tensors[k]
    dtype, shape, content = tensors[norm]
    tensors[norm] = [dtype, [shape[0] // 2, 2], content]
    tensors["model.layers.7.extra.weight"] = ["F32", [1], b"\0\0\0\0"]
    folder = checkpoint(program, Safetensors.pack(tensors))
    result = refused(program, 4, [folder, q, k, norm, "model.layers.7.extra.weight"], "--hf-checkpoint", folder,
                     watch=folder)
    for name, word in ((q, "missing"), (k, "missing"), (norm, "32"), ("model.layers.7.extra.weight", "extra")):
        line = next(line for line in result.err.splitlines() if name in line)
        expect(word in line, f"'{word}' is missing: {line}")


def test_weights_of_another_dtype_or_precision_are_read(program):
    """bf16 to f32 keeps the values, and so the results."""
    tensors = tiny(program).tensors()
    for entry in tensors.values():
        expect(entry[0] == "BF16", "the tiny model is bf16")
        bits = np.frombuffer(entry[2], "<u2").astype("<u4") << 16
        entry[0], entry[2] = "F32", bits.tobytes()
    tensors["lm_head.weight"] = list(tensors["model.embed_tokens.weight"])  # accepted beside a tied embedding
    output, same = program.path(), program.path()
    expect_code(program.run(*smoke(same)), 0)
    expect_code(program.run(*smoke(output, "--hf-checkpoint", checkpoint(program, Safetensors.pack(tensors)))), 0)
    metrics = [[v["metrics"] for v in summary_of(path)["variants"]] for path in (output, same)]
    expect(metrics[0] == metrics[1], metrics)


def test_a_missing_checkpoint_part_is_named(program):
    for part in ("model.safetensors", "config.json", "tokenizer.json"):
        folder = checkpoint(program)
        (folder / part).unlink()
        refused(program, 4, [folder, part], "--hf-checkpoint", folder, watch=folder)
    refused(program, 4, ["no/such/model"], "--hf-checkpoint", "no/such/model")


def test_shards_are_checked_against_their_index(program):
    tensors = tiny(program).tensors()
    names = list(tensors)
    halves = [{n: tensors[n] for n in part} for part in (names[:9], names[9:])]
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]

    def sharded(parts):
        folder = checkpoint(program)
        (folder / "model.safetensors").unlink()
        for file, part in zip(files, parts):
            (folder / file).write_bytes(Safetensors.pack(part))
        index = {n: files[0] if n in halves[0] else files[1] for n in names}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        return folder

    output = program.path()
    expect_code(program.run(*smoke(output, "--hf-checkpoint", sharded(halves))), 0)
    folder = sharded(halves)
    (folder / files[1]).unlink()
    refused(program, 4, [folder, files[1]], "--hf-checkpoint", folder)
    folder = sharded([halves[0], {**halves[1], names[0]: tensors[names[0]]}])
    refused(program, 4, [names[0], files[1]], "--hf-checkpoint", folder)


def with_bad_values(program):
    tensors = tiny(program).tensors()
    name = "model.layers.0.mlp.up_proj.weight"
    raw = bytearray(tensors[name][2])
    for i, bits in ((0, 0x7FC0), (5, 0x7F80), (9, 0xFF80)):  # bf16 NaN, Inf, -Inf
        raw[2 * i:2 * i + 2] = struct.pack("<H", bits)
    tensors[name][2] = bytes(raw)
    return checkpoint(program, Safetensors.pack(tensors)), name


def test_nonfinite_weights_are_named_with_their_count_and_folder(program):
    folder, name = with_bad_values(program)
    for option in ("--hf-checkpoint", "--ref-load"):
        refused(program, 4, [name, "3 of 8192", "--allow-nonfinite", folder], option, folder, watch=folder)


def test_nonfinite_weights_go_on_when_allowed_and_end_as_nonfinite(program):
    folder, name = with_bad_values(program)
    output = program.path()
    result = program.run(*smoke(output, "--hf-checkpoint", folder, "--allow-nonfinite"))
    expect_code(result, 9)
    summary = summary_of(output)
    expect(summary["exit_code"] == 9 and summary["verdict"] == "non-finite", summary["verdict"])
    expect("NaN or Inf in cp1" in summary["reason"], summary["reason"])
    expect(any(name in note and "3 of" in note for note in summary["notes"]), summary["notes"])
    expect((output / "run.h5").exists(), "the results of a non-finite run are kept")


if __name__ == "__main__":
    main(dict(globals()))
