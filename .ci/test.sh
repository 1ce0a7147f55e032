#!/bin/bash
# test.sh: format, lints, documentation, dependencies, audit, unit tests, integration tests; ends with
# `N passed, M failed`. Fails if a test failed or was left out, if none ran, or if a check complains or cannot run.
# Expects dist/ and the images (make test makes them).
set -uo pipefail
cd "$(dirname "$0")/.." || exit
. .ci/rust.sh
. .ci/steps.sh
cargo=$(need_cargo) || exit
export LATEBIND_STATE=${LATEBIND_STATE:-/var/lib/latebind-test} # see the Makefile
export CARGO_TERM_COLOR=never

# with_tool SUBCOMMAND COMPONENT COMMAND...: runs COMMAND, or fails and names the missing component
with_tool() {
    local subcommand=$1 component=$2
    shift 2
    "$cargo" "$subcommand" --version >/dev/null 2>&1 || {
        echo "test.sh: $component is missing for $cargo: run rustup component add $component, or .ci/setup.sh test"
        return 1
    }
    "$@"
}
step "format" with_tool fmt rustfmt "$cargo" fmt --all --check
# In a workspace of its own, which no other step looks at.
step "format of the fuzzer" with_tool fmt rustfmt \
    "$cargo" fmt --all --check --manifest-path tests/fuzz/engine/Cargo.toml
step "shell scripts" .ci/lint-shell.sh
step "words" .ci/words.sh
step "lints" with_tool clippy clippy "$cargo" clippy --quiet --locked --workspace --all-targets -- -D warnings
step "documentation" env RUSTDOCFLAGS="-D warnings" \
    "$cargo" doc --quiet --locked --no-deps --workspace --document-private-items
step "dependencies" .ci/cargo-deny.sh "$cargo" --locked check --hide-inclusion-graph -D warnings bans licenses sources
step "audit" glue/audit.sh
# Apart from the build, so that its output does not hide the tests' own.
step "build of the tests" "$cargo" test --quiet --locked --workspace --no-run
step "unit tests" "$cargo" test --locked --no-fail-fast --workspace --exclude latebind-tests \
    --exclude latebind-cluster-tests --exclude latebind-condor-tests --exclude latebind-v2-tests \
    --exclude latebind-aarch64-tests
# Two at a time: each starts several containers, and two cores are enough for all there is to test.
step "integration tests" "$cargo" test --locked --no-fail-fast -p latebind-tests -- --test-threads=2

conclude
