#!/bin/bash
# attack-start.sh TRIES: so many tries of each kind to catch a process of a job's start; tests/tests/attacks/start.rs says how.
# `make test` runs the same tests with some thousand tries.
set -euo pipefail
cd "$(dirname "$0")/.."
. .ci/rust.sh
cargo=$(need_cargo)
export LATEBIND_ATTACK_TRIES=${1:?usage: attack-start.sh TRIES}
exec "$cargo" test --locked -p latebind-tests --test attacks -- --nocapture --test-threads=1 start::
