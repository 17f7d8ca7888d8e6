#!/bin/bash
# gpu.sh SECTION...: all that needs a GPU, in sections of under ten minutes; each ends with a short table.
#   tests     every test that asks for a device, those of several ranks on 1 to 4; failures under way
#   golden    golden data, float32 and bf16, on 1, 2 and 4 ranks, over each wire
#   selftest  planted faults on 2, 3 and 4 ranks
#   sizes     inputs/qwen2.5-0.5b-*.ini, CP=2 against CP=1; timed where each rank has a GPU
#   speed     forward + backward and the whole step beside PyTorch; share and floor of each phase
#   trace     what tracing costs a step, CP=1 and CP=2, over ipc, nccl, and nccl with communicators that block
#   attention calls of a CP=2 rank against the whole sequence's, without wires
#   sanitize  compute-sanitizer's memcheck, racecheck and initcheck on the smoke run
#   all       these, each with its own limit
# Environment: BUILD (build/cuda; made if it holds no program), OUT (out/gpu: SECTION.log, SECTION.tgz), LIMIT (seconds
# of a section, 570), ONLY (a pattern of the rows to run, as ONLY='16k|32k'), NP (ranks of sizes and sanitize, 2),
# MPIRUN (one word), PYTHON (with h5py, torch, transformers), SANITIZER.
# Ranks share a GPU where there are fewer GPUs than ranks.
# Exit: 0 all passed, 1 something failed, was skipped or had no time left, 2 usage, 3 no GPU or no program.
# shellcheck disable=SC2317  # sections are called by name
set -euo pipefail
cd "$(dirname "$0")/.."

build=${BUILD:-build/cuda}
out=${OUT:-out/gpu}
limit=${LIMIT:-570}
only=${ONLY:-.}
ranks=${NP:-2}
mpirun=${MPIRUN:-mpirun}
python=${PYTHON:-python3}
sanitizer=${SANITIZER:-compute-sanitizer}
program=$build/bin/cpstep
model=inputs/qwen2.5-0.5b
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_btl_vader_single_copy_mechanism=none
export NCCL_NVLS_ENABLE=0 PYTHONDONTWRITEBYTECODE=1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
failed=0

# record NAME RESULT SECONDS NOTE: a row of the section's table; any result but "ok" fails the script.
record() {
    [ "$2" = ok ] || failed=1
    printf '%-28s %-8s %5d s  %s\n' "$1" "$2" "$3" "$4" >>"$rows"
}

# What a command said last of its outcome: Boost.Test, golden.py, the self-test, a verdict, an error.
outcome() {
    grep -aE '^(\*\*\*|golden:|self-test:|verdict:|cpstep: |[0-9]+ passed, |[A-Za-z.]*Error)' "$1" | tail -1 | cut -c1-100
}

# run NAME COMMAND...: runs it within what is left of the section's time; log and row. The row is all that fails.
run() {
    local name=$1 begin=$SECONDS left=$((limit - SECONDS)) code=0 took note
    shift
    if ! [[ $name =~ $only ]]; then return; fi
    printf '\n== %s: %s\n' "$name" "$*" >>"$log"
    if [ "$left" -lt 10 ]; then
        record "$name" "NOT RUN" 0 "no time left of $limit s"
        return
    fi
    timeout -k 10 "$left" "$@" </dev/null >"$tmp/last" 2>&1 || code=$?
    cat "$tmp/last" >>"$log"
    took=$((SECONDS - begin))
    note=$(outcome "$tmp/last") || true
    if [ "$code" -eq 0 ] && grep -q SKIPPED "$tmp/last"; then
        record "$name" SKIPPED "$took" "$note"
    elif [ "$code" -eq 0 ]; then
        record "$name" ok "$took" "$note"
    elif [ "$took" -ge "$left" ]; then
        record "$name" TIMEOUT "$took" "all that was left of $limit s"
    else
        record "$name" FAILED "$took" "exit $code; $note"
    fi
}

# launch RANKS COMMAND...: as words, for run.
launch() { launched=("$mpirun" -np "$1" "${@:2}"); }

