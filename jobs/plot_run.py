#!/usr/bin/env python3
"""Three pictures of a run of cpstep, as PNG: step times, where the time goes, and one step on the ranks' time line.

    plot_run.py out/smoke                    # out/smoke/plots/{steps,breakdown,timeline}.png
    plot_run.py out/smoke --output figures --step 12 --ranks 0,7

Works on a finished run and on what a killed one left. An example to copy from: the numbers come from cpstep_files.py,
the drawing is matplotlib (Debian 12: python3-matplotlib).
"""
import argparse
import json
import pathlib
import sys

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from cpstep_files import CpstepFileError, load_breakdown, load_events, load_steps

RESAMPLES, SEED = 2000, 1234
FIRST_RANKS = 8  # of a time line, unless --ranks names others
COLOURS = {"compute": "#2b6cb0", "pass": "#63b3ed", "comm": "#dd6b20", "wait": "#e53e3e",
           "compute, communication under it": "#f6ad55", "exposed communication": "#dd6b20", "other": "#a0aec0"}


def measured(steps):
    """The timed steps; of a run that did not end, all steps."""
    timed = steps[steps.block.fillna(-1) >= 0]
    return timed if len(timed) else steps


def median_interval(values):
    """95 % bootstrap interval of the median."""
    draw = np.random.default_rng(SEED)
    medians = np.median(draw.choice(values, (RESAMPLES, len(values))), axis=1)
    return np.percentile(medians, [2.5, 97.5])


def recorded_ratios(directory):
    """{variant: text} of the ratios that the run itself computed over its blocks, with their intervals."""
    summary = pathlib.Path(directory) / "summary.json"
    if not summary.exists():
        return {}
    timings = {v["name"]: v.get("timing", {}) for v in json.loads(summary.read_text())["variants"]}
    return {name: f"x{t['ratio']:.3f} ({t['ratio_low']:.3f} .. {t['ratio_high']:.3f})" for name, t in timings.items()
            if t.get("ratio") is not None and t.get("ratio_low") is not None}


def plot_steps(directory, steps, file):
    """Every step as a point, the median with its interval beside them, and the ratio to the baseline."""
    variants = list(dict.fromkeys(steps.variant))
    ratios = recorded_ratios(directory)
    base = steps.seconds[steps.variant == variants[0]].median()
    figure, axes = plt.subplots(figsize=(1 + 2.4 * len(variants), 4.5), layout="constrained")
    draw = np.random.default_rng(SEED)
    for at, variant in enumerate(variants):
        ms = steps.seconds[steps.variant == variant].to_numpy() * 1e3
        middle, (low, high) = np.median(ms), median_interval(ms)
        axes.plot(at + draw.uniform(-0.15, 0.05, len(ms)), ms, "o", ms=4, alpha=0.5, color=COLOURS["pass"])
        axes.errorbar(at + 0.2, middle, [[middle - low], [high - middle]], fmt="D", capsize=5, color=COLOURS["compute"])
        ratio = ratios.get(variant, f"x{middle * 1e-3 / base:.3f} (of medians)") if at else "baseline"
        axes.annotate(f"{middle:.2f} ms\n{ratio}", (at + 0.2, middle), (9, 0), textcoords="offset points", va="center",
                      fontsize=8)
    axes.set_xticks(range(len(variants)), variants)
    axes.set(ylabel="step time, ms (slowest rank)", title="Step time: median, 95 % interval, ratio to the baseline",
             xlim=(-0.5, len(variants) - 0.05))
    axes.set_ylim(bottom=0)
    figure.savefig(file, dpi=150)


def plot_breakdown(parts, steps, file):
    """Mean over ranks and measured steps: compute without and with communication under it, exposed communication, the rest."""
    parts = parts[parts.step.isin(steps.step)].dropna()
    if parts.empty:
        raise CpstepFileError("the measured steps were not traced (--trace-detail off)")
    mean = parts.groupby("variant", sort=False, observed=True)[["compute", "comm", "exposed_comm", "other"]].mean() * 1e3
    mean = mean.loc[list(dict.fromkeys(steps.variant))]
    hidden = mean.comm - mean.exposed_comm
    stack = {"compute": mean.compute - hidden, "compute, communication under it": hidden,
             "exposed communication": mean.exposed_comm, "other": mean.other}
    figure, axes = plt.subplots(figsize=(2.5 + 1.5 * len(mean), 4.5), layout="constrained")
    bottom = np.zeros(len(mean))
    for name, values in stack.items():
        axes.bar(mean.index, values, 0.6, bottom, label=name, color=COLOURS[name])
        bottom += values.to_numpy()
    axes.set(ylabel="ms of a step, mean over ranks and steps", title="Where the time of a step goes")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(file, dpi=150)


def plot_timeline(events, step, file):
    """One step: two lanes a rank, what it computes above, its communication calls below."""
    events = events[(events.step == step) & (events.kind != "step")]
    ranks = sorted(events["rank"].unique())
    begin = events.t0_ns.min()
    leaves = "compute" if (events.kind == "compute").any() else "pass"  # timed steps on a GPU have passes only
    figure, axes = plt.subplots(figsize=(11, 1.2 + 0.7 * len(ranks)), layout="constrained")
    for row, rank in enumerate(ranks):
        own = events[events["rank"] == rank]
        for kind, lane in ((leaves, 0), ("wait", 0), ("comm", 0.42)):
            spans = own[own.kind == kind]
            bars = np.column_stack([spans.t0_ns - begin, spans.dur_ns]) * 1e-6
            axes.broken_barh(bars, (row + lane, 0.38), color=COLOURS[kind], label=kind if row == 0 else None)
    axes.set_yticks(np.arange(len(ranks)) + 0.4, [f"rank {rank}" for rank in ranks])
    axes.invert_yaxis()
    axes.set(xlabel="ms since the first span", title=f"Step {step}: {events.variant.iloc[0]}")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(file, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("directory", help="--output folder of a run")
    parser.add_argument("--output", metavar="DIR", help="folder of the pictures; default: DIRECTORY/plots")
    parser.add_argument("--step", type=int, help="of the time line; default: the last one of the last variant")
    parser.add_argument("--ranks", help=f"of the time line, e.g. 0,7; default: the first {FIRST_RANKS}")
    arguments = parser.parse_args()
    output = pathlib.Path(arguments.output or pathlib.Path(arguments.directory) / "plots")
    try:
        steps = measured(load_steps(arguments.directory))
        parts = load_breakdown(arguments.directory)
        step = arguments.step
        if step is None:
            traced = steps[steps.step.isin(parts.dropna().step)]
            if traced.empty:
                raise CpstepFileError(f"{arguments.directory}: no step was traced (--trace-detail off)")
            last = list(dict.fromkeys(traced.variant))[-1]
            step = int(traced[traced.variant == last].step.iloc[-1])
        if step not in set(parts.dropna().step):
            raise CpstepFileError(f"{arguments.directory}: no traced step {step}; "
                                  f"there are {parts.step.min()} to {parts.step.max()}")
        there = sorted(parts["rank"].unique())
        ranks = [int(r) for r in arguments.ranks.split(",")] if arguments.ranks else there[:FIRST_RANKS]
        output.mkdir(parents=True, exist_ok=True)
        plot_steps(arguments.directory, steps, output / "steps.png")
        plot_breakdown(parts, steps, output / "breakdown.png")
        plot_timeline(load_events(arguments.directory, ranks), step, output / "timeline.png")
    except CpstepFileError as error:
        print(f"plot_run: {error}", file=sys.stderr)
        return 4
    print(f"{output}: steps.png, breakdown.png, timeline.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
