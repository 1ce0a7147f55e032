#!/bin/bash
# run.sh fuzz SECONDS [TARGET...]: fuzzes each target (all where none is named) for SECONDS, as many at once as there are cores
#     (JOBS), and prints a line for each. Fails where an input broke a property; the input and the log are then named.
# run.sh merge [TARGET...]: puts what fuzzing has found into corpus/: as few inputs as reach the same code, at most 200.
# run.sh one TARGET FILE: tries one input.
set -euo pipefail
cd "$(dirname "$0")/../.."
. .ci/rust.sh
cargo=$(need_cargo) || exit
here=tests/fuzz
work=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
host=$("$cargo" -vV 2>/dev/null | sed -n 's/^host: //p')
engine=$work/$host/release/fuzz
# Most inputs of a corpus (tests/replay.rs).
INPUTS_MAX=200
# Scratch directories in memory: some targets make thousands of files a second.
if [ -d /dev/shm ] && [ -w /dev/shm ]; then export TMPDIR=/dev/shm; fi

build() {
    # The compiler's own coverage pass and libFuzzer: all of these are stable options, also of Debian's compiler.
    local flags="-Cpasses=sancov-module" option
    for option in level=4 inline-8bit-counters pc-table trace-compares; do
        flags="$flags -Cllvm-args=-sanitizer-coverage-$option"
    done
    cp Cargo.lock "$here/engine/Cargo.lock"
    # Named by --target, so that programs of the build itself are not instrumented.
    env -u CARGO_ENCODED_RUSTFLAGS -u CARGO_PROFILE_RELEASE_LTO -u CARGO_PROFILE_RELEASE_CODEGEN_UNITS CARGO_TARGET_DIR="$work" RUSTFLAGS="$flags" \
        "$cargo" build --quiet --release --manifest-path "$here/engine/Cargo.toml" --target "$host"
}