# device_options RANKS PRECISION WIRE: sets `device`.
device_options() {
    device=(--device cuda --precision "$2")
    [ "$1" -eq 1 ] || device+=(--transport "$3")
    [ "$gpus" -ge "$1" ] || device+=(--allow-gpu-sharing)
}

section_tests() {
    local sources source stem count
    mapfile -t sources < <(grep -lE 'gpu_present|has_gpu' tests/test_*.cpp)
    [ ${#sources[@]} -gt 0 ] || record tests MISSING 0 "no test asks for a device"
    for source in "${sources[@]}"; do
        stem=$(basename "$source" .cpp)
        if [ ! -x "$build/bin/$stem" ]; then
            record "$stem" MISSING 0 "not in $build/bin"
        elif grep -q test_world "$source"; then
            for count in 1 2 3 4; do
                launch "$count" "$build/bin/$stem"
                run "$stem, $count ranks" "${launched[@]}"
            done
        else
            run "$stem" "$build/bin/$stem"
        fi
    done
    run failures "$python" tests/gpu_failures.py "$program" "$mpirun" .
}

golden_run() {  # RANKS PRECISION WIRE
    device_options "$@"
    run "$2, $1 ranks, $3" "$python" tests/golden.py "$program" "$mpirun" tests/golden "$1" -- "${device[@]}"
}

section_golden() {
    golden_run 1 fp32 self
    golden_run 2 fp32 ipc
    golden_run 4 fp32 ipc
    golden_run 2 fp32 mpi
    golden_run 4 fp32 mpi
    golden_run 2 fp32 nccl
    golden_run 2 bf16 ipc
    golden_run 4 bf16 ipc
    golden_run 2 bf16 mpi
    golden_run 4 bf16 mpi
    golden_run 2 bf16 nccl
}

selftest_run() {  # RANKS WIRE
    device_options "$1" fp32 "$2"
    launch "$1" "$program" run --self-test "${device[@]}"
    run "self-test, $1 ranks, $2" "${launched[@]}"
}

section_selftest() {
    selftest_run 2 ipc
    selftest_run 3 ipc
    selftest_run 4 ipc
    selftest_run 2 mpi
    selftest_run 2 nccl
}

# keep NAME FOLDER: summary.json of a run as NAME.json among the section's results; the rest is not kept.
keep() {
    if [ -f "$2/summary.json" ]; then mv "$2/summary.json" "$results/$1.json"; fi
    rm -rf "$2"
}

section_sizes() {
    local name
    device_options "$ranks" bf16 ipc
    [ "$gpus" -ge "$ranks" ] || device+=(--blocks 0)  # times of ranks that share a GPU say nothing
    for name in 8x1024 16k 32k 64k; do
        launch "$ranks" "$program" run --config "$model-$name.ini" --output "$tmp/run" "${device[@]}"
        run "$name" "${launched[@]}"
        keep "$name" "$tmp/run"
    done
    table sizes
}

speed_run() {  # SAMPLES TOKENS TOKENS_A_PACK
    local prompts=$1 each=1
    if [ "$1" -gt 1 ]; then prompts=$(($1 / 2)) each=2; fi
    device_options 1 bf16 self
    launch 1 "$program" run --init random --hf-checkpoint "$model" --rollout-batch-size "$prompts" \
        --n-samples-per-prompt "$each" --global-batch-size "$1" --rollout-prompt-len 1 \
        --rollout-max-response-len $(($2 - 1)) --rollout-fixed-response-len --rollout-noise 0.001 \
        --disable-rewards-normalization --advantage-estimator gspo --eps-clip 3.5e-4 --eps-clip-high 4e-4 \
        --use-kl-loss --kl-loss-type low_var_kl --kl-loss-coef 0.01 --entropy-coef 0.001 \
        --use-dynamic-batch-size --max-tokens-per-gpu "$3" --context-parallel-size 1 \
        --warmup-steps 2 --blocks 5 --quiet --output "$tmp/run" "${device[@]}"
    run "cpstep $1x$2" "${launched[@]}"
    keep "$1x$2" "$tmp/run"
}

section_speed() {
    run PyTorch "$python" jobs/gpu_speed_torch.py "$model/config.json" --json "$results/torch.json"
    speed_run 8 1024 2048
    speed_run 1 2048 2048
    speed_run 1 8192 8192
    speed_run 1 16384 16384
    speed_run 1 32768 32768
    table speed "$model/config.json"
}

# Traced and not traced steps of one run, in turn within each block.
trace_run() {  # NAME WIRE BLOCKS
    local cp=(--variant "cp1-off:context-parallel-size=1,trace-detail=off")
    [ "$ranks" -eq 1 ] || cp+=(--variant "cp$ranks:context-parallel-size=$ranks" \
        --variant "cp$ranks-off:context-parallel-size=$ranks,trace-detail=off")
    device_options "$ranks" bf16 "$2"
    launch "$ranks" "$program" run --config "$model-8x1024.ini" --cp-comm-type all_gather --cp-loss-comm scalar \
        --trace-detail passes "${cp[@]}" --warmup-steps 3 --blocks "$3" --quiet --output "$tmp/run" "${device[@]}"
    run "trace, $1" "${launched[@]}"
    keep "$1" "$tmp/run"
}

# NCCL starts a thread for each call of a non-blocking communicator, and steps then vary by about what tracing costs: that
# row has more blocks, and one whose communicators block stands beside it.
section_trace() {
    trace_run ipc ipc 12
    if [ "$ranks" -gt 1 ]; then
        trace_run nccl nccl 48
        NCCL_COMM_BLOCKING=1 trace_run nccl-blocking nccl 12
    fi
    table trace
}

section_attention() {
    rm -f "$tmp/last"
    run attention "$build/bin/bench_attention"
    if [ -f "$tmp/last" ]; then cp "$tmp/last" "$tmp/table"; fi
}

# Errors in the ranks' logs of one sanitizer run, and how many of them name a kernel of ours; no summary is an error.
sanitizer_errors() {
    local file total=0 ours found
    for file in "$tmp"/sanitizer.*.log; do
        found=$(grep -aoE 'SUMMARY: [0-9]+' "$file" | tail -1 | grep -oE '[0-9]+') || found=1
        total=$((total + found))
    done
    ours=$(cat "$tmp"/sanitizer.*.log | grep -aE '=+ +at |Race reported' | grep -c cpstep) || true
    echo "$total errors, $ours places in kernels of cpstep"
}

# sanitizer_report NAME RANKS: the ranks' logs to the section's, what they say to the row just written.
sanitizer_report() {
    local rank note
    for ((rank = 0; rank < $2; ++rank)); do
        [ -f "$tmp/sanitizer.$rank.log" ] || echo "no log" >"$tmp/sanitizer.$rank.log"
        { echo "-- $1, rank $rank"; cat "$tmp/sanitizer.$rank.log"; } >>"$log"
    done
    note=$(sanitizer_errors)
    case $note in
        "0 errors"*) ;;
        *) failed=1 ;;
    esac
    sed -i "\$s/\$/; $note/" "$rows"
}

