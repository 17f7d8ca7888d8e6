#!/usr/bin/env python3
"""Rollout dump of a trainer (slime: --save-debug-rollout-data DUMP.pt) to a rollout file of `cpstep run --rollout-file`.

A dump is what torch.save made of {"rollout_id": N, "samples": [{...}, ...]}. Read of a sample: tokens, response_length,
loss_mask (all ones if None), remove_sample (mask all zeros), reward, group_index, rollout_log_probs; also old_log_probs and
ref_log_probs where a trainer adds them. Everything else is left out.

No torch is needed, and nothing in the dump is executed: the pickle may name tensors, numpy arrays and plain containers
only, which are built here from their bytes. Any other global is refused with its name.

Exit codes are those of cpstep: 0 written, 2 usage, 4 the dump cannot be used, 8 the output cannot be written.
"""
import argparse
import collections
import io
import os
import pathlib
import pickle
import sys
import zipfile

import h5py
import numpy as np

INPUT_DATA, OUTPUT = 4, 8

STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16",
            "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1",
            "ByteStorage": "<u1", "BoolStorage": "|b1"}
NUMBER_KINDS = "biuf"  # of numpy types: what holds bytes and no objects


class DumpError(Exception):
    """The dump cannot be used: one line, with the place."""


# The pickle ------------------------------------------------------------------------------------------------------------

class Rebuild:
    """Stands for a function that the pickle calls; without a __dict__, so that a pickle cannot change it."""
    __slots__ = ()


class RebuildTensor(Rebuild):
    __slots__ = ()

    def __call__(self, storage, offset, size, stride, *_):
        """torch._utils._rebuild_tensor_v2: a view of a storage. It may not be larger than what it views."""
        if not isinstance(storage, np.ndarray) or len(size) != len(stride):
            raise DumpError("a tensor without a storage")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        count = int(np.prod([int(n) for n in size], dtype=object)) if size else 1
        if min([offset, *size, *stride], default=0) < 0 or count > len(storage) or (count > 0 and last >= len(storage)):
            raise DumpError(f"a tensor of {count} values lies outside its storage of {len(storage)}")
        if count == 0:
            return np.zeros(size, storage.dtype)
        part = storage[offset:]
        return np.lib.stride_tricks.as_strided(part, size, [n * part.itemsize for n in stride])


class RebuildParameter(Rebuild):
    __slots__ = ()

    def __call__(self, data, *_):
        return data


class Dtype:
    """numpy.dtype: a type of numbers; the byte order comes with its state."""
    __slots__ = ("value",)

    def __init__(self, code):
        self.value = np.dtype(str(code))
        if self.value.kind not in NUMBER_KINDS:
            raise DumpError(f"a numpy array of '{code}'; only numbers are read")

    def __setstate__(self, state):
        if state[1] in "<>":
            self.value = self.value.newbyteorder(state[1])


class Array:
    """numpy.ndarray, filled by its state: (version, shape, dtype, is_fortran, bytes)."""
    __slots__ = ("value",)

    def __init__(self):
        self.value = np.zeros(0)

    def __setstate__(self, state):
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, Dtype) or not isinstance(content, bytes):
            raise DumpError("a numpy array that is not made of bytes")
        self.value = np.frombuffer(content, dtype.value).reshape(shape, order="F" if fortran else "C")


class NewDtype(Rebuild):
    __slots__ = ()

    def __call__(self, code, *_):
        return Dtype(code)


class NewArray(Rebuild):
    __slots__ = ()

    def __call__(self, *_):
        return Array()


class NewScalar(Rebuild):
    __slots__ = ()

    def __call__(self, dtype, content):
        return np.frombuffer(content, dtype.value)[0]


class Latin1Bytes(Rebuild):
    __slots__ = ()

    def __call__(self, text, encoding):
        """_codecs.encode, the way in which protocol 2 writes bytes."""
        if not isinstance(text, str) or encoding != "latin1":
            raise DumpError(f"_codecs.encode with '{encoding}'")
        return text.encode("latin1")


