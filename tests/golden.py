#!/usr/bin/env python3
"""Golden data of an independent program: all cases, world sizes 1, 2, 4, CP 1, 2, 4, every method, loss path, layout.

usage: golden.py CPSTEP MPIEXEC GOLDEN_FOLDER WORLD [CASE ...] [-- OPTION_OF_CPSTEP ...]
Expected values: float64 Hugging Face Qwen2 and torch (see the folder's README). Bounds are the README's:
log-probs and entropy 2e-4 absolute, losses 1e-4 relative + 1e-5, gradient tensors 1e-3 relative L2.
With "--precision bf16" among the options: check_bf16().
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import h5py
import numpy as np

# Settings of --variant beside the CP size. The golden model has 4 query heads and 2 KV heads.
WAYS = {
    "": "",
    "-all_gather": ",cp-comm-type=all_gather",
    "-a2a": ",cp-comm-type=a2a",
    "-padded": ",cp-loss-comm=padded",
    "-gather": ",cp-loss-comm=gather",
    "-contiguous": ",cp-layout=contiguous",
}
TWO_LEVELS = {
    "-a2a+p2p": ",cp-comm-type=a2a+p2p",
    "-a2a+p2p-contiguous": ",cp-comm-type=a2a+p2p,cp-layout=contiguous,cp-loss-comm=padded",
}
METRICS = ("loss", "pg_loss", "kl_loss", "entropy_loss", "pg_clipfrac", "ppo_kl", "opsm_clipfrac", "tis_clipfrac")


def launch_line(options):
    """Options of a case (letters as in the golden README) as trainer options."""
    line = ["--advantage-estimator", options["adv"], "--eps-clip", str(options["eps"]),
            "--eps-clip-high", str(options["eps_high"]), "--use-kl-loss", "--kl-loss-type", options["kl"],
            "--kl-loss-coef", str(options["klc"]), "--entropy-coef", str(options["ent"])]
    line += ["--eps-clip-c", str(options["dual"])] if "dual" in options else []
    line += ["--use-opsm", "--opsm-delta", str(options["opsm"])] if "opsm" in options else []
    line += ["--use-tis"] if options.get("tis") else []
    line += ["--use-unbiased-kl"] if options.get("unbiased") else []
    line += ["--calculate-per-token-loss"] if options.get("per_token") else []
    return line


def variants_of(world):
    """Name -> --variant argument of all that is compared beside cp1."""
    sizes = [n for n in (2, 4) if world % n == 0]
    return {f"cp{n}{way}": f"cp{n}{way}:context-parallel-size={n}{settings}"
            for n in sizes for way, settings in {**WAYS, **(TWO_LEVELS if n == 4 else {})}.items()}


class Checker:
    def __init__(self):
        self.checked, self.failed = 0, []

    def close(self, what, got, want, rtol, atol):
        """|got - want| <= atol + rtol |want| everywhere; NaN, empty and unequal shapes fail."""
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        self.checked += 1
        ok = got.shape == want.shape and want.size > 0 and bool(np.all(np.abs(got - want) <= atol + rtol * np.abs(want)))
        if not ok:
            worst = float(np.max(np.abs(got - want))) if got.shape == want.shape and want.size else float("nan")
            self.failed.append(f"{what}: max difference {worst:.3g} (rtol {rtol}, atol {atol})")

    def at_most(self, what, error, bound):
        self.checked += 1
        if not error <= bound:
            self.failed.append(f"{what}: relative error {error:.3g} > {bound:.3g}")


def relative_l2(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return np.linalg.norm(got - want) / np.linalg.norm(want) if got.shape == want.shape else float("nan")


def initial_weights(folder):
    raw = (pathlib.Path(folder) / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    weights = {}
    for name, entry in json.loads(raw[8:8 + size]).items():
        if name != "__metadata__":
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            bits = np.frombuffer(raw[begin:end], "<u2").astype(np.uint32) << 16
            weights[name] = bits.view(np.float32).reshape(entry["shape"]).astype(np.float64)
    return weights


def check_variant(check, label, variant, expected, case, weights):
    for name in ("log_probs", "entropy", "ref_log_probs"):
        check.close(f"{label} {name}", variant[name][...], expected[name][...], 0, 2e-4)
    check.close(f"{label} seq_kl", variant["seq_kl"][...], case["seq_kl"][...], 0, 2e-4)
    for name in METRICS:
        check.close(f"{label} {name}", variant.attrs[name], case.attrs[name], 1e-4, 1e-5)
    check.close(f"{label} grad_norm", variant.attrs["grad_norm"], case.attrs["grad_norm"], 1e-3, 0)
    gradients = variant["gradients"]
    for name, norm in case["gradient_norms"].attrs.items():
        check.close(f"{label} |gradient {name}|", np.linalg.norm(gradients[name][...].astype(np.float64)), norm, 1e-3, 0)
    for name in case.get("gradients", ()):
        check.at_most(f"{label} gradient {name}", relative_l2(gradients[name], case["gradients"][name]), 1e-3)
    if "update_norms" in case:
        for name, norm in case["update_norms"].attrs.items():
            update = variant["updated"][name][...].astype(np.float64) - weights[name]
            # A stored weight w has half an ulp of rounding, about |w| 2^-25 each, independent over elements.
            rounding = np.linalg.norm(weights[name]) * 2.0 ** -25
            check.close(f"{label} |update {name}|", np.linalg.norm(update), norm, 1e-3, rounding)


def check_bf16(check, label, variant, base, expected, case):
    """Errors of at most 8 half ulps times the root of the roundings in a row, and, since CP may not add to what bf16
    costs anyway, of at most 1.5 times cp1's error + one half ulp."""
    half_ulp = 2.0 ** -9
    roundings = 2 * 8 + 4  # rows stored by two layers, by embedding, last norm and head; three times that with backward
    estimator = json.loads(case.attrs["options"])["adv"]

    def beside_cp1(name, got, of_cp1, want):
        check.at_most(f"{label} {name} beside cp1", relative_l2(got, want), 1.5 * relative_l2(of_cp1, want) + half_ulp)

    for name in ("log_probs", "entropy", "ref_log_probs"):
        check.at_most(f"{label} {name}", relative_l2(variant[name], expected[name]), 8 * half_ulp * roundings ** 0.5)
        beside_cp1(name, variant[name], base[name], expected[name])
    if estimator == "cispo":  # its gradient does not jump where a ratio is clipped
        for name, norm in case["gradient_norms"].attrs.items():
            length = np.linalg.norm(variant["gradients"][name][...].astype(np.float64))
            check.at_most(f"{label} |gradient {name}|", abs(length / norm - 1), 8 * half_ulp * (3 * roundings) ** 0.5)
    if estimator == "grpo":  # rounding moves single tokens across the clip edge; for gspo it would be whole samples
        for name in case.get("gradients", ()):
            beside_cp1(f"gradient {name}", variant["gradients"][name], base["gradients"][name], case["gradients"][name])