targets=()
choose_targets() { # choose_targets [TARGET...]: fills `targets`, with all of them where none is named
    local all name
    mapfile -t all < <(sed -n 's/^ *Target { name: "\([^"]*\)".*/\1/p' "$here/src/lib.rs")
    for name; do
        printf '%s\n' "${all[@]}" | grep -qx -- "$name" || {
            echo "run.sh: there is no target $name; there are: ${all[*]}" >&2
            exit 2
        }
    done
    if [ $# = 0 ]; then targets=("${all[@]}"); else targets=("$@"); fi
}

# In namespaces and a directory of its own, so that nothing outlives it.
run_engine() { # run_engine TARGET ARGUMENTS...
    local target=$1 scratch status=0
    shift
    scratch=$(mktemp -d)
    LATEBIND_FUZZ_TARGET=$target TMPDIR=$scratch unshare --pid --fork --mount-proc --kill-child \
        sh -c '"$@"; exit $?' sh "$engine" "$@" || status=$?
    rm -rf "$scratch"
    return "$status"
}

fuzz_one() { # fuzz_one SECONDS TARGET
    local seconds=$1 name=$2 log=$work/$2.log crashes=$work/crashes/$2 dictionary=$here/dictionaries/$2 status=0 used
    local options=() inputs
    mkdir -p "$work/corpus/$name" "$crashes"
    [ ! -e "$dictionary" ] || options=(-dict="$dictionary")
    mapfile -t inputs < <(kept "$name")
    TIMEFORMAT='%U %S'
    used=$({ time run_engine "$name" -max_total_time="$seconds" -timeout=25 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$crashes/" "${options[@]}" "$work/corpus/$name" "${inputs[@]}" >"$log" 2>&1; } 2>&1) || status=$?
    awk -v name="$name" -v status="$status" -v used="$used" -v log_file="$log" '
        /^#[0-9]+/ { for (i = 2; i < NF; i++) if ($i == "cov:") coverage = $(i + 1) }
        /^stat::number_of_executed_units:/ { runs = $2 }
        /^stat::new_units_added:/ { new = $2 }
        /^Test unit written to|^artifact_prefix=.*Test unit written to/ { crashes++; input = $NF }
        END {
            split(used, cpu, " ")
            printf "fuzz: %-16s %9d executions, coverage %5d, %4d new inputs, %d crashes, %.0f s CPU\n", \
                name, runs, coverage, new, crashes, cpu[1] + cpu[2]
            if (crashes) printf "fuzz: %s: see %s; the input is %s\n", name, log_file, input
            else if (status) printf "fuzz: %s ended with %d: see %s\n", name, status, log_file
        }' "$log"
    return "$status"
}

kept() { # kept TARGET: the directories of its kept inputs, as far as they are there
    local dir
    for dir in "$here/corpus/$1" "$here/regressions/$1"; do [ ! -d "$dir" ] || echo "$dir"; done
}

fuzz() {
    local seconds=$1 jobs=${JOBS:-$(nproc)} name
    shift
    choose_targets "$@"
    rm -rf "$work/failed"
    mkdir -p "$work/failed"
    for name in "${targets[@]}"; do
        while [ "$(jobs -pr | wc -l)" -ge "$jobs" ]; do wait -n || :; done
        { fuzz_one "$seconds" "$name" || : >"$work/failed/$name"; } &
    done
    wait
    if [ -n "$(ls "$work/failed")" ]; then
        echo "fuzz: failed: $(ls -m "$work/failed")"
        echo "fuzz: once the cause is known, keep the input as $here/regressions/TARGET/WHAT-IT-WAS"
        return 1
    fi
}

# Inputs of DIRECTORY beyond the INPUTS_MAX that together reach most of the code, each chosen for what it adds to those
# before. What is left out is mostly single paths through the errors of serde_json.
superfluous() { # superfluous TARGET DIRECTORY
    local control=$work/$1.control
    rm -rf "$work/none" "$control"
    mkdir -p "$work/none"
    run_engine "$1" -merge=1 -use_counters=0 -merge_control_file="$control" "$work/none" "$2" >"$work/$1.merge.log" 2>&1 || return
    # The control file: how many inputs there are, how many of them were there before, their names, and for each (by
    # its number) the features that it reaches.
    awk -v most="$INPUTS_MAX" '
        NR == 1 { inputs = $1 }
        NR > 2 && NR <= inputs + 2 { path[NR - 3] = $0 }
        $1 == "FT" { for (i = 3; i <= NF; i++) reaches[$2] = reaches[$2] " " $i }
        END {
            for (chosen = 0; chosen < most; chosen++) {
                best = ""
                for (n in reaches) {
                    # What it added before is no less than what it adds now.
                    if (n in adds && adds[n] <= (best == "" ? 0 : adds[best])) continue
                    adds[n] = 0
                    count = split(reaches[n], features, " ")
                    for (i = 1; i <= count; i++) if (!(features[i] in reached)) adds[n]++
                    if (adds[n] > (best == "" ? 0 : adds[best])) best = n
                }
                if (best == "") break
                count = split(reaches[best], features, " ")
                for (i = 1; i <= count; i++) reached[features[i]]
                delete reaches[best]
                delete path[best]
            }
            for (n in path) print path[n]
        }' "$control"
}

merge() {
    local name inputs
    choose_targets "$@"
    for name in "${targets[@]}"; do
        rm -rf "$work/merged"
        mkdir -p "$work/merged" "$work/corpus/$name"
        mapfile -t inputs < <(kept "$name")
        # Files are named by the hash of what is in them. Only which code is reached counts, not how often: that keeps it small.
        run_engine "$name" -set_cover_merge=1 -use_counters=0 "$work/merged" "${inputs[@]}" "$work/corpus/$name" \
            >"$work/$name.merge.log" 2>&1 || {
            echo "fuzz: $name cannot be merged: see $work/$name.merge.log" >&2
            return 1
        }
        if [ "$(find "$work/merged" -type f | wc -l)" -gt "$INPUTS_MAX" ]; then
            superfluous "$name" "$work/merged" | xargs -d '\n' -r rm --
        fi
        mkdir -p "$here/corpus/$name"
        find "$here/corpus/$name" -type f -delete
        find "$work/merged" -type f -exec mv -t "$here/corpus/$name" {} +
        echo "fuzz: $name: $(find "$here/corpus/$name" -type f | wc -l) inputs, $(du -bs "$here/corpus/$name" | cut -f1) bytes"
    done
}

case ${1:-} in
fuzz)
    [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || {
        echo "run.sh: how many seconds?" >&2
        exit 2
    }
    build
    shift
    fuzz "$@"
    ;;
merge)
    build
    shift
    merge "$@"
    ;;
one)
    build
    run_engine "$2" "$3"
    ;;
*)
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
    ;;
esac
