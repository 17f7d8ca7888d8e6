"""Tables of gpu.sh: what summary.json files and gpu_speed_torch.py say, beside what the card could do at best.

usage: gpu_table.py sizes FOLDER
       gpu_table.py trace FOLDER
       gpu_table.py speed FOLDER CONFIG_JSON
FOLDER holds summary.json files as NAME.json, for speed as SAMPLESxTOKENS.json, and torch.json; those of trace are
named by the row and have variants NAME and NAME-off.
Exit 1 if a goal is missed: a verdict that is not "pass", a memory plan more than 10 % off the peak, a time or a peak
not below PyTorch's, a trace that costs 1 % of a step.
"""
import json
import pathlib
import sys

GIB = 2 ** 30
TRAINING = ("train_forward", "loss", "backward")
FORWARD = ("ref_forward", "old_forward", "train_forward")


def load(folder):
    """Name -> content of every file, by the number of tokens."""
    files = {path.stem: json.loads(path.read_text()) for path in pathlib.Path(folder).glob("*.json")}
    return dict(sorted(files.items(), key=lambda item: (item[1]["run"]["tokens"] if "run" in item[1] else 0, item[0])))


def gib(count):
    return f"{count / GIB:.1f}" if count else "-"


def memory_of(summary):
    """Planned bytes and the largest peak of a rank; None where they are not known."""
    ranks = summary.get("memory", {}).get("ranks", [])
    peaks = [rank["peak_bytes"] for rank in ranks if rank["peak_bytes"]]
    return (max(rank["planned_bytes"] for rank in ranks) if ranks else None), max(peaks, default=None)


def timing_cells(variant):
    if "timing" not in variant:
        return f"{'not timed':>9} {'':>22} {'':>10}"
    t = variant["timing"]
    ratio = "1 (baseline)"
    if variant["cp"] > 1:
        ratio = "{ratio:.3f} ({ratio_low:.3f} .. {ratio_high:.3f})".format(**t)
    return f"{1e3 * t['median_s']:9.1f} {ratio:>22} {1e3 * t['exposed_comm_s']:10.2f}"


def sizes(runs):
    missed = []
    print(f"{'input':<8} {'variant':<22} {'step ms':>9} {'ratio (95 % CI)':>22} {'exposed ms':>10} {'plan GiB':>9} "
          f"{'peak GiB':>9}")
    for name, summary in runs.items():
        plan, peak = memory_of(summary)
        if summary["verdict"] != "pass":
            missed.append(f"{name}: {summary['verdict']}: {summary['reason']}")
        if plan and peak and abs(plan / peak - 1) > 0.1:
            missed.append(f"{name}: the plan is {plan / peak:.2f} of the peak")
        for variant in summary["variants"]:
            print(f"{name:<8} {variant['name']:<22} {timing_cells(variant)} {gib(plan):>9} {gib(peak):>9}")
    return missed


def trace(runs):
    """NAME-off against NAME, whose steps stand in the same blocks of one run; a run is named by its row."""
    missed = [] if runs else ["nothing was timed"]
    print(f"{'wire':<14} {'variant':<8} {'traced ms':>10} {'not traced ms':>14} {'deviations':>14} {'cost':>8}")
    for wire, summary in runs.items():
        timings = {variant["name"]: variant["timing"] for variant in summary["variants"] if "timing" in variant}
        pairs = [(name, timings[name], timings[name + "-off"]) for name in timings if name + "-off" in timings]
        for name, on, off in pairs:
            cost = on["median_s"] / off["median_s"] - 1
            deviations = "{:.2f}, {:.2f}".format(1e3 * on["mad_s"], 1e3 * off["mad_s"])
            print(f"{wire:<14} {name:<8} {1e3 * on['median_s']:10.2f} {1e3 * off['median_s']:14.2f} {deviations:>14} "
                  f"{100 * cost:6.2f} %")
            if not cost < 0.01:
                missed.append(f"{wire}, {name}: tracing costs {100 * cost:.2f} % of a step")
        if not pairs:
            missed.append(f"{wire}: nothing was timed")
    return missed


