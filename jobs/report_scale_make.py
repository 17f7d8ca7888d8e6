#!/usr/bin/env python3
"""Files of a run that never was, in the layout of a real one: for cpstep-report at scale, and its tests.

usage: report_scale_make.py DIR [--ranks N] [--events N] [--blocks N] [--unfinished]

Two variants, cp1 and cp<ranks>, a verification step each, then blocks A B B A. A step is made of layers whose intervals are
whole multiples of a tick; a rank's tick differs from step to step. So every sum is known exactly: see SUMS.
"""
import argparse
import json
import pathlib

import h5py
import numpy as np

EVENT = np.dtype([("step", "<u4"), ("kind", "<u2"), ("stream", "<i2"), ("t0_ns", "<i8"), ("dur_ns", "<i8"),
                  ("bytes", "<u8"), ("peer", "<i4"), ("name", "<u4")])
STEP = np.dtype([("step", "<u4"), ("variant", "<u4"), ("block", "<i4"), ("detail", "<u4"), ("t0_ns", "<i8"),
                 ("dur_ns", "<i8"), ("events", "<u8"), ("compute_ns", "<i8"), ("comm_ns", "<i8"),
                 ("exposed_ns", "<i8"), ("wait_ns", "<i8"), ("idle_ns", "<i8"), ("bytes", "<u8")])
PAGE = 4092  # bytes of a chunk, as the program writes them
KINDS = {"step": 0, "pass": 1, "compute": 2, "comm": 3, "wait": 4}
KV_BYTES, GRAD_BYTES = 1 << 16, 1 << 20
SUMS = ("compute_ns", "comm_ns", "exposed_ns", "wait_ns", "idle_ns")


class Template:
    """Events of one step in ticks, and what they add up to."""

    def __init__(self, variant, layers, ring, names):
        self.rows, self.names, self.at = [], names, 0
        self.sums = dict.fromkeys(SUMS, 0)
        self.bytes = 0
        for phase in ("train_forward", "backward"):
            begin = self.at
            for _ in range(layers):
                self.layer(phase, ring)
            self.add("pass", phase, begin, self.at)
        begin = self.at
        if ring:
            self.call("grad", 20, 20, -1, GRAD_BYTES)
        self.leaf("adamw", 5)
        self.add("pass", "optimizer", begin, self.at)
        self.at += 10
        self.sums["idle_ns"] += 10
        self.add("step", variant, 0, self.at)

    def add(self, kind, name, begin, end, size=0, peer=-1):
        if name not in self.names:
            self.names.append(name)
        self.rows.append((0, KINDS[kind], kind == "comm", begin, end - begin, size, peer, self.names.index(name)))

    def leaf(self, name, ticks):
        self.add("compute", name, self.at, self.at + ticks)
        self.at += ticks
        self.sums["compute_ns"] += ticks

    def call(self, label, ticks, exposed, peer, size):
        """A call whose last ticks no compute covers."""
        self.add("comm", label, self.at - ticks + exposed, self.at + exposed, size, peer)
        self.add("wait", label, self.at, self.at + exposed, 0, peer)
        self.at += exposed
        self.bytes += size
        for key, value in (("comm_ns", ticks), ("exposed_ns", exposed), ("wait_ns", exposed)):
            self.sums[key] += value

    def layer(self, phase, ring):
        begin, suffix = self.at, ".backward" if phase == "backward" else ""
        self.leaf("attention" + (suffix or ".forward"), 4)
        if ring:
            self.call("cp.kv", 6, 2, 0, KV_BYTES)
        self.leaf("attention" + (suffix or ".forward"), 6)
        self.add("pass", "layer.attention" + suffix, begin, self.at)
        self.leaf("layer.mlp" + suffix, 8)
        self.at += 1
        self.sums["idle_ns"] += 1

    def array(self):
        return np.array(self.rows, EVENT)