# Races are looked for in our kernels, on fewer samples since each access is followed; reads of uninitialised memory in
# all, since libraries write what ours read, and in fp32, since initcheck does not see what a bf16 product of cuBLASLt
# stores (it reports PyTorch's too). Nor does it see what a peer wrote over ipc. Calls of the smoke run are too small for
# cuDNN and mma: cuDNN is in its start-up test, which only memcheck has, since it reads workspace of its own that
# nothing wrote and breaks racecheck; mma is asked for.
sanitize_run() {  # TOOL PRECISION WIRE
    local name="$1, $2, $3" checks=()
    if ! [[ $name =~ $only ]]; then return; fi
    case $1 in
        memcheck) checks=(--report-api-errors no) ;;  # the program checks every call itself
        racecheck) checks=(--kernel-name kns=cpstep) ;;
    esac
    device_options "$ranks" "$2" "$3"
    case $1-$2-$3 in
        memcheck-bf16-ipc) device+=(--attention-backend mma) ;;
        memcheck-*) ;;
        *) device+=(--attention-backend reference) ;;
    esac
    [ "$1" != racecheck ] || device+=(--rollout-batch-size 1 --global-batch-size 2 --rollout-max-response-len 16 \
        --cp-loss-comm scalar)
    rm -f "$tmp"/sanitizer.*.log
    launch "$ranks" "$sanitizer" --tool "$1" "${checks[@]}" --error-exitcode 99 \
        --log-file "$tmp/sanitizer.%q{OMPI_COMM_WORLD_RANK}.log" "$program" run --config inputs/smoke.ini \
        --blocks 0 --comm-timeout 300 --output "$tmp/run" "${device[@]}"
    run "$name" "${launched[@]}"
    rm -rf "$tmp/run"
    sanitizer_report "$name" "$ranks"
}

