# shellcheck shell=bash disable=SC2154
# Sourced by the demonstrations, in the project's directory. They have $results, a directory, and collect, which puts
# what the pilot has said into $results/log.
PATH=$PWD/dist:$PATH

heading() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
fail() {
    echo "demo: $*" >&2
    collect
    [ ! -s "$results/log" ] || tail -n 20 "$results/log" >&2
    exit 1
}
# expect: fails unless the file $1 has the same lines as standard input
expect() {
    diff -u --label expected --label "in the table" - "$1" || fail "the jobs did not come to the expected results"
}
