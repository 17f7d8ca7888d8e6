#!/bin/bash
# layers.sh [DIR]: the include rules of the source tree in DIR (default: this one); prints each violation.
# layers.sh --self-test: plants one violation at a time in a copy; every one must be found.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
layers=(cuda mpi io app)  # a folder may include itself and those before it
folders="app cuda inputs io jobs mpi tests"

check_tree() {
    local found=0 allowed="" layer hits
    # complain MESSAGE HITS: counts and prints, if there are hits.
    complain() {
        [ -n "$2" ] || return 0
        found=1
        sed "s|^|$1: |" <<<"$2"
    }
    for layer in "${layers[@]}"; do
        allowed+="${allowed:+|}$layer"
        hits=$(grep -rnE '#include "' "$layer" | grep -vE "#include \"($allowed)/" || true)
        complain "includes only ${allowed//|/, }" "$hits"
    done
    hits=$(grep -rnE '#include [<"](mpi|nccl)\.h' cuda io app || true)
    complain "mpi.h and nccl.h only in mpi/" "$hits"
    hits=$(grep -rnE '#include [<"]hdf5(_hl)?\.h' cuda mpi io app | grep -v '^io/h5' || true)
    complain "hdf5.h only in io/h5*" "$hits"
    hits=$(grep -rnE '#include [<"](cuda[a-zA-Z_]*\.h|cublas|cooperative_groups|cub/|nvtx)' "${layers[@]}" |
        grep -vE '^[^:]*(\.cuh?|/cuda_backend\.[a-z]+):' || true)
    complain "CUDA headers only in .cu and .cuh files and cuda_backend.*" "$hits"
    # build/ and out/ are where builds and runs write.
    local present
    present=$(find . -mindepth 1 -maxdepth 1 -type d ! -name '.*' ! -name build ! -name out -printf '%f\n' |
        LC_ALL=C sort | tr '\n' ' ')
    [ "$present" = "$folders " ] || complain "top level folders must be $folders" "$present"
    return $found
}

# plant FILE LINE: LINE added to FILE of the copy must be found.
plant() {
    local kept
    kept=$(mktemp)
    cp "$1" "$kept" 2>/dev/null || rm "$kept"
    mkdir -p "$(dirname "$1")"
    echo "$2" >>"$1"
    planted=$((planted + 1))
    if check_tree >/dev/null; then
        echo "not found: '$2' in $1"
        missed=$((missed + 1))
    fi
    rm "$1"
    if [ -e "$kept" ]; then mv "$kept" "$1"; else rmdir "$(dirname "$1")"; fi
}

if [ "${1:-}" = --self-test ]; then
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    cd "$root"
    read -ra names <<<"$folders"
    cp -r "${names[@]}" "$copy"
    cd "$copy"
    check_tree || { echo "the copy fails before anything is planted"; exit 1; }
    planted=0 missed=0
    plant cuda/tensor.hpp '#include "mpi/comm.hpp"'
    plant mpi/world.cpp '#include "io/trace.hpp"'
    plant io/trace.cpp '#include "app/options.hpp"'
    plant app/run.cpp '#include "tests/close.hpp"'
    plant app/run.cpp '#include <mpi.h>'
    plant io/trace.cpp '#include <nccl.h>'
    plant io/trace.cpp '#include <hdf5.h>'
    plant cuda/norm.cpp '#include <cuda_runtime.h>'
    plant app/step.cpp '#include <cublas_v2.h>'
    plant common/text.hpp '#pragma once'
    check_tree
    echo "$planted planted, $missed missed"
    [ $missed -eq 0 ]
    exit
fi

cd "${1:-$root}"
check_tree
