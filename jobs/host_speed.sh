#!/bin/bash
# host_speed.sh: one training forward + loss + backward of the 0.5B model, 512 tokens, all cores, against PyTorch.
# host_speed.sh --memory: peak memory of one rank against the number of tokens; linear if the last column is flat.
# jobs/README.md says what is measured and holds the results. ROUNDS=n runs both sides n times in turn.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${ROUNDS:-2}
program=${CPSTEP:-build/host/bin/cpstep}
python=${PYTHON:-/usr/bin/python3}  # Debian's PyTorch belongs to Debian's Python
model=inputs/qwen2.5-0.5b
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# set_command MODEL TOKENS OUTPUT [OPTIONS]: one rank, one sequence of random tokens, random weights.
set_command() {
    command=(mpirun -np 1 --bind-to none "$program" run --init random --hf-checkpoint "$1"
             --rollout-batch-size 1 --rollout-prompt-len 1 --rollout-max-response-len $(($2 - 1)) --rollout-fixed-response-len
             --n-samples-per-prompt 1 --global-batch-size 1 --entropy-coef 0.01
             --context-parallel-size 1 --output "$3" "${@:4}")
}

# Runs "$@" with its output in $tmp/log; shows the end of it and stops if it fails.
logged() { "$@" >"$tmp/log" 2>&1 || { tail -20 "$tmp/log" >&2; exit 1; }; }

# Peak resident KiB of the largest process that the command started (the program, not mpirun).
peak_of='import resource, subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)'

memory() {
    local before=0 tokens kib grown
    printf '%8s %10s %22s\n' tokens "peak MiB" "KiB per added token"
    for tokens in 1024 2048 4096 8192 16384; do
        set_command inputs/tiny $tokens "$tmp/$tokens" --blocks 0 --quiet
        logged "$python" -c "$peak_of" "$tmp/peak" "${command[@]}"
        kib=$(cat "$tmp/peak")
        grown=$([ $before = 0 ] || awk "BEGIN {printf \"%.1f\", 2 * ($kib - $before) / $tokens}")
        printf '%8d %10d %22s\n' $tokens $((kib / 1024)) "$grown"
        before=$kib
    done
}

# Both sides in turn, so that a slow minute of the machine meets both. One JSON file a run.
measure() {
    local round
    for round in $(seq "$rounds"); do
        set_command $model 512 "$tmp/run$round" --warmup-steps 1 --blocks 2
        logged "${command[@]}"
        cp "$tmp/run$round/summary.json" "$tmp/cpstep.$round.json"
        rm -rf "$tmp/run$round"
        logged "$python" jobs/host_speed_torch.py $model/config.json 512 3
        tail -1 "$tmp/log" >"$tmp/torch.$round.json"
    done
}

# Medians of both sides and their ratio, from the JSON files of measure.
table='import glob, json, statistics, sys
phases = ("train_forward", "loss", "backward")
load = lambda name: [json.load(open(f)) for f in sorted(glob.glob(sys.argv[1] + "/" + name))]
ours, theirs = load("cpstep.*.json"), load("torch.*.json")
times = [[r["variants"][0]["timing"]["rank0_phases_s"][p] for p in phases] for r in ours]
rows = {"cpstep": [sum(t) for t in times], "PyTorch": [s for r in theirs for s in r["seconds"]]}
print("{:<10} {:>9} {:>8} {:>8} {:>8}".format("side", "median s", "min", "max", "values"))
for name, s in rows.items():
    print(f"{name:<10} {statistics.median(s):9.3f} {min(s):8.3f} {max(s):8.3f} {len(s):8d}")
print("cpstep by phase:", ", ".join(f"{p} {statistics.median(t):.3f}" for p, t in zip(phases, zip(*times))))
ratio = statistics.median(rows["cpstep"]) / statistics.median(rows["PyTorch"])
print(f"ratio cpstep / PyTorch: {ratio:.3f}")
print(ours[0]["run"]["version"], "|", ours[0]["run"]["backend"])
print("PyTorch", theirs[0]["version"], "|", theirs[0]["threads"], "threads, float32")'

if [ "${1:-}" = --memory ]; then
    memory
    exit
fi
measure
"$python" -c "$table" "$tmp"
echo "$(lscpu | sed -n 's/^Model name: *//p'), $(nproc) cores, $(date -u +%F), load $(cut -d' ' -f1 /proc/loadavg)"
