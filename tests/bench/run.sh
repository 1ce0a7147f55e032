#!/bin/bash
# What late binding costs, side by side with a shell loop, tini, dumb-init and a bare fork+exec+wait: a table here and
# dist/bench.json; then table and pictures of docs/benchmarks.md, which says how to read them. Nothing is asserted; it
# fails only where something could not be run.
#
#   TRIES        tries of each figure (default 200)
#   BENCH_GLUE   another build of glue to measure in place of dist/glue; docs/ stays as it is
#
# dist/bench glue 200      only glue's times, for comparing two builds
# dist/bench in-place 200  only jobs a second in place
# dist/bench profile       a timeline of one job
# dist/bench monitor       what it costs to watch a job of 1000 processes
set -euo pipefail
cd "$(dirname "$0")/../.."
for program in glue watcher latebind-host bench stamp; do
    [ -x "dist/$program" ] || {
        echo "bench: dist/$program is missing: make build" >&2
        exit 1
    }
done
images/build.sh glue busybox pilot
echo "bench: takes about 3 minutes; the quieter the machine, the truer the numbers. Load now: $(cut -d' ' -f1-3 /proc/loadavg)"
dist/bench all "${TRIES:-200}"
[ -n "${BENCH_GLUE:-}" ] || {
    dist/bench draw dist/bench.json docs
    echo "bench: docs/benchmarks.md and its pictures are of this run now; git checkout docs takes that back"
}
