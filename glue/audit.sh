#!/bin/bash
# audit.sh: what a security review of glue reads: files in reading order with their lines of code, each unsafe block
# with its reason, and each dependency with version, features and size. glue/audit.list says what runs as root. Fails if
# a file of glue is missing from that list, or if an unsafe block has no reason.
set -euo pipefail
cd "$(dirname "$0")/.."
. .ci/rust.sh
cargo=$(need_cargo)
list=glue/audit.list
failed=''

# code_lines FILE...: lines that are neither blank, nor comments, nor in a module of tests
code_lines() {
    awk '
        FNR == 1 { in_tests = 0; pending = 0 }
        in_tests { if (/^}/) in_tests = 0; next }
        /^ *#\[cfg\(test\)\]/ { pending = 1; next }
        pending && /^ *#/ { next }
        pending { pending = 0; if (/\{ *$/) in_tests = 1; next }
        /^ *$/ || /^ *\/\// { next }
        { n++ }
        END { print n + 0 }' "$@"
}

rows() { grep -v '^#' "$list" | grep . || :; }

echo "== Reading order"
printf '%3s  %-42s %6s  %-10s %s\n' '' FILE LINES ROLE QUESTION
n=0
declare -A total=([root]=0 [supervisor]=0 [payload]=0 [setup]=0)
while read -r file role question; do
    if [ ! -f "$file" ]; then
        echo "audit.sh: $list: there is no $file" >&2
        failed=yes
        continue
    fi
    lines=$(code_lines "$file")
    n=$((n + 1))
    total[$role]=$((total[$role] + lines))
    printf '%3d  %-42s %6d  %-10s %s\n' "$n" "$file" "$lines" "$role" "$question"
done < <(rows)
while read -r file; do
    rows | grep -q "^$file " || {
        echo "audit.sh: $file is in no row of $list: who runs it?" >&2
        failed=yes
    }
done < <(find glue/src glue/contract/src glue/linux/src -name '*.rs' ! -name '*tests.rs' | sort)

echo
echo "== Lines of code, without tests and comments"
echo "${total[root]} run as root in the payload container"
echo "${total[supervisor]} run there with the kill UID, no capability, and the key of the job"
echo "${total[payload]} run there with the payload's UID and no privilege"
echo "${total[setup]} run in the init container, as PID 1 of a pod of latebind-host, or as an ordinary init"

echo
echo "== Unsafe code, each with its reason"
# shellcheck disable=SC2046
unsafe=$(awk '
    FNR == 1 { reason = ""; in_reason = 0; name = "" }
    /^ *(pub(\([a-z]+\))? )?(unsafe )?(const )?fn / { name = $0; sub(/.*fn /, "", name); sub(/[(<].*/, "", name) }
    /^ *\/\/ SAFETY: / { reason = $0; sub(/^ *\/\/ SAFETY: /, "", reason); in_reason = 1; next }
    in_reason && /^ *\/\/ / { more = $0; sub(/^ *\/\/ /, "", more); reason = reason " " more; next }
    { in_reason = 0 }
    /^ *\/\// || /^ *#!?\[/ { next }
    /unsafe (\{|fn|impl)/ {
        printf "%s:%d %s\n    %s\n", FILENAME, FNR, name, reason == "" ? "NO REASON" : reason
        reason = ""
    }' $(rows | cut -d' ' -f1))
printf '%s\n' "$unsafe"
printf '%s unsafe blocks\n' "$(printf '%s\n' "$unsafe" | grep -c '^glue/')"
if printf '%s\n' "$unsafe" | grep -q '^    NO REASON$'; then
    echo "audit.sh: an unsafe block has no SAFETY comment" >&2
    failed=yes
fi

echo
echo "== Dependencies linked into glue (those of macros run at build time only)"
printf '%-24s %-10s %7s  %s\n' CRATE VERSION LINES FEATURES
sources=${CARGO_HOME:-$HOME/.cargo}/registry/src
"$cargo" tree --quiet --locked --package glue --edges normal,no-proc-macro --target "$MUSL_TARGET" \
    --prefix none --no-dedupe --format '{p} [{f}]' | sort -u | while read -r crate version rest; do
    case $crate in glue | latebind-*) continue ;; esac
    version=${version#v}
    # shellcheck disable=SC2046
    lines=$(code_lines $(find "$sources"/*/"$crate-$version/src" -name '*.rs'))
    printf '%-24s %-10s %7d  %s\n' "$crate" "$version" "$lines" "${rest##*[}"
done | sed 's/]$//'

[ -z "$failed" ]
