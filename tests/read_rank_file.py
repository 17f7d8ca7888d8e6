"""Read all of a rank file with h5py: read_rank_file.py FILE STEPS. Also of a writer that was killed."""
import sys

import h5py
import numpy as np

EVENT = [("step", "<u4"), ("kind", "<u2"), ("stream", "<i2"), ("t0_ns", "<i8"),
         ("dur_ns", "<i8"), ("bytes", "<u8"), ("peer", "<i4"), ("name", "<u4")]
STEP = [("step", "<u4"), ("variant", "<u4"), ("block", "<i4"), ("detail", "<u4"), ("t0_ns", "<i8"), ("dur_ns", "<i8"),
        ("events", "<u8"), ("compute_ns", "<i8"), ("comm_ns", "<i8"), ("exposed_ns", "<i8"), ("wait_ns", "<i8"),
        ("idle_ns", "<i8"), ("bytes", "<u8")]


def open_file(path):
    try:
        return h5py.File(path, "r")
    except OSError:
        return h5py.File(path, "r", swmr=True)


def text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def check_dataset(name, item):
    if isinstance(item, h5py.Dataset):
        assert item.fletcher32, name
        assert text(item.attrs["units"]), name
        item[...]


def main(path, steps):
    with open_file(path) as file:
        assert text(file.attrs["format"]) == "cpstep-trace"
        assert int(file.attrs["format_version"]) == 1
        for key in ("rank", "world", "host", "run_id", "epoch_ns", "epoch_unix_ns"):
            assert key in file.attrs, key
        file.visititems(check_dataset)
        events, table, names = file["events"], file["steps"], file["names"][...]
        assert events.dtype == np.dtype(EVENT) and events.dtype.itemsize == 40, events.dtype
        assert table.dtype == np.dtype(STEP) and table.dtype.itemsize == 88, table.dtype
        assert names.dtype == np.dtype("S64"), names.dtype
        assert text(events.attrs["kinds"]) == "0 step,1 pass,2 compute,3 comm,4 wait"
        assert "ns" in text(events.attrs["units"]) and "byte" in text(events.attrs["units"])
        assert len(table) == steps, len(table)
        assert (table["step"] == np.arange(steps)).all()
        listed = events[: int(table["events"].sum())]
        assert len(listed) == table["events"].sum()
        assert (np.bincount(listed["step"], minlength=steps) == table["events"]).all()
        assert (listed["dur_ns"] >= 0).all() and (listed["kind"] <= 4).all()
        assert (listed["name"] < len(names)).all() and (table["variant"] < len(names)).all()
        for name in file.get("tensors", {}):
            file["tensors"].visititems(
                lambda key, item: isinstance(item, h5py.Group) or item.dtype in (np.float32, np.int64) or sys.exit(key))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
