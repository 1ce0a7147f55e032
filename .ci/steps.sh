# Sourced by the test scripts: steps that are timed, and the count of the tests in them.
# shellcheck shell=bash
log=$(mktemp)
trap 'rm -f "$log"' EXIT
wrong=()

step() { # step WHAT COMMAND...
    local what=$1 started=$SECONDS
    shift
    echo "== $what"
    "$@" 2>&1 | tee -a "$log" || wrong+=("$what")
    echo "== $what: $((SECONDS - started)) s"
}

# conclude: prints the last line, `N passed, M failed`. Fails if a step or a test failed or was left out, or if none
# ran. $announced is how many tests were left out with a reason that was printed, or because another machine runs them:
# these are no failure.
conclude() {
    local passed failed left_out what status
    # `test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; ...`
    read -r passed failed left_out < <(awk '/^test result:/ {
        for (i = 2; i <= NF; i++) {
            if ($i ~ /^passed/) passed += $(i - 1)
            if ($i ~ /^failed/) failed += $(i - 1)
            if ($i ~ /^ignored/ || ($i == "filtered")) left_out += $(i - 1)
        }
    } END { print passed + 0, failed + 0, left_out + 0 }' "$log")

    for what in ${wrong[@]+"${wrong[@]}"}; do echo "${0##*/}: FAIL $what, see above"; done
    status=${#wrong[@]}
    if [ "$left_out" != "${announced:-0}" ]; then
        echo "${0##*/}: $((left_out - ${announced:-0})) tests were left out: a test that does not run proves nothing"
        status=1
    fi
    if [ "$((passed + failed))" = 0 ]; then
        echo "${0##*/}: no test ran"
        status=1
    fi
    echo "$passed passed, $failed failed"
    [ "$status" = 0 ] && [ "$failed" = 0 ]
}
