#!/bin/bash
# disk-of-tests.sh OUT: a disk with this checkout, its programs, test programs and images, as the machine mounts it.
# Expects dist/, the images and compiled tests; PROGRAMS is the list of test programs.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:?usage: disk-of-tests.sh OUT}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/checkout" "$work/state"
git ls-files -z --cached --others --exclude-standard | grep -zv ^tests/fuzz/ | xargs -0 cp -a --parents -t "$work/checkout"
cp -a dist "$work/checkout/"
# shellcheck disable=SC2086 # a list
cp -a --parents -t "$work/checkout" ${PROGRAMS:?} target/debug/probe
find "$work/checkout/target" -type f -exec strip --strip-debug {} +
# Images only: what containers there were belongs to this machine, and its database names this machine's paths.
cp -a "${LATEBIND_STATE:?}/containers" "$work/state/"
rm -rf "$work"/state/containers/{libpod,db.sql,overlay-containers}
mkfs.ext4 -q -m 0 -E lazy_itable_init=0 -d "$work" "$out" 8G >/dev/null
