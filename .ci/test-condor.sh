#!/bin/bash
# test-condor.sh: the tests on a real HTCondor pool, on podman; ends with `N passed, M failed`. Expects dist/ and the images (make
# test-condor makes them). CONDOR=sid: HTCondor 25.x of Debian sid instead of trixie's 23.9.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
. .ci/rust.sh
. .ci/steps.sh
cargo=$(need_cargo) || exit
export LATEBIND_STATE=${LATEBIND_STATE:-/var/lib/latebind-condor} # see the Makefile
export CARGO_TERM_COLOR=never
export LATEBIND_POOL=shared
trap 'rm -f "$log"; tests/condor/down.sh "$LATEBIND_POOL"' EXIT
"$cargo" test --quiet --locked --no-run -p latebind-condor-tests && tests/condor/up.sh "$LATEBIND_POOL" || {
    echo "test-condor.sh: there is no pool, no test was run" >&2
    echo "0 passed, 0 failed"
    exit 1
}
# One at a time: they share one slot.
step "tests on an HTCondor pool" "$cargo" test --locked --no-fail-fast -p latebind-condor-tests -- --test-threads=1
conclude
