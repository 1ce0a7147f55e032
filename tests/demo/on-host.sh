# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by run.sh: a pod of latebind-host on this machine.
images=localhost/latebind

prepare() { :; }
serve() {
    latebind-host pod --name "$pod" --spool "$results/spool" --private "$results/private" --memory 256m -- \
        pilot --spool /spool --idle-exit 0.5 --keep-keys /var/lib/latebind/keys >"$results/log" 2>&1 &
    host=$!
    work=${LATEBIND_STATE:-/var/lib/latebind-host}/pods/$pod/slot-0/data/work
}
collect() { :; } # it is there
clean() { latebind-host rm "$pod" >/dev/null 2>&1 || true; }
