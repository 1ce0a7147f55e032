#!/bin/bash
# condor.sh: an HTCondor pool on this machine, central manager, schedd and a pilot of one slot (tests/condor/up.sh), and
# six jobs of a user in several images. The pool is ended afterwards. `make demo-condor` builds what is needed first.
set -euo pipefail
cd "$(dirname "$0")/../.."
export LATEBIND_STATE=${LATEBIND_STATE:-/var/lib/latebind-condor}
results=${LATEBIND_DEMO:-/var/tmp/latebind-demo-condor}
started=$SECONDS
. tests/demo/common.sh
pool=demo-$$
home=$LATEBIND_STATE/pools/$pool/home
alice() { images/podman exec --user alice --workdir /home/alice "pool-$pool" "$@" </dev/null; }
# What latebind-host and the pilot have said.
collect() { cp "${home%/home}/log" "$results/log" || true; }
rm -rf "$results"
mkdir -p "$results"
cleanup() {
    status=$?
    trap '' INT TERM
    tests/condor/down.sh "$pool"
    exit "$status"
}
trap cleanup EXIT

heading "A pool: central manager, schedd, and a pilot in a pod that offers its slot"
tests/condor/up.sh "$pool"
alice condor_status

heading "A user submits six jobs"
cp tests/demo/condor.sub "$home/jobs.sub"
cp LICENSE "$home/text"
alice condor_submit jobs.sub
for ((i = 0; ; i++)); do
    waiting=$(alice condor_q -constraint 'JobStatus != 4 && JobStatus != 5' -format '%s ' JobBatchName)
    [ -n "$waiting" ] || break
    [ $i -lt 300 ] || fail "these jobs have not ended within five minutes: $waiting"
    sleep 1
done

heading "Results"
{
    printf '%-10s  %-15s  %-9s  %-11s  %-18s  %s\n' JOB IMAGE STATE OUTCOME SLOT 'REASON OF THE HOLD'
    alice condor_q -format '%-10s  ' JobBatchName \
        -format '%-15s  ' 'substr(ContainerImage, size("docker://localhost/latebind/"))' \
        -format '%-9s  ' 'ifThenElse(JobStatus == 5, "held", "completed")' \
        -format '%-11s  ' 'ifThenElse(JobStatus == 5, "-",
            ifThenElse(ExitBySignal, strcat("signaled ", ExitSignal), strcat("exited ", ExitCode)))' \
        -format '%-18s  ' LastRemoteHost \
        -format '%s\n' 'HoldReason ?: "-"'
} | tee "$results/table"
expect <(awk -F '  +' 'NR > 1 {
    print $1, $2, $3, $4, $6 ~ /: ImageNotFound: / ? "ImageNotFound" : $6 }' "$results/table") <<'T'
1-no-shell noshell:1 completed exited 0 -
2-debian debian:1 completed exited 0 -
3-fails busybox:1 completed exited 3 -
4-signal busybox:1 completed signaled 11 -
5-liar liar-shell:1 completed exited 0 -
6-missing no-such-image:1 held - ImageNotFound
T

heading "What the jobs wrote"
cp -r "$home/." "$results/"
cat "$results/1-no-shell.out"
echo "the five most frequent words of the Apache licence, counted in a Debian image:"
cat "$results/2-debian.out"
[ "$(wc -l <"$results/2-debian.out")" = 5 ] || fail "five words should have been counted"

collect
heading "Done in $((SECONDS - started)) s"
echo "submitted: $results/jobs.sub; results: $results/<job>.{out,err}; logs: $results/{jobs.log,log}"
