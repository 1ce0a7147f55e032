# Sourced by the test scripts: steps that are timed, and the count of the tests in them.
# shellcheck shell=bash
log=$(mktemp)
trap 'rm -f "$log"' EXIT
wrong=()
unsteady=()

step() { # step WHAT COMMAND...
    local what=$1 started=$SECONDS
    shift
    echo "== $what"
    "$@" 2>&1 | tee -a "$log" || wrong+=("$what")
    echo "== $what: $((SECONDS - started)) s"
}

# failed_tests: TARGET NAME of each test that failed in the log; cargo names a target's file before its tests
failed_tests() {
    awk '$1 == "Running" { file = ($2 == "unittests") ? "--lib" : $2 }
         /^test .* FAILED$/ { sub(".*/", "", file); sub("[.]rs$", "", file); print file, $2 }' "$log"
}

passed_again=0
# once_more WHAT COMMAND...: runs what failed in the step WHAT again, alone, as `COMMAND --test TARGET -- --exact NAME`. How fast a cluster is that
# other tests use at the same time is not what is tested; so what passes alone has passed, and is named all the same.
once_more() {
    local what=$1 target name still='' step kept=()
    shift
    # Many that fail are no matter of chance.
    [ "$(failed_tests | wc -l)" -le 5 ] || return 0
    while read -r target name; do
        echo "== $name of $target failed among others: once more, alone"
        if "$@" --test "$target" -- --exact "$name" </dev/null; then
            passed_again=$((passed_again + 1))
            unsteady+=("$target: $name")
        else
            still=yes
        fi
    done < <(failed_tests)
    [ -z "$still" ] && [ "$passed_again" != 0 ] || return 0
    for step in ${wrong[@]+"${wrong[@]}"}; do [ "$step" = "$what" ] || kept+=("$step"); done
    wrong=(${kept[@]+"${kept[@]}"})
}

# conclude: the last line, `N passed, M failed`. Fails where a step or a test failed or was left out, and where none ran.
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

    passed=$((passed + passed_again)) failed=$((failed - passed_again))
    for what in ${unsteady[@]+"${unsteady[@]}"}; do echo "${0##*/}: $what: failed among others, passed alone"; done
    for what in ${wrong[@]+"${wrong[@]}"}; do echo "${0##*/}: $what: not good, see above"; done
    status=${#wrong[@]}
    if [ "$left_out" != 0 ]; then
        echo "${0##*/}: $left_out tests were left out: a test that does not run proves nothing"
        status=1
    fi
    if [ "$((passed + failed))" = 0 ]; then
        echo "${0##*/}: no test ran"
        status=1
    fi
    echo "$passed passed, $failed failed"
    [ "$status" = 0 ] && [ "$failed" = 0 ]
}
