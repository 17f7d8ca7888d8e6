#!/bin/sh
# run_fault_throw.sh MPIEXEC PROGRAM: three ranks, rank 1 throws with exit code 9.
mpiexec=$1
program=$2
errors=$(mktemp) || exit 1
trap 'rm -f "$errors"' EXIT

timeout -k 2 5 "$mpiexec" -n 3 "$program" 2>"$errors"
status=$?
lines=$(grep -c '^cpstep: \[rank 1/3 [^]]*\] planted failure$' "$errors")
all_lines=$(grep -c '^cpstep: ' "$errors")

if [ "$status" -ne 9 ] || [ "$lines" -ne 1 ] || [ "$all_lines" -ne 1 ]; then
    echo "exit code $status (want 9; 124: hung), $lines of $all_lines messages from rank 1 (want 1 of 1)"
    cat "$errors"
    exit 1
fi
