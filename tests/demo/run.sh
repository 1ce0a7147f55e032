#!/bin/bash
# run.sh [cluster]: the demonstration: one pod, one slot, eight jobs in a spool, each bound late to the image it wants:
# on this machine by latebind-host, or on a Kubernetes cluster. Everything that is printed happens while you look.
# `make demo` and `make demo-cluster` build what is needed first.
set -euo pipefail
cd "$(dirname "$0")/../.."
results=${LATEBIND_DEMO:-/var/tmp/latebind-demo${1:+-$1}}
started=$SECONDS
. tests/demo/common.sh
# on-host.sh and on-cluster.sh differ in these:
#   images    where the pod finds the jobs' images
#   pod       the name of what is made there
#   prepare   makes what has to be there before the pod
#   serve     starts the pod. $host is then the process that ends with it, $work the directory that its jobs run in
#   collect   puts what the pilot has said into $results/log
#   clean     removes what prepare and serve have made
pod=demo-$$ host='' work=''
# shellcheck source=tests/demo/on-host.sh source=tests/demo/on-cluster.sh
. "tests/demo/on-${1:-host}.sh"

rm -rf "$results"
mkdir -p "$results/spool/new" "$results/spool/prepared" "$results/private"
chmod 700 "$results/private"
cleanup() {
    status=$?
    trap '' INT TERM
    [ -z "$host" ] || kill "$host" 2>/dev/null || true
    [ -z "$host" ] || wait "$host" 2>/dev/null || true
    clean
    exit "$status"
}
trap cleanup EXIT
prepare

# job NAME JSON: a job is a directory with job.json; it enters the spool by one rename.
job() {
    mkdir -p "$results/spool/prepared/$1"
    printf '%s\n' "$2" >"$results/spool/prepared/$1/job.json"
}

heading "An image with one static program: a shell cannot even start in it"
! images/podman run --rm --network none --entrypoint /bin/sh localhost/latebind/noshell:1 -c 'echo hello' ||
    fail "a shell started"

heading "Eight jobs enter the spool"
job 1-no-shell "{\"image\": \"$images/noshell:1\", \"argv\": [\"/probe\", \"primes\", \"2000000\"]}"
job 2-debian "{\"image\": \"$images/debian:1\", \"outputs\": [\"words.txt\"], \"env\": {\"LC_ALL\": \"C\"},
  \"argv\": [\"/bin/bash\", \"-c\", \"tr -cs A-Za-z '[\\\\n*]' <text | tr A-Z a-z | sort | uniq -c | sort -rn >words.txt; head -n 5 words.txt; sleep 2; true\"]}"
mkdir -p "$results/spool/prepared/2-debian/inputs"
cp LICENSE "$results/spool/prepared/2-debian/inputs/text"
job 3-fails "{\"image\": \"$images/busybox:1\", \"argv\": [\"sh\", \"-c\", \"echo this job fails >&2; exit 3\"]}"
job 4-signal "{\"image\": \"$images/busybox:1\", \"argv\": [\"sh\", \"-c\", \"kill -SEGV \$\$\"]}"
job 5-forger "{\"image\": \"$images/noshell:1\", \"argv\": [\"/probe\", \"forge\"], \"outputs\": [\"record.jws\"]}"
job 6-daemons "{\"image\": \"$images/noshell:1\", \"argv\": [\"/probe\", \"daemons\", \"5\"]}"
job 7-liar "{\"image\": \"$images/liar-shell:1\", \"argv\": [\"/bin/sh\", \"-c\", \"exit 7\"]}"
job 8-missing "{\"image\": \"$images/no-such-image:1\", \"argv\": [\"true\"]}"
for dir in "$results"/spool/prepared/*; do mv "$dir" "$results/spool/new/"; done
(cd "$results/spool/new" && echo *)

heading "One pod serves them; its process tree while a job runs"
serve

# tree: the processes of the pod's PID namespace with their UIDs, each container's with its name.
tree() {
    local pid=$1 namespace p member=()
    namespace=$(readlink "/proc/$pid/ns/pid")
    for p in /proc/[0-9]*; do
        [ "$(readlink "$p/ns/pid" 2>/dev/null)" != "$namespace" ] || member+=("${p#/proc/}")
    done
    echo "CONTAINER   UID   COMMAND"
    for p in $(printf '%s\n' "${member[@]}" | sort -n); do
        local command uid parent indent='' where
        command=$(tr '\0\n' '  ' <"/proc/$p/cmdline" 2>/dev/null | cut -c1-70) || continue
        uid=$(awk '/^Uid:/ {print $2}' "/proc/$p/status" 2>/dev/null) || continue
        case $command in
        '/glue pause'* | /pause*) where=pause ;;
        *watcher\ pilot*) where=pilot ;;
        */shared/bin/glue\ run*) where=payload ;;
        *) where=${seen[$(awk '/^PPid:/ {print $2}' "/proc/$p/status" 2>/dev/null)]:-payload} ;;
        esac
        seen[$p]=$where
        parent=$(awk '/^PPid:/ {print $2}' "/proc/$p/status" 2>/dev/null) || continue
        depth[$p]=$((${depth[$parent]:--1} + 1))
        printf -v indent '%*s' $((2 * depth[$p])) ''
        printf '%-9s %5s   %s%s\n' "$where" "$uid" "$indent" "$command"
    done
}
# sleeper: the process that the second job waits in.
sleeper() {
    local p comm
    for p in /proc/[0-9]*; do
        { read -r comm <"$p/comm"; } 2>/dev/null || continue
        [ "$comm" = sleep ] || continue
        [ ! "$p/cwd" -ef "$work" ] || { echo "${p#/proc/}" && return 0; }
    done
    return 1
}
declare -A seen depth
shown=
for ((i = 0; i < 3600; i++)); do
    if main=$(sleeper); then
        tree "$main"
        shown=yes
        break
    fi
    kill -0 "$host" 2>/dev/null || break
    sleep 0.05
