#!/bin/sh
# The pilot: two steps, each in another image, the second with what the first made. The kubelet starts this again
# whenever it ends, so each step writes down how it ended, and the end of all is to wait until the pod is deleted.
set -u
results=/results
child='' stopped=''
# A shell passes nothing on by itself; `watcher run` passes it on to the job.
trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT

# over CODE WORDS...: the last step is over, or one has failed
over() {
    code=$1
    shift
    echo "sequence: $*"
    echo "$code" >"$results/over"
    while [ -z "$stopped" ]; do
        sleep 3600 &
        child=$!
        wait "$child"
    done
    exit 0
}

# step NAME ARGUMENTS...: `watcher run ARGUMENTS`, once. 125 is not the job's own result: it may run again.
step() {
    dir=$results/$1
    shift
    tries=0
    until [ -e "$dir/code" ]; do
        echo "sequence: $dir begins"
        watcher run --results "$dir" "$@" &
        child=$!
        # A signal ends `wait`, and not the child.
        while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
        child=''
        [ -z "$stopped" ] || exit 1
        tries=$((tries + 1))
        if [ "$code" != 125 ] || [ "$tries" -ge 3 ]; then
            mkdir -p "$dir"
            echo "$code" >"$dir/code"
        fi
    done
    code=$(cat "$dir/code")
    [ "$code" = 0 ] || over "$code" "$dir ended with $code, so nothing comes after it"
}

step first --output words "$FIRST_IMAGE" -- /bin/sh -c 'for word in late binding late; do echo "$word"; done >words'
step second --inputs "$results/first/outputs" "$SECOND_IMAGE" -- /bin/sh -c 'sort words | uniq -c'
over 0 "both steps are over"
