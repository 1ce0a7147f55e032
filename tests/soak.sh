#!/bin/bash
# soak.sh SECONDS: parts of pods are killed at random moments and steps of jobs for so long; the counts come last. Expects dist/ and the
# images (make soak makes them). LATEBIND_FAULT_SEED repeats a run.
set -euo pipefail
cd "$(dirname "$0")/.."
. .ci/rust.sh
cargo=$(need_cargo) || exit
export LATEBIND_SOAK_SECONDS=${1:-600}
case $LATEBIND_SOAK_SECONDS in
*[!0-9]* | '')
    echo "soak.sh: '$1' is not a number of seconds: make soak DURATION=600" >&2
    exit 2
    ;;
esac
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$cargo" test --quiet --locked -p latebind-tests --test faults -- --nocapture at_random_moments 2>&1 | tee "$log"
# Once more, after what cargo has to say.
grep '^faults: seed .* jobs' "$log"
