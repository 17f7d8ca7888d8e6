#!/bin/bash
# install.sh [--check] [--bench] [--cuda] [--deb]: what a build needs, or, with a flag, what `make check`, `make bench`,
# `make cuda` or `make deb` needs too. Where all of it is present nothing is called, and no root is needed.
# Exit: 0 all there, 2 usage, 3 something is missing and cannot be installed from here.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(g++ cmake ninja-build pkg-config libopenmpi-dev openmpi-bin libhdf5-dev
          libboost-program-options-dev libboost-test-dev libopenblas-openmp-dev libfmt-dev
          nlohmann-json3-dev libpcre2-dev libutf8proc-dev python3-h5py python3-numpy python3-pandas
          python3-matplotlib)
cuda=
for word in "$@"; do
    case $word in
        --cuda) cuda=1 ;;
        --check) packages+=(clang-format-19 clang-tidy-19 libomp-19-dev) ;;
        --bench) packages+=(python3-torch) ;;
        --deb) packages+=(dpkg-dev file make) ;;
        *) echo "usage: $0 [--check] [--bench] [--cuda] [--deb]" >&2; exit 2 ;;
    esac
done

# The toolkit is NVIDIA's to install. Headers of cuDNN attention come from PyPI; the program builds without them.
frontend=nvidia-cudnn-frontend==1.32.0
cuda_parts() {
    local folder=build/third_party wheels
    if ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
        echo "missing: nvcc; install the CUDA toolkit (https://developer.nvidia.com/cuda-downloads) or set CUDA_HOME" >&2
        exit 3
    fi
    [ ! -e "$folder/include/cudnn_frontend.h" ] || return 0
    wheels=$(mktemp -d)
    if python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --dest "$wheels" "$frontend" &&
        python3 -m zipfile -e "$wheels"/*.whl "$wheels/unpacked"; then
        mkdir -p "$folder"
        cp -r "$wheels/unpacked/include" "$folder/"
    else
        echo "note: no $frontend from PyPI; attention will run on cpstep's own kernels" >&2
    fi
    rm -rf "$wheels"
}

# Succeeds if the compiler finds one of the headers, given as they are included.
has_header() {
    local header
    for header in "$@"; do
        if echo "#include <$header>" | "${CXX:-g++}" -E -x c++ - >/dev/null 2>&1; then return 0; fi
    done
    return 1
}

# Without dpkg: is what the Debian package of this name brings there, from wherever?
has_substitute() {
    case $1 in
        g++ | cmake | clang-format-19 | clang-tidy-19) command -v "$1" ;;
        ninja-build) command -v ninja || command -v ninja-build ;;
        pkg-config) command -v pkg-config ;;
        libopenmpi-dev) command -v mpicxx ;;
        openmpi-bin) command -v mpirun ;;
        libhdf5-dev) command -v h5cc || pkg-config --exists hdf5 || has_header hdf5.h ;;
        libboost-program-options-dev) has_header boost/program_options.hpp ;;
        libboost-test-dev) has_header boost/test/unit_test.hpp ;;
        libopenblas-openmp-dev) pkg-config --exists openblas || has_header cblas.h openblas/cblas.h ;;
        libfmt-dev) has_header fmt/format.h ;;
        nlohmann-json3-dev) has_header nlohmann/json.hpp ;;
        libpcre2-dev) pkg-config --exists libpcre2-8 ;;
        libutf8proc-dev) has_header utf8proc.h ;;
        libomp-19-dev) compgen -G '/usr/lib*/llvm*/lib/clang/19/include/omp.h' ;;
        python3-*) python3 -c "import ${1#python3-}" ;;
        *) return 1 ;;
    esac >/dev/null 2>&1
}

is_present() {
    if command -v dpkg-query >/dev/null; then
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
    else
        has_substitute "$1"
    fi
}

missing=()
for package in "${packages[@]}"; do
    is_present "$package" || missing+=("$package")
done
if [ -n "$cuda" ]; then cuda_parts; fi
[ ${#missing[@]} -gt 0 ] || exit 0

echo "missing: ${missing[*]}" >&2
as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
if ! command -v apt-get >/dev/null || ! command -v "${as_root[@]:-true}" >/dev/null; then
    echo "install these (Debian's names) with the package manager of this machine, then try again" >&2
    exit 3
fi
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=3)
install=("${apt[@]}" install -y --no-install-recommends "${missing[@]}")
# The package lists may be absent or old: they are fetched only if the first try fails.
if ! "${install[@]}"; then
    "${apt[@]}" update
    "${install[@]}" || { echo "apt-get could not install: ${missing[*]}" >&2; exit 3; }
fi