# What is looked for in bf16 kernels test by test. Races: whatever racecheck is told to follow, it fails itself ("failed
# to handle a hardware exception") at some bf16 products of cuBLASLt, PyTorch's among them, so the cases of `head` are
# those without.
test_run() {  # TOOL TEST CASES [ARGUMENT...]
    local name="$1, bf16, $2"
    if ! [[ $name =~ $only ]]; then return; fi
    rm -f "$tmp"/sanitizer.*.log
    run "$name" "$sanitizer" --tool "$1" --kernel-name kns=cpstep --error-exitcode 99 \
        --log-file "$tmp/sanitizer.0.log" "$build/bin/test_cuda_$2" --run_test="$3" "${@:4}"
    sanitizer_report "$name" 1
}

section_sanitize() {
    if ! command -v "$sanitizer" >/dev/null; then sanitizer=/usr/local/cuda/bin/compute-sanitizer; fi
    sanitize_run memcheck bf16 mpi
    sanitize_run memcheck bf16 ipc
    sanitize_run memcheck fp32 mpi
    sanitize_run racecheck fp32 mpi
    sanitize_run initcheck fp32 mpi
    test_run racecheck layers '*'
    test_run racecheck rows '*'
    test_run racecheck loss '*'
    test_run racecheck head 'head_keeps*,head_of*,head_rows*,all_equal*,bias*,equal_calls_of_the_head*'
    test_run racecheck attention 'heads_of*,rows_without*' -- own
    test_run initcheck attention 'heads_of*,rows_without*' -- own
}

# table SECTION [ARGUMENT]: the numbers of its results, below the rows.
table() {
    "$python" jobs/gpu_table.py "$1" "$results" "${@:2}" >"$tmp/table" 2>&1 || failed=1
}

# The card, its driver and the compiler's release, for the table's heading.
machine() {
    local card
    card=$(nvidia-smi --query-gpu=count,name,driver_version,memory.total --format=csv,noheader | head -1)
    echo "$(date -u +%F) | GPUs: $card | $("$program" --version)"
}

section() {
    SECONDS=0
    log=$out/$1.log rows=$tmp/$1.rows results=$tmp/$1
    mkdir -p "$results"
    : >"$log"
    : >"$rows"
    : >"$tmp/table"
    "section_$1"
    [ -s "$rows" ] || record "$1" "NOT RUN" 0 "no row matches '$only'"
    { echo; echo "$1 | $(machine)"; cat "$rows" "$tmp/table"; } | tee -a "$log"
    if compgen -G "$results/*" >/dev/null; then tar czf "$out/$1.tgz" -C "$tmp" "$1"; fi
}

sections=()
for word in "$@"; do
    case $word in
        tests | golden | selftest | sizes | speed | trace | attention | sanitize) sections+=("$word") ;;
        all) sections+=(tests golden selftest sizes speed trace attention sanitize) ;;
        *) sections=(); break ;;
    esac
done
if [ ${#sections[@]} -eq 0 ]; then
    sed -n '2,11s/^# //p' "$0" >&2
    exit 2
fi

gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || { echo "gpu.sh: no GPU: nvidia-smi -L lists none" >&2; exit 3; }
if [ ! -x "$program" ]; then
    if ! { cmake --preset cuda -B "$build" && cmake --build "$build"; }; then
        echo "gpu.sh: no program in $build and none can be built there" >&2
        exit 3
    fi
fi
mkdir -p "$out"
for word in "${sections[@]}"; do
    section "$word"
done
exit $failed
