#!/bin/bash
# test.sh: format, lints, unit tests, integration tests; ends with `N passed, M failed`. Fails where a test failed or was left
# out, where none ran, and where format or lints complain. Expects dist/ and the images (make test makes them).
set -uo pipefail
cd "$(dirname "$0")/.." || exit
. .ci/rust.sh
. .ci/steps.sh
cargo=$(need_cargo) || exit
export LATEBIND_STATE=${LATEBIND_STATE:-/var/lib/latebind-test} # see the Makefile
export CARGO_TERM_COLOR=never
if "$cargo" fmt --version >/dev/null 2>&1; then
    step "format" "$cargo" fmt --all --check
else
    echo "test.sh: no rustfmt here, the format is not checked"
fi
if "$cargo" clippy --version >/dev/null 2>&1; then
    step "lints" "$cargo" clippy --quiet --locked --workspace --all-targets -- -D warnings
else
    echo "test.sh: no clippy here, lints are not checked"
fi
step "unit tests" "$cargo" test --quiet --locked --no-fail-fast --workspace --exclude latebind-tests \
    --exclude latebind-cluster-tests --exclude latebind-condor-tests
# Two at a time: each starts several containers, and two cores are enough for all there is to test.
step "integration tests" "$cargo" test --locked --no-fail-fast -p latebind-tests -- --test-threads=2

conclude
