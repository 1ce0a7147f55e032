#!/bin/bash
# test-v2.sh: the tests on control groups v2, in machines of Debian 13 (podman 5, crun) and Debian 12 (podman 4.3, crun)
# that are booted here (tests/v2); ends with `N passed, M failed`. Expects dist/ and the images (make test-v2 makes
# them).
#
# SUITES     the machines, default "trixie bookworm"
# TESTS      the test programs; default: those whose answer depends on control groups or the engine
# LEAVE_OUT  one of them that is left out
# SHARE_OUT  those of them whose tests are shared out among the machines: each test runs in one of them
set -uo pipefail
cd "$(dirname "$0")/.." || exit
. .ci/rust.sh
. .ci/steps.sh
cargo=$(need_cargo) || exit
export LATEBIND_STATE=${LATEBIND_STATE:-/var/lib/latebind-test} # see the Makefile
export CARGO_TERM_COLOR=never
tests=${TESTS:-limits looking loss host run_conventions shortages spool steering attacks service rootless \
    docker_systemd slurm nfs suid_dumpable crun}
work=$(mktemp -d)
finish() {
    local pid
    # boot.sh comes to lead a process group, which takes its machine with it.
    for pid in $(jobs -pr); do kill -KILL -- "-$pid" 2>/dev/null || kill "$pid"; done
    rm -rf "$work" "$log"
}
trap finish EXIT

mkdir "$work/exchange"
read -ra suites <<<"${SUITES:-trixie bookworm}"
# `  Executable tests/limits.rs (target/debug/deps/limits-0123456789abcdef)`
"$cargo" test --locked --no-run -p latebind-tests -p latebind-v2-tests 2>"$work/built" || {
    cat "$work/built"
    exit 1
}
echo "demo . tests/demo/run.sh" >"$work/exchange/programs"
announced=0 # see conclude
for name in $tests; do
    [ "$name" != "${LEAVE_OUT:-}" ] || continue
    program=$(sed -n -E "s|^ *Executable tests/$name(/main)?\.rs \((.*)\)|\2|p" "$work/built")
    [ -n "$program" ] || {
        echo "test-v2.sh: there is no test program $name" >&2
        exit 1
    }
    # Those of tests/v2 are systemd's guests: they run in the machine's own PID namespace.
    place=tests
    [ ! -e "tests/v2/tests/$name.rs" ] || place=tests/v2
    shared=
    case " ${SHARE_OUT:-} " in *" $name "*)
        shared=shared
        count=$("$program" --list | grep -c ': test$')
        announced=$((announced + count * (${#suites[@]} - 1)))
        ;;
    esac
    echo "$name $place $program $shared" >>"$work/exchange/programs"
done
programs=$(sed -n 's/^[^ ]* [^ ]* \(target[^ ]*\).*/\1/p' "$work/exchange/programs")
PROGRAMS=$programs tests/v2/disk-of-tests.sh "$work/disk" || exit
printf 'CHECKOUT=%s\nLATEBIND_STATE=%s\n' "$PWD" "$LATEBIND_STATE" >"$work/exchange/settings"
cp tests/v2/run "$work/exchange/"

# share PROGRAM N: the tests of a program that is shared out that the machine of that number runs
share() {
    "$1" --list | sed -n 's/: test$//p' |
        awk -v n="$2" -v machines="${#suites[@]}" 'NR % machines == n' | tr '\n' ' '
}

declare -A pids # of the machines
# start SUITE N: boots its machine, which goes on beside this script
start() {
    cp -a "$work/exchange" "$work/$1"
    while read -r name place program shared; do
        [ -z "$shared" ] || shared="--exact $(share "$program" "$2")"
        echo "$name $place $program $shared"
    done <"$work/exchange/programs" >"$work/$1/programs"
    : >"$work/$1/out"
    cp --sparse=always "$work/disk" "$work/disk.$1"
    tests/v2/boot.sh "$1" "$work/$1" "$work/disk.$1" >"$work/$1.console" 2>&1 &
    pids[$1]=$!
}

# machine SUITE: its tests' output, and a failure unless it came to its end with all of them passed
machine() {
    tail -n +1 -f --pid="${pids[$1]}" "$work/$1/out"
    [ "$(cat "$work/$1/code" 2>/dev/null)" = 0 ] || {
        echo "test-v2.sh: the machine of $1 failed, or was lost; the last lines of its console:"
        tail -n 20 "$work/$1.console"
        return 1
    }
}

# Each machine has one processor, so all of them run at once; the output of the first one comes first.
for suite in "${suites[@]}"; do
    tests/v2/disk.sh "$suite" >/dev/null || exit
done
for number in "${!suites[@]}"; do start "${suites[number]}" "$number"; done
for suite in "${suites[@]}"; do
    step "tests on control groups v2, Debian $suite" machine "$suite"
done
conclude