ALLOWED = {
    ("torch._utils", "_rebuild_tensor_v2"): RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): RebuildParameter(),
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): Latin1Bytes(),
    ("numpy", "dtype"): NewDtype(), ("numpy", "ndarray"): "numpy.ndarray",
}
ALLOWED.update({("torch", name): kind for name, kind in STORAGES.items()})
for builtins in ("builtins", "__builtin__"):  # the second is what protocol 2 writes
    ALLOWED[builtins, "set"], ALLOWED[builtins, "frozenset"] = set, frozenset
for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
    ALLOWED[core, "_reconstruct"], ALLOWED[core, "scalar"] = NewArray(), NewScalar()


class DataUnpickler(pickle._Unpickler):
    """Builds data only: find_class knows the names above, storages come from the archive. It is the one in Python, 4 times
    slower than the one in C (1 s a million numbers): that one allocates by numbers that a pickle merely claims."""

    def __init__(self, stream, read_storage):
        super().__init__(stream)
        self.read_storage = read_storage

    def set_state(self):
        if not isinstance(self.stack[-2], (Array, Dtype)):
            raise DumpError(f"refused: the pickle sets the state of a {type(self.stack[-2]).__name__}")
        self.load_build()

    def refuse(self):
        raise DumpError("refused: an operation of pickle that no dump needs")

    dispatch = dict(pickle._Unpickler.dispatch)
    dispatch[pickle.BUILD[0]] = set_state
    for operation in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8):
        dispatch[operation[0]] = refuse

    def find_class(self, module, name):
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise DumpError(f"refused: the pickle names {module}.{name}, which is neither a tensor nor a plain container; "
                            "save the dump without it") from None

    def persistent_load(self, pid):
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise DumpError("a persistent object that is not a storage")
        return self.read_storage(str(pid[2]), pid[1], int(pid[4]))


