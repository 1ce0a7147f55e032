#!/bin/sh
# debootstrap.sh OUT.tar: root file system of Debian 12, its minimal variant, without documentation; kept for later runs.
set -eu
out=$(realpath -m "${1:?usage: debootstrap.sh OUT.tar}")
. "$(dirname "$0")/../debian-root.sh"
suite=bookworm
mirror=$(debian_mirror)
echo "images: fetching Debian $suite from $mirror, about a minute, once; kept as $out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
debootstrap --variant=minbase "$suite" "$work/root" "$mirror" >"$work/log" 2>&1 || {
    tail -n 20 "$work/log" >&2
    echo "debootstrap.sh: debootstrap failed; the last lines of its log are above" >&2
    exit 1
}
pack_root "$work/root" "$out" "$work"/root/var/log/*
