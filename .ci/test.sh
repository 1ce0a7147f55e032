#!/bin/bash
# test.sh: format, lints, unit tests, integration tests; ends with `N passed, M failed`. Fails where a test failed or was left
# out, where none ran, and where format or lints complain. Expects dist/ and the images (make test makes them).
set -uo pipefail
cd "$(dirname "$0")/.."
. .ci/rust.sh
cargo=$(dev_cargo)
[ -n "$cargo" ] || {
    echo "test.sh: no cargo of version 1.85 or later: run .ci/setup.sh test" >&2
    exit 1
}
export LATEBIND_STATE=${LATEBIND_STATE:-/var/lib/latebind-test} # see the Makefile
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export CARGO_TERM_COLOR=never
wrong=()

step() { # step WHAT COMMAND...
    local what=$1 started=$SECONDS
    shift
    echo "== $what"
    "$@" 2>&1 | tee -a "$log" || wrong+=("$what")
    echo "== $what: $((SECONDS - started)) s"
}

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
step "unit tests" "$cargo" test --quiet --locked --no-fail-fast --workspace --exclude latebind-tests
# Two at a time: each starts several containers, and two cores are enough for all there is to test.
step "integration tests" "$cargo" test --locked --no-fail-fast -p latebind-tests -- --test-threads=2

# `test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; ...`
read -r passed failed left_out < <(awk '/^test result:/ {
    for (i = 2; i <= NF; i++) {
        if ($i ~ /^passed/) passed += $(i - 1)
        if ($i ~ /^failed/) failed += $(i - 1)
        if ($i ~ /^ignored/ || ($i == "filtered")) left_out += $(i - 1)
    }
} END { print passed + 0, failed + 0, left_out + 0 }' "$log")

for what in ${wrong[@]+"${wrong[@]}"}; do echo "test.sh: $what: not good, see above"; done
status=${#wrong[@]}
if [ "$left_out" != 0 ]; then
    echo "test.sh: $left_out tests were left out: a test that does not run proves nothing"
    status=1
fi
if [ "$((passed + failed))" = 0 ]; then
    echo "test.sh: no test ran"
    status=1
fi
echo "$passed passed, $failed failed"
[ "$status" = 0 ] && [ "$failed" = 0 ]
