"""Rollout dumps as torch.save writes them (zip, pickle protocol 2, storages aside), made without torch."""
import collections
import io
import pickle
import sys
import types
import zipfile

import numpy as np

STORAGES = {"<f4": "FloatStorage", "<f8": "DoubleStorage", "<f2": "HalfStorage", "<i8": "LongStorage",
            "<i4": "IntStorage", "|u1": "ByteStorage", "|b1": "BoolStorage", "bfloat16": "BFloat16Storage"}


def stand_in_modules():
    """Modules named as torch's, so that pickle writes torch's names."""
    modules = {name: types.ModuleType(name) for name in ("torch", "torch._utils")}
    for name in STORAGES.values():
        setattr(modules["torch"], name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        raise AssertionError("only its name is written")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    modules["torch._utils"]._rebuild_tensor_v2 = _rebuild_tensor_v2
    return modules


class Storage:
    def __init__(self, values, dtype, count=None):
        self.content, self.dtype = values, dtype
        self.count = len(values) // (2 if dtype == "bfloat16" else np.dtype(dtype).itemsize) if count is None else count


class Tensor:
    """A view of a storage; by default all of `values`."""

    def __init__(self, values, dtype="<f4", size=None, stride=(1,), offset=0, count=None):
        if dtype == "bfloat16":
            content = (np.asarray(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
        else:
            content = np.asarray(values, dtype).tobytes()
        self.storage = Storage(content, dtype, count)
        self.size, self.stride, self.offset = (len(values),) if size is None else size, stride, offset

    def __reduce__(self):
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (self.storage, self.offset, tuple(self.size), tuple(self.stride), False, collections.OrderedDict())


class Pickler(pickle.Pickler):
    def __init__(self, stream):
        super().__init__(stream, 2)
        self.storages = []

    def persistent_id(self, item):
        if not isinstance(item, Storage):
            return None
        self.storages.append(item)
        kind = getattr(sys.modules["torch"], STORAGES[item.dtype])
        return "storage", kind, str(len(self.storages) - 1), "cpu", item.count


def write_dump(path, data, compression=zipfile.ZIP_STORED):
    """`data`: what to pickle, or the bytes of a pickle."""
    storages = []
    if not isinstance(data, bytes):
        kept = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
        sys.modules.update(stand_in_modules())
        try:
            stream = io.BytesIO()
            pickler = Pickler(stream)
            pickler.dump(data)
        finally:
            for name, module in kept.items():
                if module is None:
                    del sys.modules[name]
                else:
                    sys.modules[name] = module
        data, storages = stream.getvalue(), pickler.storages
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("dump/data.pkl", data)
        archive.writestr("dump/byteorder", "little")
        for key, storage in enumerate(storages):
            archive.writestr(f"dump/data/{key}", storage.content)
        archive.writestr("dump/version", "3\n")
