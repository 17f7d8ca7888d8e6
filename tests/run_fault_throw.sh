#!/bin/bash
# run_fault_throw.sh MPIEXEC PROGRAM: three ranks, rank 1 throws with exit code 9; the job must end within 5 s of its
# message (the launcher's own start is not counted).
mpiexec=$1
program=$2
errors=$(mktemp) || exit 1
trap 'rm -f "$errors"' EXIT

# Every line with the time it came, in ns.
stamped() { while IFS= read -r line; do echo "$(date +%s%N) $line"; done >"$errors"; }

timeout -k 2 25 "$mpiexec" -n 3 "$program" 2> >(stamped)
status=$?
ended=$(date +%s%N)
wait $!
said=$(sed -nE 's/^([0-9]+) cpstep: \[rank 1\/3 [^]]*\] planted failure$/\1/p' "$errors")
all_lines=$(grep -cE '^[0-9]+ cpstep: ' "$errors")

if [ "$status" -ne 9 ] || [ "$(wc -w <<<"$said")" -ne 1 ] || [ "$all_lines" -ne 1 ] ||
    [ $((ended - said)) -gt 5000000000 ]; then
    echo "exit code $status (want 9; 124: hung), messages of rank 1 at '$said' of $all_lines (want 1), end at $ended"
    cat "$errors"
    exit 1
fi