class Archive:
    """The zip that torch.save writes: PREFIX/data.pkl, PREFIX/data/KEY, all stored without compression."""

    def __init__(self, path):
        with open(path, "rb") as file:  # an OSError says why it cannot be read, is_zipfile does not
            known = zipfile.is_zipfile(file)
        if not known:
            raise DumpError("not a zip archive of torch.save (torch before 1.6, or another format): load and save it again")
        self.zip = zipfile.ZipFile(path)
        pickles = [name for name in self.zip.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise DumpError(f"{len(pickles)} members data.pkl, expected 1: not an archive of torch.save")
        self.prefix = pickles[0][:-len("data.pkl")]
        self.storages = {}
        order = self._member("byteorder") if self.prefix + "byteorder" in self.zip.namelist() else b"little"
        if order != b"little":
            raise DumpError("written on a big-endian machine")

    def _member(self, name):
        try:
            info = self.zip.getinfo(self.prefix + name)
        except KeyError:
            raise DumpError(f"{self.prefix}{name} is missing") from None
        if info.compress_type != zipfile.ZIP_STORED:  # its claimed size may be anything
            raise DumpError(f"{info.filename} is compressed; torch.save does not compress")
        return self.zip.read(info)

    def load(self):
        return DataUnpickler(io.BytesIO(self._member("data.pkl")), self.storage).load()

    def storage(self, key, kind, count):
        """Read once however many tensors view it."""
        if (key, kind, count) not in self.storages:
            self.storages[key, kind, count] = self._storage(key, kind, count)
        return self.storages[key, kind, count]

    def _storage(self, key, kind, count):
        content = self._member("data/" + key)
        dtype = np.dtype("<u2" if kind == "bfloat16" else kind)
        if count < 0 or count * dtype.itemsize > len(content):
            raise DumpError(f"storage {key} has {len(content)} bytes, {count} values of {dtype.itemsize} were expected")
        values = np.frombuffer(content, dtype, count)
        return (values.astype("<u4") << 16).view("<f4") if kind == "bfloat16" else values


def read_dump(path):
    """The samples of a dump, as dictionaries. DumpError for everything that is not one."""
    try:
        data = Archive(path).load()
    except DumpError:
        raise
    except OSError as error:
        raise DumpError(reason(error)) from None
    except Exception as error:  # of a broken pickle or archive: there is no telling which
        raise DumpError(f"broken archive or pickle: {type(error).__name__}: {error}") from None
    samples = data.get("samples") if isinstance(data, dict) else None
    if not isinstance(samples, list) or not samples:
        raise DumpError("holds no list 'samples': not a rollout dump (slime: --save-debug-rollout-data)")
    for number, sample in enumerate(samples):
        if not isinstance(sample, dict):
            raise DumpError(f"sample {number}: not a dictionary")
    return samples


def reason(error):
    """Of an OSError; h5py puts the names of its own calls into its text."""
    return os.strerror(error.errno) if error.errno else str(error).splitlines()[0]


# The samples -----------------------------------------------------------------------------------------------------------

class Sample:
    """What cpstep needs of one sample, checked. Tokens [T], per response token [R]: mask and log-probs or None."""

    def __init__(self, number, record, arguments):
        self.where = f"sample {number}"
        self.tokens = self._numbers(record, "tokens", None, np.int64)
        if self.tokens is None:
            raise DumpError(f"{self.where}: no tokens")
        if len(self.tokens) and not 0 <= self.tokens.min() <= self.tokens.max() < 2**31:
            raise DumpError(f"{self.where}: tokens: not all in [0, 2^31)")
        self.response = self._number(record, "response_length", int)
        self.usable = 0 < self.response < len(self.tokens)
        self.mask = self._numbers(record, "loss_mask", self.response, np.int64)
        if self.mask is None:
            self.mask = np.ones(max(self.response, 0), np.int64)
        if not np.isin(self.mask, (0, 1)).all():
            raise DumpError(f"{self.where}: loss_mask: neither 0 nor 1")
        if record.get("remove_sample"):
            self.mask = np.zeros_like(self.mask)
        self.log_probs = {name: self._numbers(record, name, self.response, np.float64)
                          for name in ("rollout_log_probs", "old_log_probs", "ref_log_probs")}
        self.reward = self._reward(record, arguments.reward_key)
        self.group = plain(record.get("group_index"))

    def _numbers(self, record, name, length, dtype):
        value = plain(record.get(name))
        if value is None:
            return None
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)):
            raise DumpError(f"{self.where}: {name}: not a flat list")
        try:
            array = np.asarray(value, np.float64 if dtype is np.float64 else None).reshape(-1)
        except (TypeError, ValueError):
            raise DumpError(f"{self.where}: {name}: not a list of numbers") from None
        if len(array) and (array.dtype.kind not in NUMBER_KINDS or not np.isfinite(array).all()):
            raise DumpError(f"{self.where}: {name}: not a list of finite numbers")
        if len(array) and dtype is np.int64 and (array != np.trunc(array)).any():
            raise DumpError(f"{self.where}: {name}: not whole numbers")
        if length is not None and len(array) != length:
            raise DumpError(f"{self.where}: {name}: {len(array)} values for {length} response tokens")
        return array.astype(dtype)

    def _number(self, record, name, kind):
        try:
            value = kind(plain(record[name]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DumpError(f"{self.where}: {name}: missing or not a number") from None
        return value

    def _reward(self, record, key):
        reward = plain(record.get("reward"))
        if isinstance(reward, dict):
            if key is None or key not in reward:
                raise DumpError(f"{self.where}: reward is a dictionary: name one of its keys with --reward-key: "
                                f"{', '.join(map(str, reward))}")
            reward = plain(reward[key])
        value = self._number({"reward": reward}, "reward", float)
        if not np.isfinite(value):
            raise DumpError(f"{self.where}: reward: {value}")
        return value


def plain(value):
    """Arrays of a numpy pickle as numpy arrays; one value out of an array of one."""
    value = value.value if isinstance(value, Array) else value
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def group_numbers(samples, per_prompt):
    """Prompt of each sample, counted from 0 in order of appearance."""
    if per_prompt:
        if len(samples) % per_prompt:
            raise DumpError(f"{len(samples)} samples are not a multiple of --n-samples-per-prompt {per_prompt}")
        return [number // per_prompt for number in range(len(samples))]
    missing = [sample.where for sample in samples if not isinstance(sample.group, (int, np.integer))]
    if missing:
        raise DumpError(f"{missing[0]}: no group_index: give --n-samples-per-prompt N if samples of a prompt follow each other")
    known = {}
    return [known.setdefault(sample.group, len(known)) for sample in samples]


def rollout_of(records, arguments):
    """Datasets of the rollout file by name, and how many samples were left out."""
    samples = [Sample(number, record, arguments) for number, record in enumerate(records)]
    groups = group_numbers(samples, arguments.n_samples_per_prompt)
    bad = [sample for sample in samples if not sample.usable]
    if bad and not arguments.skip_bad:
        raise DumpError(f"{bad[0].where}: {bad[0].response} response tokens of {len(bad[0].tokens)} in all; there must be a "
                        "response and a prompt (--skip-bad leaves such samples out)")
    groups = [group for group, sample in zip(groups, samples) if sample.usable]
    samples = [sample for sample in samples if sample.usable]
    if not any(sample.mask.any() for sample in samples):
        raise DumpError("no response token that counts: every sample is left out or masked")
    rollout = {
        "tokens": joined(samples, lambda s: s.tokens, np.int32),
        "token_offsets": np.cumsum([0, *(len(s.tokens) for s in samples)], dtype=np.int64),
        "response_offsets": np.cumsum([0, *(s.response for s in samples)], dtype=np.int64),
        "loss_mask": joined(samples, lambda s: s.mask, np.uint8),
        "rewards": np.array([s.reward for s in samples], np.float32),
        "groups": np.array(groups, np.int32),
    }
    for name in ("rollout_log_probs", "old_log_probs", "ref_log_probs"):
        without = [s.where for s in samples if s.log_probs[name] is None]
        if without and len(without) < len(samples):
            raise DumpError(f"{without[0]}: no {name}, which other samples have")
        if not without:
            rollout[name] = joined(samples, lambda s: s.log_probs[name], np.float32)
    if arguments.use_rollout_logprobs:
        if "rollout_log_probs" not in rollout:
            raise DumpError("--use-rollout-logprobs: the dump has no rollout_log_probs")
        rollout["old_log_probs"] = rollout["rollout_log_probs"]
    return rollout, len(bad)


def joined(samples, part, dtype):
    return np.concatenate([part(sample) for sample in samples]).astype(dtype)


def write_rollout(path, rollout):
    """The file appears whole or not at all."""
    partial = pathlib.Path(f"{path}.part")
    with h5py.File(partial, "w") as out:
        out.attrs["format"], out.attrs["format_version"] = "cpstep-rollout", np.int64(1)
        for name, values in rollout.items():
            out.create_dataset(name, data=values, chunks=True, fletcher32=True)
            out[name].attrs["units"] = "nat" if name.endswith("log_probs") else "1"
    os.replace(partial, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("dump", help="DUMP.pt of --save-debug-rollout-data")
    parser.add_argument("output", help="rollout file to write, e.g. rollout.h5")
    parser.add_argument("--reward-key", metavar="KEY", help="of rewards that are dictionaries, as the trainer's")
    parser.add_argument("--n-samples-per-prompt", type=int, default=0, metavar="N",
                        help="samples of a prompt follow each other; default: by group_index")
    parser.add_argument("--use-rollout-logprobs", action="store_true",
                        help="the rollout's log-probs are the old ones too, as the trainer's flag of this name")
    parser.add_argument("--skip-bad", action="store_true", help="leave out samples without a response or a prompt")
    arguments = parser.parse_args()
    if arguments.n_samples_per_prompt < 0:
        parser.error("--n-samples-per-prompt: at least 1")
    try:
        rollout, left_out = rollout_of(read_dump(arguments.dump), arguments)
    except DumpError as error:
        print(f"convert_rollout: {arguments.dump}: {error}", file=sys.stderr)
        return INPUT_DATA
    try:
        write_rollout(arguments.output, rollout)
    except OSError as error:
        print(f"convert_rollout: {arguments.output}: cannot be written: {reason(error)}", file=sys.stderr)
        return OUTPUT
    prompts = len(set(rollout["groups"].tolist()))
    print(f"{arguments.output}: {len(rollout['rewards'])} samples of {prompts} prompts, {len(rollout['tokens'])} tokens, "
          f"{len(rollout['loss_mask'])} of responses; left out: {left_out}; log-probs: "
          + (", ".join(name for name in rollout if name.endswith("log_probs")) or "none"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
