#!/bin/bash
# disk-of-tests.sh OUT: a disk with this checkout, its programs, test programs and images, as the machine mounts it.
# Expects dist/, the images and compiled tests; PROGRAMS is the list of test programs.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:?usage: disk-of-tests.sh OUT}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/checkout" "$work/state/containers"
git ls-files -z --cached --others --exclude-standard | grep -zv ^tests/fuzz/ | xargs -0 cp -a --parents -t "$work/checkout"
cp -a dist "$work/checkout/"
# shellcheck disable=SC2086 # a list
cp -a --parents -t "$work/checkout" ${PROGRAMS:?} target/debug/probe
find "$work/checkout/target" -type f -exec strip --strip-debug {} +
# Images only: what else is there belongs to this machine, and may be in use.
cp -a "${LATEBIND_STATE:?}"/containers/overlay{,-images,-layers} "$work/state/containers/"
mkfs.ext4 -q -m 0 -E lazy_itable_init=0 -d "$work" "$out" 8G >/dev/null
