#!/bin/bash
# Jobs a second in place on Kubernetes, on a cluster of one node that is built and started here, and stopped afterwards;
# one that runs already (make cluster) is used and left running. Expects dist/ and the images (make bench-cluster makes
# them).
set -euo pipefail
cd "$(dirname "$0")/../.."
. .ci/rust.sh
cargo=$(need_cargo)
tests/cluster/up.sh --is-up || trap tests/cluster/down.sh EXIT
tests/cluster/all.sh
"$cargo" run --quiet --locked -p latebind-cluster-tests --example in-place
