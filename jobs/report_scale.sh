#!/bin/bash
# report_scale.sh [RANKS [EVENTS]]: cpstep-report on a made-up run of RANKS (1024) rank files with EVENTS (100000) events each.
# Every command must end within LIMIT_S (30) seconds and LIMIT_MIB (1024) MiB, once with cold and once with warm file caches; CPUS
# (0,1) are the cores it gets. Needs 40 bytes of disk an event (DIR, a temporary folder). jobs/README.md holds the results.
set -euo pipefail
cd "$(dirname "$0")/.."
export RANKS=${1:-1024} EVENTS=${2:-100000} LIMIT_S=${LIMIT_S:-30} LIMIT_MIB=${LIMIT_MIB:-1024} CPUS=${CPUS:-0,1}
export PROGRAM=${CPSTEP_REPORT:-build/host/bin/cpstep-report}
tmp=$(mktemp -d -p "${DIR:-${TMPDIR:-/tmp}}")
trap 'rm -rf "$tmp"' EXIT
mkdir "$tmp/run"
/usr/bin/python3 jobs/report_scale_make.py "$tmp/run" --ranks "$RANKS" --events "$EVENTS"
sync
/usr/bin/python3 - "$tmp" <<'EOF'
import os, pathlib, subprocess, sys, time

tmp = pathlib.Path(sys.argv[1])
run = str(tmp / "run")
limit_s, limit_mib = float(os.environ["LIMIT_S"]), float(os.environ["LIMIT_MIB"])
cpus = {int(cpu) for cpu in os.environ["CPUS"].split(",")}
commands = {"DIR": [run], "DIR --json": [run, "--json"], "DIR --csv": [run, "--csv", str(tmp / "rows.csv")],
            "DIR --html": [run, "--html", str(tmp / "page.html")], "recover DIR": ["recover", run],
            "export, one step, perfetto": ["export", run, "--format", "perfetto", "--step", "8", "--output", str(tmp / "p.json")],
            "export, one step, hta": ["export", run, "--format", "hta", "--step", "8", "--output", str(tmp / "hta")],
            "diff DIR DIR": ["diff", run, run]}


def forget(folder):
    """The files leave the page cache."""
    for path in pathlib.Path(folder).rglob("*.h5"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(arguments):
    begin = time.monotonic()
    process = subprocess.Popen([os.environ["PROGRAM"], *arguments], stdout=subprocess.DEVNULL,
                               preexec_fn=lambda: os.sched_setaffinity(0, cpus))
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"{arguments}: exit {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - begin, usage.ru_maxrss / 1024


size = sum(path.stat().st_size for path in pathlib.Path(run).rglob("*.h5"))
print(f"{os.environ['RANKS']} rank files of about {os.environ['EVENTS']} events, {size / 1e9:.2f} GB; load {os.getloadavg()[0]:.1f}")
print(f"{'cpstep-report':<28} {'cold, s':>8} {'warm, s':>8} {'peak MiB':>9}")
bad = []
for name, arguments in commands.items():
    forget(run)
    cold, peak = measure(arguments)
    warm, again = measure(arguments)
    peak = max(peak, again)
    print(f"{name:<28} {cold:>8.2f} {warm:>8.2f} {peak:>9.0f}", flush=True)
    if max(cold, warm) > limit_s or peak > limit_mib:
        bad.append(name)
if bad:
    sys.exit(f"above {limit_s:g} s or {limit_mib:g} MiB: {', '.join(bad)}")
EOF
