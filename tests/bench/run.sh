#!/bin/bash
# What late binding costs, side by side with a shell loop, tini, dumb-init and a bare fork+exec+wait: a table here, and
# dist/bench.json. Nothing is asserted; it fails only where something could not be run. docs/benchmarks.md says how to read it.
#
#   TRIES        tries of each figure (default 200)
#   BENCH_GLUE   another build of glue to measure in place of dist/glue
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
exec dist/bench all "${TRIES:-200}"
