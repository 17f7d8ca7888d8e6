"""What a run of cpstep wrote, as pandas tables and numpy arrays. One file: copy it, or put its folder on PYTHONPATH.

    from cpstep_files import load_events, load_steps, load_tensors
    steps = load_steps("out/smoke")
    print(steps[steps.block >= 0].groupby("variant").seconds.median())

DIR is the folder of --output: of a finished run (run.h5 and rank files), or of one that was killed or still runs (rank
files only, read while they are written). What cannot be used raises CpstepFileError, one line with the file and the
reason. Needs h5py, numpy and pandas; Debian 12 has them as python3-h5py and python3-pandas.
"""
import pathlib
import warnings

import h5py
import numpy as np
import pandas as pd

KINDS = ("step", "pass", "compute", "comm", "wait")
RANKS_A_FOLDER = 256
NEWEST_VERSION = 1


class CpstepFileError(ValueError):
    """A file of a run is missing, broken, of another run, or not what its name says."""


def load_events(directory, ranks=None):
    """Every span and communication call of the finished steps, one row each, in order of rank and step.

    rank     int         who
    step     int         number of the step, from 0; the same on all ranks
    variant  category    what the step computed: "cp1", "cp2", ...
    kind     category    step | pass | compute | comm | wait; compute and comm are leaves, pass and step contain them
    stream   int         0 compute, 1 communication
    t0_ns    int, ns     begin, since the run's epoch: one moment on all ranks, to within /clock of run.h5
    dur_ns   int, ns     duration; of a comm: posted to done, of a wait: how long stream 0 stood waiting for it
    bytes    int, byte   sent or reduced by this rank; 0 for other kinds
    peer     int         rank in the group that it was exchanged with, -1 if none
    name     category    pass, operation, or label of the ledger

    `ranks`: only these; a run of many ranks has too many rows to hold at once.
    """
    tables = []
    with _Run(directory) as run:
        for rank, file in run.rank_files(ranks):
            steps, names = file["steps"][:], _texts(file["names"])
            # A step is listed after its events: rows beyond the listed steps are of one that was cut off.
            events = file["events"][:int(steps["events"].sum())]
            table = pd.DataFrame({name: events[name].astype(np.int64) for name in events.dtype.names})
            table.insert(0, "rank", rank)
            variant = pd.Categorical([names[s] for s in steps["variant"]])
            table.insert(2, "variant", variant.take(np.searchsorted(steps["step"], events["step"])))
            table["kind"] = pd.Categorical.from_codes(table["kind"].astype(np.int8), KINDS)
            table["name"] = pd.Categorical.from_codes(table["name"].astype(np.int32), names)
            tables.append(table)
    for column in ("variant", "name"):
        union = pd.api.types.union_categoricals([t[column] for t in tables]).categories
        for table in tables:
            table[column] = table[column].cat.set_categories(union)
    return pd.concat(tables, ignore_index=True)


def load_steps(directory):
    """The steps of a run in order, one row each; times are those of the slowest rank.

    step          int         number of the step, as in load_events
    variant       str
    block         Int64       block of timing, from 0; -1 warm-up; <NA> where the run did not end and nobody knows
    seconds       float, s
    exposed_comm  float, s    communication not covered by compute; NaN where --trace-detail was off
    loss          float       NaN where the run did not end

    A finished run gives its warm-up and timed steps, another one all steps that every rank has finished.
    """
    with _Run(directory) as run:
        if run.file is not None:
            return _recorded_steps(run)
        tables = [_rank_steps(rank, file) for rank, file in run.rank_files()]
    count = min(len(table) for table in tables)
    if count == 0:
        raise CpstepFileError(f"{directory}: no step was finished by every rank")
    parts = load_breakdown(directory).groupby("step").exposed_comm.max()
    first = tables[0][:count]
    return pd.DataFrame({
        "step": first["step"], "variant": first["variant"].astype(object),
        "block": pd.array([pd.NA] * count, dtype="Int64"),
        "seconds": np.max([table["dur_ns"][:count] for table in tables], axis=0) * 1e-9,
        "exposed_comm": parts.reindex(first["step"]).to_numpy(), "loss": np.nan})