def table(file, name, rows, units):
    file.create_dataset(name, data=rows, chunks=(max(PAGE // rows.dtype.itemsize, 1),), maxshape=(None,), fletcher32=True)
    file[name].attrs["units"] = units


def text(value):
    return np.bytes_(value.encode())


def order_of(variants, blocks):
    """(variant, block) of every step."""
    order = [(v, -1) for v in range(len(variants))]
    for block in range(blocks):
        visits = list(range(len(variants)))
        order += [(v, block) for v in visits + visits[::-1]]
    return order


def ticks_of(rank, steps, ranks):
    """Nanoseconds of a tick in each step, with noise; the last rank is 5 % slower than the others."""
    noise = np.random.default_rng(1000 + rank).integers(-300, 301, steps)
    return 20_000 + noise + (1000 if ranks > 1 and rank == ranks - 1 else 0)


def write_rank(folder, rank, ranks, templates, names, order, variants):
    file = folder / f"ranks/{rank // 256:03}/rank{rank:05}.h5"
    file.parent.mkdir(parents=True, exist_ok=True)
    ticks = ticks_of(rank, len(order), ranks)
    parts, steps, begin = [], np.zeros(len(order), STEP), 1_000_000
    for number, (variant, block) in enumerate(order):
        template, tick = templates[variant], int(ticks[number])
        rows = template.events.copy()
        rows["step"] = number
        rows["t0_ns"] = rows["t0_ns"] * tick + begin
        rows["dur_ns"] *= tick
        rows["peer"][rows["peer"] >= 0] = (rank + 1) % ranks
        parts.append(rows)
        row = steps[number]
        row["step"], row["variant"], row["block"] = number, names.index(variants[variant]), block
        row["t0_ns"], row["dur_ns"], row["events"] = begin, template.at * tick, len(rows)
        row["bytes"] = template.bytes
        for key in SUMS:
            row[key] = template.sums[key] * tick
        begin += template.at * tick + 50_000
    with h5py.File(file, "w", libver=("v110", "v110")) as out:
        out.attrs.update({"format": text("cpstep-trace"), "format_version": 1, "rank": rank, "world": ranks,
                          "host": text(f"node{rank // 8}"), "run_id": text("made-up"), "epoch_ns": 0,
                          "epoch_unix_ns": 1_700_000_000_000_000_000})
        table(out, "events", np.concatenate(parts), "ns (t0_ns, dur_ns), byte (bytes)")
        table(out, "steps", steps, "ns (names in _ns), byte (bytes)")
        table(out, "names", np.array([n.encode() for n in names], "S64"), "1")
        for variant in variants:
            out[f"tensors/{variant}/log_probs"] = np.zeros(4, "f4")
    return steps


def summary_of(variants, templates, ranks):
    ledgers = [{}, {"cp.kv": {"op": "exchange", "group_size": ranks, "calls": 1, "bytes": KV_BYTES, "budget_calls": 1,
                              "budget_bytes": KV_BYTES}}]
    return {"format": "cpstep-summary", "format_version": 1, "verdict": "pass", "exit_code": 0,
            "reason": "made up", "run": {"backend": "synthetic", "ranks": ranks}, "notes": ["a made-up run"],
            "variants": [{"name": v, "ledger": ledgers[i and 1], "ledger_faults": []} for i, v in enumerate(variants)],
            "parity": [{"variant": variants[-1], "check": "log_probs", "measured": 1e-6, "bound": 1e-5, "unit": "max abs",
                        "where": "token 1", "pass": True}],
            "memory": {"ranks": [], "parts_bytes": {}},
            "ranking": [{"variant": v, "wire_bytes_a_rank": t.bytes} for v, t in zip(variants, templates)],
            "config": {"seed": "1"}}


def write_run(folder, ranks, order, variants, templates, slowest):
    draw = np.random.default_rng(5)
    with h5py.File(folder / "run.h5", "w") as out:
        out.attrs.update({"format": text("cpstep-run"), "format_version": 1, "run_id": text("made-up")})
        out["verdict/summary"] = text(json.dumps(summary_of(variants, templates, ranks)))
        timed = [(variants[v].encode(), b, s) for (v, b), s in zip(order, slowest) if b >= 0]
        for i, (name, kind) in enumerate((("variant", "S16"), ("block", "i8"), ("seconds", "f8"))):
            out[f"steps/{name}"] = np.array([row[i] for row in timed], kind)
        base = draw.normal(-2, 1, 4096)
        for i, variant in enumerate(variants):
            group = out.create_group(f"variants/{variant}")
            group.attrs.update({"loss": 0.5, "grad_norm": 1.25})
            for name in ("log_probs", "entropy"):
                group[name] = base + i * draw.normal(0, 1e-6, len(base))


def make_run(folder, ranks=2, events=1000, blocks=4, finished=True):
    """`events` a rank, about; returns the templates by variant name."""
    folder = pathlib.Path(folder)
    variants = ["cp1", f"cp{ranks}"] if ranks > 1 else ["cp1"]
    order = order_of(variants, blocks)
    layers = max(events // len(order) // 2 // 5, 1)
    names = []
    templates = [Template(v, layers, i > 0, names) for i, v in enumerate(variants)]
    for template in templates:
        template.events = template.array()
    slowest = np.zeros(len(order))
    for rank in range(ranks):
        steps = write_rank(folder, rank, ranks, templates, names, order, variants)
        slowest = np.maximum(slowest, steps["dur_ns"] * 1e-9)
    if finished:
        write_run(folder, ranks, order, variants, templates, slowest)
    return dict(zip(variants, templates))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--events", type=int, default=100_000, help="of a rank, about")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--unfinished", action="store_true", help="no run.h5")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    make_run(given.folder, given.ranks, given.events, given.blocks, not given.unfinished)
