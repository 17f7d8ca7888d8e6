#!/bin/bash
# test_deb.sh FILE.deb [MIRROR]: installs the package in a fresh Debian 12 and runs it there. Needs root, debootstrap and
# a Debian mirror; some minutes, 1 GB below TMPDIR. Not a ctest: it writes no result that a machine without network can.
set -euo pipefail
deb=$(realpath "${1:?usage: test_deb.sh FILE.deb [MIRROR]}")
mirror=${2:-http://deb.debian.org/debian}
root=$(mktemp -d)
trap 'umount "$root/proc" "$root/dev/shm" 2>/dev/null || true; rm -rf --one-file-system "$root"' EXIT

debootstrap --variant=minbase bookworm "$root" "$mirror"
mount -t proc proc "$root/proc"
mkdir -p "$root/dev/shm"
mount -t tmpfs tmpfs "$root/dev/shm"
cp "$deb" "$root/tmp/cpstep.deb"
if [ -r /etc/apt/apt.conf ] || compgen -G '/etc/apt/apt.conf.d/*proxy*' >/dev/null; then
    cp /etc/apt/apt.conf "$root/etc/apt/" 2>/dev/null || true
    cp /etc/apt/apt.conf.d/*proxy* "$root/etc/apt/apt.conf.d/" 2>/dev/null || true
fi
chroot "$root" bash -euxc '
    export DEBIAN_FRONTEND=noninteractive OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    apt-get update
    apt-get install -y --no-install-recommends /tmp/cpstep.deb
    cpstep --version
    cd /usr/share/cpstep
    mpirun --oversubscribe -np 2 cpstep run --config inputs/smoke.ini --blocks 3 --output /tmp/out
    apt-get install -y --no-install-recommends python3-h5py python3-pandas python3-matplotlib
    /usr/share/cpstep/python/plot_run.py /tmp/out
    test -s /tmp/out/plots/steps.png
    apt-get remove -y cpstep
    test ! -e /usr/bin/cpstep && test ! -e /usr/share/cpstep
'
echo "$(basename "$deb"): installed, ran, removed"