def load_tensors(directory, variant):
    """Arrays of a variant's verification step by name, as numpy arrays.

    log_probs, ref_log_probs, entropy  [response tokens] nat, in the order of the rollout's responses
    seq_kl      [samples] nat, mean of old minus new log-probs (GSPO's k_j)
    advantages  [samples]
    gradients/NAME, updated/NAME       shape of the parameter, by Hugging Face name, with --save gradients,weights

    Of a run that did not end only the first three, joined from the ranks' shards; what was not yet written is NaN.
    """
    with _Run(directory) as run:
        if run.file is not None:
            group = _member(run.file, "variants", variant)
            found = {}
            group.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
            return found
        shards = []
        for _, file in run.rank_files():
            group = _member(file, "tensors", variant)
            shards.append({name: group[name][:] for name in group})
    rows = 1 + max((int(s["response_index"].max()) for s in shards if len(s["response_index"])), default=-1)
    joined = {name: np.full(rows, np.nan, np.float32) for name in shards[0] if name != "response_index"}
    for shard in shards:
        for name, whole in joined.items():
            whole[shard["response_index"]] = shard[name]
    return joined


def load_breakdown(directory, ranks=None):
    """Where the time of each step went on each rank: rank, step, variant, then in seconds

    seconds       of the step's span
    compute       union of the compute spans; where the trace has passes only: the step without its waits
    comm          union of the communication calls
    exposed_comm  comm not covered by compute (passes only: comm while stream 0 waits)
    other         neither computing nor in an exposed call

    NaN in the last four where --trace-detail was off.
    """
    rows = []
    with _Run(directory) as run:
        for rank, file in run.rank_files(ranks):
            names = _texts(file["names"])
            end = 0
            for step in file["steps"][:]:
                begin, end = end, end + int(step["events"])
                rows.append((rank, int(step["step"]), names[step["variant"]], *_parts(file["events"][begin:end])))
    columns = ["rank", "step", "variant", "seconds", "compute", "comm", "exposed_comm", "other"]
    table = pd.DataFrame(rows, columns=columns)
    table["variant"] = table["variant"].astype("category")
    return table


def _texts(dataset):
    return [text.decode() for text in dataset[:]]


def _member(file, group, name):
    if group not in file or name not in file[group]:
        there = ", ".join(file.get(group, {})) or "none"
        raise CpstepFileError(f"{file.filename}: no variant '{name}'; there are: {there}")
    return file[group][name]


def _parts(events):
    """seconds, compute, comm, exposed, other of the events of one step on one rank."""
    spans = {kind: _merged(events[events["kind"] == number]) for number, kind in enumerate(KINDS)}
    whole, comm, compute, wait = (spans[kind] for kind in ("step", "comm", "compute", "wait"))
    seconds = _length(whole) * 1e-9
    if len(events) <= 1:
        return seconds, np.nan, np.nan, np.nan, np.nan
    if len(compute) == 0 and len(wait) > 0:
        computing, exposed = _length(whole) - _length(wait), _overlap(comm, wait)
    else:
        computing, exposed = _length(compute), _length(comm) - _overlap(comm, compute)
    return (seconds, computing * 1e-9, _length(comm) * 1e-9, exposed * 1e-9, seconds - (computing + exposed) * 1e-9)


def _merged(events):
    """Union of spans as disjoint rows [begin, end) in order, ns."""
    order = np.argsort(events["t0_ns"], kind="stable")
    begin = events["t0_ns"][order]
    end = np.maximum.accumulate(begin + events["dur_ns"][order])
    first = np.ones(len(begin), bool)
    first[1:] = begin[1:] > end[:-1]
    last = np.roll(first, -1)
    return np.column_stack([begin[first], end[last]])


def _length(union):
    return int((union[:, 1] - union[:, 0]).sum())


def _overlap(a, b):
    """Length of the intersection: |a| + |b| - |a or b|."""
    both = np.concatenate([a, b])
    events = np.rec.fromarrays([both[:, 0], both[:, 1] - both[:, 0]], names="t0_ns,dur_ns")
    return _length(a) + _length(b) - _length(_merged(events))


def _rank_steps(rank, file):
    steps = file["steps"][:]
    table = pd.DataFrame({name: steps[name].astype(np.int64) for name in ("step", "variant", "dur_ns")})
    names = _texts(file["names"])
    table["variant"] = [names[v] for v in table["variant"]]
    return table.assign(rank=rank)


