#!/bin/sh
# The pilot: asks a job server for one job after the other, lets `watcher pilot` run them from a spool of its own, and sends
# back what came of each. For HTTP there is busybox nc: with wget the password would be in an argument, and those can be read
# by every process of the pod.
set -u
spool=/spool
name=dynamic
mkdir -p "$spool/new" "$spool/retry" "$spool/done" "$spool/held" "$spool/claimed/$name" "$spool/fetched"

# ask METHOD PATH [FILE]: one request, with FILE as its body; leaves the answer's body in $spool/body
ask() {
    {
        printf '%s /cgi-bin/%s HTTP/1.0\r\n' "$1" "$2"
        printf 'Authorization: Basic %s\r\n' "$(printf 'pilot:%s' "$(cat /etc/latebind-jobs/password)" | base64 -w 0)"
        if [ $# -gt 2 ]; then
            printf 'Content-Type: application/x-tar\r\nContent-Length: %s\r\n\r\n' "$(wc -c <"$3")"
            cat "$3"
        else
            printf '\r\n'
        fi
    } | timeout 60 nc -w 10 "${JOB_SERVER%:*}" "${JOB_SERVER##*:}" >"$spool/answer"
    case $(head -n 1 "$spool/answer") in
    'HTTP/1.'?' 200 '*) sed '1,/^\r*$/d' "$spool/answer" >"$spool/body" ;;
    *)
        echo "pilot: $JOB_SERVER did not do $1 $2; it said: $(head -n 1 "$spool/answer")" >&2
        return 1
        ;;
    esac
}

empty() { [ -z "$(ls -A "$1")" ]; }

# The next job, while there is nothing to do. It enters the spool by one rename, and whole.
fetch() {
    empty "$spool/new" && empty "$spool/retry" && empty "$spool/claimed/$name" && ask GET next || return 0
    job=$(head -n 1 "$spool/body")
    case $job in
    '') return 0 ;; # none waits
    .* | *[!A-Za-z0-9._-]*)
        echo "pilot: $JOB_SERVER gave out a job of a bad name" >&2
        return 0
        ;;
    esac
    echo "pilot: fetched $job"
    mkdir -p "$spool/fetched/$job"
    tail -n +2 "$spool/body" >"$spool/fetched/$job/job.json"
    mv "$spool/fetched/$job" "$spool/new/$job"
}

# What is over, and is then removed here. It is kept until the server has it.
send() {
    for dir in "$spool"/done/* "$spool"/held/*; do
        [ -e "$dir/result/report.json" ] || continue
        job=${dir##*/}
        tar -C "$dir/result" -cf "$spool/result.tar" . && ask POST "result?$job" "$spool/result.tar" || return 0
        rm -rf "$dir"
        echo "pilot: sent the results of $job"
    done
}

watcher pilot --spool "$spool" --name "$name" &
watcher=$!
stopped=
trap 'stopped=1; kill -TERM "$watcher" 2>/dev/null' TERM INT
while kill -0 "$watcher" 2>/dev/null; do
    [ -n "$stopped" ] || fetch
    send
    sleep 1
done
wait "$watcher"
code=$?
send
exit "$code"
