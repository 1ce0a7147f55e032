#!/bin/bash
# down.sh NAME: ends a pool that up.sh has started, and removes its files.
set -euo pipefail
cd "$(dirname "$0")/../.."
name=${1:?usage: down.sh NAME}
export LATEBIND_STATE=${LATEBIND_STATE:-/var/lib/latebind-condor}
dir=$LATEBIND_STATE/pools/$name
images/podman rm --force --time=0 "pool-$name" >/dev/null 2>&1 || :
pid=$(cat "$dir/pid" 2>/dev/null || :)
# A number that was left by an earlier boot may be anybody's now.
[ -z "$pid" ] || grep -qz latebind-host "/proc/$pid/cmdline" 2>/dev/null || pid=
# Two signals: the pod goes at once.
for signal in TERM INT; do
    [ -z "$pid" ] || kill -"$signal" "$pid" 2>/dev/null || break
done
for ((n = 0; n < 300; n++)); do
    { [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; } || break
    sleep 0.1
done
dist/latebind-host rm "$name" >/dev/null 2>&1 || :
rm -rf "$dir"
