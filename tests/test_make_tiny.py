#!/usr/bin/env python3
"""inputs/make_tiny.py rewrites the committed checkpoints byte for byte."""

import json
import math
import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest

INPUTS = pathlib.Path(__file__).resolve().parent.parent / "inputs"
FOLDERS = ("tiny", "tiny-ref")


def generate(folder, *arguments):
    command = [sys.executable, str(INPUTS / "make_tiny.py"), "--output", str(folder), *arguments]
    subprocess.run(command, check=True)
    return pathlib.Path(folder)


def files(root):
    return {p.relative_to(root): p.read_bytes() for f in FOLDERS for p in (root / f).iterdir()}


def tensors(path):
    """name -> list of numbers of a BF16 safetensors file."""
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__")
    out = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        bits = struct.unpack(f"<{(end - begin) // 2}H", raw[begin:end])
        out[name] = [struct.unpack("<f", struct.pack("<I", b << 16))[0] for b in bits]
        assert len(out[name]) == math.prod(entry["shape"])
    return out


class MakeTiny(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.fresh = generate(pathlib.Path(cls.temporary.name) / "same")
        cls.other = generate(pathlib.Path(cls.temporary.name) / "other", "--seed", "7")

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def test_a_rerun_gives_the_committed_bytes(self):
        committed, fresh = files(INPUTS), files(self.fresh)
        self.assertEqual(sorted(committed), sorted(fresh))
        for path in fresh:
            self.assertTrue(committed[path] == fresh[path], f"{path} differs from the generator's output")

    def test_another_seed_changes_the_weights_and_nothing_else(self):
        fresh, other = files(self.fresh), files(self.other)
        changed = {str(p) for p in fresh if fresh[p] != other[p]}
        self.assertEqual(changed, {f"{f}/model.safetensors" for f in FOLDERS})

    def test_files_are_small(self):
        for path, data in files(self.fresh).items():
            self.assertLess(len(data), 200 * 1024, path)

    def test_the_reference_is_two_percent_from_the_policy(self):
        policy, reference = (tensors(self.fresh / f / "model.safetensors") for f in FOLDERS)
        self.assertEqual(policy.keys(), reference.keys())
        for name, values in policy.items():
            mean = sum(values) / len(values)
            spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
            noise = math.sqrt(
                sum((a - b) ** 2 for a, b in zip(values, reference[name])) / len(values)
            )
            # Norm weights near 1 are rounded to 2^-8, so that up to 2^-9 of it is added.
            self.assertGreater(noise, 0.01 * spread, name)
            self.assertLess(noise, 0.04 * spread + 2**-9, name)

    def test_ids_are_dense_and_specials_come_last(self):
        data = json.loads((self.fresh / "tiny" / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary, merges = data["model"]["vocab"], data["model"]["merges"]
        ids = sorted(vocabulary.values()) + [t["id"] for t in data["added_tokens"]]
        self.assertEqual(ids, list(range(384)))
        self.assertEqual(len(merges), 384 - 256 - 3)
        for left, right in merges:
            self.assertLess(vocabulary[left], vocabulary[left + right])
            self.assertLess(vocabulary[right], vocabulary[left + right])


if __name__ == "__main__":
    unittest.main()