def _recorded_steps(run):
    group = run.file["steps"]
    table = pd.DataFrame({"variant": _texts(group["variant"]), "block": pd.array(group["block"][:], dtype="Int64")})
    for name in ("seconds", "exposed_comm", "loss"):
        table[name] = group[name][:]
    # Warm-up and timed steps are the last of a rank file; the verification comes before.
    _, file = next(run.rank_files([0]))
    own = _rank_steps(0, file)[-len(table):] if len(table) else _rank_steps(0, file)[:0]
    if list(own["variant"]) != list(table["variant"]):
        raise CpstepFileError(f"{file.filename}: its last steps are not those of run.h5")
    table.insert(0, "step", own["step"].to_numpy())
    return table


class _Run:
    """The files of a run: `file` is run.h5, or None; rank_files() opens those of the ranks one after the other."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.file = None
        self.open = None
        if not self.directory.is_dir():
            raise CpstepFileError(f"{directory}: no such folder")
        path = self.directory / "run.h5"
        if path.exists():
            self.file = _opened(path, "cpstep-run")
        elif not self._path(0).exists() and not list(self.directory.glob("ranks/*/rank*.h5")):
            raise CpstepFileError(f"{directory}: holds neither run.h5 nor rank files: not the --output folder of a run")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for file in (self.file, self.open):
            if file is not None:
                file.close()

    def _path(self, rank):
        return self.directory / f"ranks/{rank // RANKS_A_FOLDER:03}/rank{rank:05}.h5"

    def rank_files(self, ranks=None):
        """Yields (rank, open file); each is closed before the next. A finished run must have all of them; of another
        one a warning names those that are not there."""
        there = [rank for rank in self._wanted(ranks) if self._path(rank).exists()]
        missing = [rank for rank in self._wanted(ranks) if rank not in set(there)]
        if missing and (self.file is not None or not there):
            raise CpstepFileError(f"{self._path(missing[0])}: missing; the run had {self._world()} ranks")
        if missing:
            warnings.warn(f"{self.directory}: no file of rank {', '.join(map(str, missing))}", stacklevel=3)
        run_id = None if self.file is None else self.file.attrs["run_id"]
        for rank in there:
            self.open = _opened(self._path(rank), "cpstep-trace")
            if self.file is not None and len(self.open["events"]) < self.file["event_count"][rank]:
                raise CpstepFileError(f"{self._path(rank)}: {len(self.open['events'])} events, "
                                      f"run.h5 counts {self.file['event_count'][rank]}")
            run_id = self.open.attrs["run_id"] if run_id is None else run_id
            if self.open.attrs["run_id"] != run_id:
                raise CpstepFileError(f"{self._path(rank)}: of another run ({self.open.attrs['run_id'].decode()}) than "
                                      f"the other files ({run_id.decode()})")
            yield rank, self.open
            self.open.close()
            self.open = None

    def _first(self):
        return min(self.directory.glob("ranks/*/rank*.h5"))

    def _wanted(self, ranks):
        world = self._world()
        beyond = [rank for rank in ranks or () if not 0 <= rank < world]
        if beyond:
            raise CpstepFileError(f"{self.directory}: no rank {beyond[0]}; the run had {world}")
        return range(world) if ranks is None else list(ranks)

    def _world(self):
        if self.file is not None:
            return int(self.file["topology"].attrs["world"])
        with _opened(self._first(), "cpstep-trace") as file:
            return int(file.attrs["world"])


def _opened(path, wanted):
    """Open for reading; with swmr while it is written or after its writer was killed."""
    try:
        try:
            file = h5py.File(path, "r")
        except OSError:
            file = h5py.File(path, "r", libver="latest", swmr=True)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise CpstepFileError(f"{path}: not readable: {reason} (cut off before its first step was written?)") from None
    found = file.attrs.get("format", b"")
    found = found.decode() if isinstance(found, bytes) else str(found)
    version = int(file.attrs.get("format_version", 0))
    if found != wanted or not 1 <= version <= NEWEST_VERSION:
        file.close()
        raise CpstepFileError(f"{path}: format '{found}' version {version}, expected '{wanted}' up to {NEWEST_VERSION}")
    return file