def split_at_dashes(words):
    """What stands before and what after "--"."""
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1:]


def main():
    words, options = split_at_dashes(sys.argv[1:])
    program, mpiexec, golden, world, cases = words[0], words[1], pathlib.Path(words[2]), int(words[3]), words[4:]
    bf16 = "bf16" in options
    expected = h5py.File(golden / "expected.h5", "r")
    weights = initial_weights(golden / "model")
    check = Checker()
    variants = variants_of(world)
    layouts = [word for argument in variants.values() for word in ("--variant", argument)]
    for name in cases or expected["cases"]:
        case = expected["cases"][name]
        with tempfile.TemporaryDirectory() as folder:
            command = [mpiexec, "-np", str(world), program, "run", "--rollout-file", golden / "rollout.h5",
                       "--hf-checkpoint", golden / "model", "--ref-load", golden / "ref_model", "--blocks", "0",
                       *(layouts or ["--context-parallel-size", "1"]), "--save", "gradients,weights",
                       "--lr", "1e-6", "--weight-decay", "0.1", "--adam-beta2", "0.98", "--quiet",
                       "--use-dynamic-batch-size", "--max-tokens-per-gpu", "600", "--output", folder,
                       *launch_line(json.loads(case.attrs["options"])), *options]
            run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
            if run.returncode != 0:
                print(run.stdout, run.stderr)
                check.failed.append(f"{name}: exit {run.returncode}")
                continue
            with h5py.File(pathlib.Path(folder) / "run.h5", "r") as result:
                compared = {"cp1", *variants}
                if set(result["variants"]) != compared:
                    check.failed.append(f"{name} world {world}: variants {sorted(result['variants'])}")
                    continue
                for variant in sorted(compared):
                    label, group = f"{name} world {world} {variant}", result["variants"][variant]
                    if bf16:
                        check_bf16(check, label, group, result["variants"]["cp1"], expected, case)
                    else:
                        check_variant(check, label, group, expected, case, weights)
    for line in check.failed:
        print("FAILED", line)
    print(f"golden: {check.checked} comparisons, {len(check.failed)} failed")
    return 1 if check.failed or check.checked == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