done
[ -n "$shown" ] || fail "the Debian job was never seen"

wait "$host" || fail "the pod ended with $?"
host=
collect
if [ -s "$results/images" ]; then
    heading "The image of its payload container, as kubectl saw it"
    uniq "$results/images"
fi

heading "Results"
watcher results "$results/spool" --keys "$results/private/keys" | tee "$results/table"
# All columns but the times; of an image its name alone.
expect <(awk -F '  +' 'NR > 1 { sub(".*/", "", $2); print $1, $2, $3, $4, $8 }' "$results/table") <<'T'
1-no-shell noshell:1 exited 0 final yes
2-debian debian:1 exited 0 final yes
3-fails busybox:1 exited 3 final yes
4-signal busybox:1 signaled 11 final yes
5-forger noshell:1 exited 0 final yes
6-daemons noshell:1 exited 0 final yes
7-liar liar-shell:1 exited 0 final yes
8-missing no-such-image:1 - (ImageNotFound) hold no record
T

done="$results/spool/done"
heading "What the jobs wrote"
cat "$done/1-no-shell/result/stdout"
echo "the five most frequent words of the Apache licence, counted in a Debian image:"
head -n 5 "$done/2-debian/result/outputs/words.txt"

field() { sed -n "s/^ *\"$2\": \([^,]*\),*$/\1/p" "$1" | head -n 1; }

heading "The forger was refused, the daemons were ended"
grep -c '"ok":false' "$done/5-forger/result/stdout" | sed 's/$/ attempts on ctl, glue and pilot failed; what it could write is in its own directory:/'
grep '"ok":true' "$done/5-forger/result/stdout" || true
key=$results/private/keys/5-forger.1.json
watcher verify "$done/5-forger/result/outputs/record.jws" --key "$key" && fail "a forged record was believed"
ended=$(field "$done/6-daemons/result/report.json" left_over_killed)
echo "daemons that outlived their job and were ended: $ended"
[ "$ended" = 5 ] || fail "five daemons should have been ended"

heading "One record, checked with openssl alone"
record=$done/1-no-shell/result/record.jws
key=$results/private/keys/1-no-shell.1.json
signed=$(cut -d. -f1,2 "$record" | tr -d '\n')
signature=$(printf %s "$signed" | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$(sed -n 's/.*"key_hex": "\(.*\)".*/\1/p' "$key")" -binary | base64 | tr '+/' '-_' | tr -d '=\n')
echo "signature in the record: $(cut -d. -f3 "$record")"
echo "computed with openssl:   $signature"
[ "$signature" = "$(cut -d. -f3 "$record")" ] || fail "the signatures differ"
watcher verify "$record" --key "$key" | grep -E '"(job|outcome|exit_code|wall_s)"'

heading "The same with one bit flipped"
changed=$results/one-bit-flipped.jws
perl -pe 'substr($_, 120, 1) = chr(ord(substr($_, 120, 1)) ^ 1)' "$record" >"$changed"
watcher verify "$changed" --key "$key" && fail "a changed record was believed"

watcher timeline "$results/spool" >"$results/timeline.svg"
watcher timeline --html "$results/spool" --keys "$results/private/keys" >"$results/jobs.html"

heading "Done in $((SECONDS - started)) s"
echo "what the slot did, for a browser: $results/jobs.html (the picture alone: $results/timeline.svg)"
echo "results: $results/spool/{done,held}/<job>/result, log: $results/log, keys: $results/private/keys"
