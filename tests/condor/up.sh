#!/bin/bash
# up.sh NAME [SLOTS]: a pool for tests on this machine: a pod of latebind-host whose pilot is HTCondor, and a central manager with a
# schedd in one container beside it. Both have one network, which is loopback alone. Ends when the slots are there. The pool's files
# are in $LATEBIND_STATE/pools/NAME. Further settings of the pilot: LATEBIND_PILOT_ENV, a line NAME=VALUE for each; a line TOKEN alone
# gives it the pool's token by that variable, and no file of it. Further words for latebind-host: LATEBIND_HOST_WORDS.
# Slots for pilot-jobs, besides: LATEBIND_POOL_PILOT_JOBS. Sizes of the slots, as --slot has
# them, in place of SLOTS: LATEBIND_POOL_SIZES, with spaces in between.
set -euo pipefail
cd "$(dirname "$0")/../.."
name=${1:?usage: up.sh NAME [SLOTS]} slots=${2:-1} pilot_jobs=${LATEBIND_POOL_PILOT_JOBS:-0}
read -ra sizes <<<"${LATEBIND_POOL_SIZES:-}"
sized=(--slots "$slots")
if [ "${#sizes[@]}" != 0 ]; then
    slots=${#sizes[@]} sized=()
    for size in "${sizes[@]}"; do sized+=(--slot "$size"); done
fi
export LATEBIND_STATE=${LATEBIND_STATE:-/var/lib/latebind-condor}
image=localhost/latebind/htcondor-pilot:1
dir=$LATEBIND_STATE/pools/$name
memory=$((1 << 30))
podman() { images/podman "$@"; }
die() {
    echo "up.sh: $*" >&2
    tail -n 20 "$dir/log" >&2 || :
    tests/condor/down.sh "$name"
    exit 1
}
[ ! -e "$dir" ] || tests/condor/down.sh "$name"
mkdir -p "$dir/secret" "$dir/home" "$dir/etc"
chown 5000:5000 "$dir/home"
# The pool's key and a token for the pilot, before either runs.
podman run --rm --network=none --volume "$PWD/tests/condor/pool:/pool-script:ro" --volume "$dir/secret:/secret" \
    --entrypoint /pool-script/token "$image" || die "the pool's token could not be made"
# Without a network no name server answers, and HTCondor would wait for one.
printf "127.0.0.1 %s pool localhost\n" "$name" >"$dir/etc/hosts"
echo '/cvmfs/pool.test/ localhost/latebind/' >"$dir/etc/images"

settings=() tokens=(--mount "$dir/secret/tokens:/etc/condor/tokens.d:ro")
while read -r line; do
    case $line in
    '') ;;
    TOKEN) settings+=(--pilot-env "TOKEN=$(cat "$dir/secret/tokens/pool")") tokens=() ;;
    *) settings+=(--pilot-env "$line") ;;
    esac
done <<<"${LATEBIND_PILOT_ENV:-}"
read -ra words <<<"${LATEBIND_HOST_WORDS:---restarts 0}"
{
    dist/latebind-host pod --name "$name" "${sized[@]}" --pilot-jobs "$pilot_jobs" --memory "$memory" \
    --cpus 1 --pull never \
    --pilot-image "$image" --pilot-program /usr/sbin/latebind-htcondor \
    --mount "$dir/etc/hosts:/etc/hosts:ro" \
    ${tokens[@]+"${tokens[@]}"} --mount "$dir/etc/images:/etc/latebind/images:ro" \
    --pilot-env CONDOR_HOST=127.0.0.1 --pilot-env "LATEBIND_MEMORY=$memory" --pilot-env LATEBIND_CPUS=1 \
    --pilot-env GLIDEIN_Site=Test --pilot-env GLIDEIN_ResourceName=Here \
    --pilot-env LATEBIND_DEFAULT_IMAGE=docker://localhost/latebind/debian:1 \
    --pilot-env 'LATEBIND_CONDOR_CONFIG=include : /etc/latebind-tests/pilot.conf' \
    --mount "$PWD/tests/condor/pilot.conf:/etc/latebind-tests/pilot.conf:ro" \
    ${settings[@]+"${settings[@]}"} "${words[@]}" --stop-timeout 60 &
    echo $! >"$dir/pid"
    code=0
    wait $! || code=$?
    echo "$code" >"$dir/code"
} >"$dir/log" 2>&1 </dev/null &
disown
pause=latebind-$name-pause
for ((n = 0; n < 600; n++)); do
    [ "$(podman container inspect --format '{{.State.Status}}' "$pause" 2>/dev/null)" != running ] || break
    [ ! -e "$dir/code" ] || die "latebind-host has ended"
    sleep 0.1
done
podman run --detach --name "pool-$name" --hostname pool --network="container:$pause" --cap-drop=all \
    --cap-add=CHOWN,DAC_OVERRIDE,FOWNER,KILL,SETGID,SETUID --volume "$PWD/tests/condor/pool:/pool-script:ro" \
    --volume "$dir/etc/hosts:/etc/hosts:ro" --volume "$dir/secret:/secret:ro" --volume "$dir/home:/home/alice" --entrypoint /pool-script/start "$image" >/dev/null ||
    die "the central manager could not be started"
for ((n = 0; n < 120; n++)); do
    there=$(podman exec "pool-$name" condor_status -af Name 2>/dev/null | grep -c slot || :)
    [ "$there" != $((slots + pilot_jobs)) ] || exit 0
    [ ! -e "$dir/code" ] || die "latebind-host has ended"
    sleep 1
done
die "no slot after two minutes"