class Floor:
    """Seconds below which a phase cannot go on a card of these rates: counted products at the rate of an 8192^3 bf16
    product, the optimizer's bytes at the rate of a copy."""

    def __init__(self, config, rates, parameters):
        self.rates, self.parameters = rates, parameters
        self.h, self.layers, self.vocabulary = (config[k] for k in ("hidden_size", "num_hidden_layers", "vocab_size"))
        self.ffn = config["intermediate_size"]
        self.q = config.get("head_dim", self.h // config["num_attention_heads"]) * config["num_attention_heads"]
        self.kv = self.q * config["num_key_value_heads"] // config["num_attention_heads"]

    def flop(self, phase, tokens):
        """Of one sequence: 2 a weight and token, causal attention 2 q T^2 a layer; backward has two products for each
        one, and five for attention's two."""
        layer = self.h * (2 * self.q + 2 * self.kv) + 3 * self.h * self.ffn
        products = 2 * tokens * (self.layers * layer + self.h * self.vocabulary)
        attention = self.layers * 2 * self.q * tokens ** 2
        if phase in FORWARD:
            return products + attention
        return 2 * products + 2.5 * attention if phase == "backward" else 0

    def seconds(self, phase, samples, tokens):
        if phase == "optimizer":  # norm: g; AdamW: reads w m v g, writes w m v in float32 and w in bf16
            return self.parameters * (4 + 16 + 12 + 2) / self.rates["copy_bytes_per_s"]
        return samples * self.flop(phase, tokens) / self.rates["matmul_flop_per_s"]


def shape_of(name):
    return tuple(int(number) for number in name.split("x"))


def beside(title, kind, runs, torch, seconds_of, peak_of, floor_of):
    """One row a shape that both sides have measured; returns the goals that are missed. A peer with less state than
    cpstep has a time to beat only."""
    missed = []
    print(f"\n{title:<18} {'cpstep ms':>10} {'PyTorch ms (min .. max)':>30} {'ratio':>6} {'floor ms':>9} {'cpstep GiB':>10} "
          f"{'PyTorch GiB':>11}")
    for peer in (e for e in torch if e["kind"] == kind):
        run = runs.get(peer["shape"])
        if run is None:
            continue
        seconds, peak = seconds_of(run), peak_of(run)
        theirs, ratio = "no memory", "-"
        if "median_s" in peer:
            theirs = "{:.1f} ({:.1f} .. {:.1f})".format(*(1e3 * peer[key] for key in ("median_s", "min_s", "max_s")))
            ratio = f"{seconds / peer['median_s']:.2f}"
            if not seconds < peer["median_s"]:
                missed.append(f"{title} {peer['shape']}: not faster than PyTorch")
            if peak and kind != "step" and not peak < peer["peak_bytes"]:
                missed.append(f"{title} {peer['shape']}: peak memory not below PyTorch's")
        print(f"{peer['shape']:<18} {1e3 * seconds:10.1f} {theirs:>30} {ratio:>6} {1e3 * floor_of(peer['shape']):9.1f} "
              f"{gib(peak):>10} {gib(peer['peak_bytes']):>11}")
    return missed


def phases(runs, floor):
    """Milliseconds, share of the step, and multiple of the floor of each phase."""
    print("\n" + f"{'ms, share, x floor':<18}" + "".join(f" {name:>22}" for name in runs))
    for phase in (*FORWARD, "loss", "backward", "optimizer", "rest"):
        row = f"{phase:<18}"
        for name, run in runs.items():
            timing = run["variants"][0]["timing"]
            spent = timing["rank0_phases_s"]
            seconds = spent.get(phase, 0.0) if phase != "rest" else timing["median_s"] - sum(spent.values())
            least = floor.seconds(phase, *shape_of(name))
            times = f"x{seconds / least:.1f}" if least > 0 else ""
            row += f" {1e3 * seconds:10.2f} {100 * seconds / timing['median_s']:4.0f}% {times:>5}"
        print(row)


def speed(files, config_file):
    torch, runs = files.pop("torch", []), files
    facts = {entry["kind"]: entry for entry in torch if "shape" not in entry}
    if not facts or not runs:
        return ["one side has no result"]
    config = json.loads(pathlib.Path(config_file).read_text())
    first = next(iter(runs.values()))["run"]
    floor = Floor(config, facts["rates"], first["parameters"])
    untimed = [name for name, run in runs.items() if "timing" not in run["variants"][0]]
    missed = [f"{name}: not timed: {runs.pop(name)['reason']}" for name in untimed]

    def training(run):
        return sum(run["variants"][0]["timing"]["rank0_phases_s"][phase] for phase in TRAINING)

    def step(run):
        return run["variants"][0]["timing"]["median_s"]

    def peak(run):
        return memory_of(run)[1]

    def peak_without_moments(run):
        """PyTorch has none before its optimizer's first step; two float32 a parameter."""
        return peak(run) and peak(run) - 8 * run["run"]["parameters"]

    def least(*names):
        return lambda shape: sum(floor.seconds(phase, *shape_of(shape)) for phase in names)

    print("{version} | {backend}".format(**first))
    print("PyTorch {torch}, CUDA {cuda}, transformers {transformers}, eager | {card}: ".format(**facts["versions"]) +
          "product {:.0f} TFLOP/s, copy {:.2f} TB/s".format(facts["rates"]["matmul_flop_per_s"] / 1e12,
                                                            facts["rates"]["copy_bytes_per_s"] / 1e12))
    whole = least(*FORWARD, "backward", "optimizer")
    missed += beside("forward + backward", "forward_backward", runs, torch, training, peak_without_moments,
                     least(*TRAINING))
    missed += beside("step, peer bf16", "step", runs, torch, step, peak, whole)
    missed += beside("step, peer float32", "step_fp32_state", runs, torch, step, peak, whole)
    phases(runs, floor)
    return missed


def main():
    what, folder = sys.argv[1:3]
    files = load(folder)
    missed = speed(files, sys.argv[3]) if what == "speed" else {"sizes": sizes, "trace": trace}[what](files)
    for line in missed:
        print("MISSED", line)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
