#!/bin/bash
# test-condor.sh: the tests on a real HTCondor pool, on podman; ends with `N passed, M failed`. Expects dist/ and the
# images (make test-condor makes them). CONDOR=sid: HTCondor 25.x of Debian sid instead of trixie's 23.9.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
. .ci/rust.sh
. .ci/steps.sh
cargo=$(need_cargo) || exit
export LATEBIND_STATE=${LATEBIND_STATE:-/var/lib/latebind-condor} # see the Makefile
export CARGO_TERM_COLOR=never
export LATEBIND_POOL=${LATEBIND_POOL:-shared}
own=$(mktemp)
trap 'rm -f "$log" "$own" "$own.code"; tests/condor/down.sh "$LATEBIND_POOL"' EXIT
if ! "$cargo" test --quiet --locked --no-run -p latebind-condor-tests || ! tests/condor/up.sh "$LATEBIND_POOL"; then
    echo "test-condor.sh: there is no pool, no test was run" >&2
    echo "0 passed, 0 failed"
    exit 1
fi
tests() { "$cargo" test --locked --no-fail-fast -p latebind-condor-tests "$@"; }
# Tests with a pool of their own mostly wait for it: they run beside the others.
{
    tests --test pilots -- --test-threads=2
    echo $? >"$own.code"
} >"$own" 2>&1 </dev/null &
# One at a time: they share one slot.
step "tests on an HTCondor pool" tests --lib --test attacks --test jobs --test losses --test memory --test signals \
    -- --test-threads=1
step "demonstration" tests/demo/condor.sh
own_pools() {
    while [ ! -s "$own.code" ]; do sleep 0.5; done
    cat "$own"
    return "$(cat "$own.code")"
}
step "tests of pilots, each with a pool of its own" own_pools
conclude
