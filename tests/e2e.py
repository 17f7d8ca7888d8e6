"""What the end-to-end tests share: starting the program, its inputs as bytes, and a runner of test_* functions."""
import hashlib
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import numpy as np

LIMIT_S = 240  # of one start of the program; a test that needs it has failed

QUICK_S = 30  # a refusal; leaves room for a machine that others use
SMALL_BYTES = 400 << 20  # peak of a process that refuses; a claimed size of 2^64-1 or of 100 MB a copy is far above


class Result:
    def __init__(self, code, out, err, seconds, peak_bytes=0):
        self.code, self.out, self.err, self.seconds, self.peak_bytes = code, out, err, seconds, peak_bytes

    @property
    def said(self):
        """Lines of the program on stderr; the launcher's own banner is left out."""
        return [line for line in self.err.splitlines() if line.startswith("cpstep: ")]

    def __str__(self):
        return f"exit {self.code} after {self.seconds:.1f} s\n{self.out[-3000:]}\n{self.err[-3000:]}"


class Program:
    def __init__(self, cpstep, mpiexec, source):
        self.cpstep, self.mpiexec = pathlib.Path(cpstep).resolve(), mpiexec
        self.source = pathlib.Path(source).resolve()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="cpstep_e2e_"))
        self.made = 0
        self.smoke = {}  # of smoke_run()

    def path(self, name="out"):
        """A fresh path below the test's folder."""
        self.made += 1
        return self.folder / f"{self.made:03}-{name}"

    def environment(self, more=None):
        env = {k: v for k, v in os.environ.items() if not k.startswith("CPSTEP_")}
        for name in ("ALLOW_RUN_AS_ROOT", "ALLOW_RUN_AS_ROOT_CONFIRM", "MCA_rmaps_base_oversubscribe"):
            env.setdefault("OMPI_" + name, "1")
        env.setdefault("OMPI_MCA_hwloc_base_binding_policy", "none")
        env.setdefault("OPENBLAS_NUM_THREADS", "1")
        return {**env, **(more or {})}

    def line(self, arguments, ranks=2):
        launcher = [self.mpiexec, "-np", ranks] if ranks else []
        return [str(word) for word in [*launcher, self.cpstep, *arguments]]

    def start(self, line, env=None, cwd=None):
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                                env=self.environment(env), cwd=cwd or self.source, start_new_session=True)

    def finish(self, process):
        """Waits, with the limit; the process that a test began is ended by its own process group."""
        begin = time.monotonic()
        timer = threading.Timer(LIMIT_S, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            out, err = process.communicate()
        finally:
            timer.cancel()
        return Result(process.returncode, out, err, time.monotonic() - begin)

    def execute(self, line, env=None, cwd=None):
        return self.finish(self.start(line, env, cwd))

    def run(self, *arguments, ranks=2, env=None, cwd=None):
        """`cpstep run ARGUMENTS` under the launcher, or without it for ranks=0."""
        return self.execute(self.line(["run", *arguments], ranks), env, cwd)

    def alone(self, *arguments):
        """One process without the launcher, with its peak resident size."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            begin = time.monotonic()
            process = subprocess.Popen(self.line(["run", *arguments], 0), stdout=out, stderr=err,
                                       env=self.environment(), cwd=self.source)
            timer = threading.Timer(LIMIT_S, process.kill)
            timer.start()
            _, status, usage = os.wait4(process.pid, 0)
            timer.cancel()
            process.returncode = os.waitstatus_to_exitcode(status)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
            return Result(process.returncode, *texts, time.monotonic() - begin, usage.ru_maxrss * 1024)


def smoke(output, *more):
    """Arguments of the smoke run with one CP variant, cp2, without timing."""
    return ["--config", "inputs/smoke.ini", "--output", output, "--quiet",
            *(() if "--cp-loss-comm" in more else ("--cp-loss-comm", "scalar")),
            *(() if "--blocks" in more else ("--blocks", "0")), *more]


def expect(condition, message):
    if not condition:
        raise AssertionError(str(message))


def expect_code(result, code):
    expect(result.code == code, f"expected exit {code}: {result}")


def snapshot(folder):
    """Hash of every file below the folder."""
    folder = pathlib.Path(folder)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
            for p in sorted(folder.rglob("*"))}


def summary_of(output):
    return json.loads((pathlib.Path(output) / "summary.json").read_text())


def smoke_run(program):
    """The timed smoke run, with one CP variant, that many tests read: output folder, result, summary."""
    done = program.smoke
    if not done:
        output = program.path("smoke")
        result = program.run("--config", "inputs/smoke.ini", "--cp-loss-comm", "scalar", "--output", output,
                             "--blocks", "3")
        expect_code(result, 0)
        done.update(output=output, result=result, summary=summary_of(output))
    return done["output"], done["result"], done["summary"]


def check_refusal(result, output, code, texts):
    expect_code(result, code)
    expect(len(result.said) == 1, f"expected one line of the program: {result}")
    for text in texts:
        expect(str(text) in result.err, f"'{text}' is missing: {result.said}")
    expect(result.seconds < QUICK_S, f"took {result.seconds:.0f} s")
    expect(output is None or not (output / "run.h5").exists(), "run.h5 was written")
    expect(not result.out.strip(), f"a refused run has no table: {result.out[:300]}")


def refused(program, code, texts, *more, ranks=2, watch=None, env=None):
    """The smoke run with MORE ends with `code` and one line that holds every text. Without the launcher (ranks=0)
    a refusal takes a third of the time; each kind of fault is also met through it."""
    output = program.path()
    if ranks == 0 and "--context-parallel-size" not in more:
        more = (*more, "--context-parallel-size", "1")
    before = snapshot(watch) if watch else None
    result = program.run(*smoke(output, *more), ranks=ranks, env=env)
    check_refusal(result, output, code, texts)
    expect(before is None or snapshot(watch) == before, f"{watch} was changed")
    return result


class Safetensors:
    """A safetensors file as header and bytes, so that a test can break either."""

    def __init__(self, file):
        raw = pathlib.Path(file).read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        self.raw, self.header_end = raw, 8 + size
        self.header = json.loads(raw[8:8 + size])
        self.data = raw[8 + size:]

    def tensors(self):
        """name -> [dtype, shape, bytes], to be changed and given to pack()."""
        return {name: [entry["dtype"], entry["shape"], self.data[slice(*entry["data_offsets"])]]
                for name, entry in self.header.items() if name != "__metadata__"}

    @staticmethod
    def pack(tensors):
        header, data = {}, b""
        for name, (dtype, shape, content) in tensors.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
            data += content
        return Safetensors.join(json.dumps(header), data)

    @staticmethod
    def join(header, data):
        header = header if isinstance(header, bytes) else header.encode()
        return struct.pack("<Q", len(header)) + header + data


def write_rollout(file, rollout):
    import h5py
    with h5py.File(file, "w") as out:
        out.attrs["format"], out.attrs["format_version"] = "cpstep-rollout", np.int64(1)
        for name, values in rollout.items():
            out[name] = values


def make_rollout(samples=4, vocab=384, seed=7):
    """Samples in pairs of a prompt; lengths vary, a few tokens are masked."""
    draw = np.random.default_rng(seed)
    prompts, responses = draw.integers(5, 20, samples), draw.integers(3, 30, samples)
    rollout = {
        "tokens": draw.integers(0, vocab, int((prompts + responses).sum())).astype(np.int32),
        "token_offsets": np.concatenate([[0], np.cumsum(prompts + responses)]).astype(np.int64),
        "response_offsets": np.concatenate([[0], np.cumsum(responses)]).astype(np.int64),
        "rewards": np.arange(samples, dtype=np.float32) % 2,
        "groups": (np.arange(samples) // 2).astype(np.int32),
    }
    rollout["loss_mask"] = (draw.random(int(responses.sum())) > 0.1).astype(np.uint8)
    rollout["loss_mask"][rollout["response_offsets"][:-1]] = 1
    return rollout


def main(tests):
    """Runs each test_* of the module's globals with the Program of the command line."""
    if len(sys.argv) < 4:
        sys.exit(f"usage: {sys.argv[0]} CPSTEP MPIEXEC SOURCE_DIR [TEST ...]")
    program = Program(*sys.argv[1:4])
    chosen = sys.argv[4:] or [name for name in tests if name.startswith("test_")]
    failed = []
    try:
        for name in chosen:
            begin = time.monotonic()
            try:
                tests[name](program)
                verdict = "ok"
            except Exception:  # a test may fail in any way; the others still run
                failed.append(name)
                verdict = "FAILED\n" + traceback.format_exc()
            print(f"{name}: {verdict} ({time.monotonic() - begin:.1f} s)", flush=True)
    finally:
        shutil.rmtree(program.folder, ignore_errors=True)
    print(f"{len(chosen) - len(failed)} passed, {len(failed)} failed" + (": " + " ".join(failed) if failed else ""))
    sys.exit(1 if failed or not chosen else 0)
