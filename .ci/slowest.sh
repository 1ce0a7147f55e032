#!/bin/sh
# slowest.sh N: the N slowest tests of a log of `cargo test` on standard input, slowest first: seconds, target, test.
# The seconds are libtest's own (--report-time, which tests/own-pid-namespace adds).
set -eu
awk '
    # `     Running tests/spool.rs (target/debug/deps/spool-...)`, `     Running unittests src/lib.rs (target/...)`
    $1 == "Running" {
        target = ($2 == "unittests") ? $4 : $2
        sub(/.*\//, "", target); sub(/\.rs$/, "", target); sub(/-[0-9a-f]*\)$/, "", target)
    }
    # `test NAME ... ok <1.234s>`; what a test prints may come before its outcome, also on a line of its own
    $1 == "test" { name = $2 }
    /(ok|FAILED) <[0-9.]+s>$/ { print substr($NF, 2, length($NF) - 3), target, name }
' | sort -rn | head -n "$1" | awk '{ printf "%8.1f s  %s  %s\n", $1, $2, $3 }'
