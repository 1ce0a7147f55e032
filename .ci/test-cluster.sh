#!/bin/bash
# test-cluster.sh: the tests on Kubernetes; ends with `N passed, M failed`. Expects dist/ and the images (make
# test-cluster makes them).
#
#   KUBECONFIG, LATEBIND_REGISTRY   a cluster of yours, and a host[:port][/path] that images can be pushed to and its
#                                   nodes pull from. Unless both are set, a cluster of one node is built and started here,
#                                   and stopped afterwards; one that runs already (make cluster) is used and left running.
#
# Tests in files named node_* use the node's own processes, or make the kubelet pull from this machine: they need our
# cluster.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
. .ci/rust.sh
. .ci/steps.sh
cargo=$(need_cargo) || exit
export LATEBIND_STATE=${LATEBIND_STATE:-/var/lib/latebind-test} # see the Makefile
export CARGO_TERM_COLOR=never
package=latebind-cluster-tests
targets=()
started='' # whether the cluster that runs is one that was started here
stop_cluster() {
    [ -n "$started" ] || return 0
    started=
    tests/cluster/down.sh
}
trap 'rm -f "$log"; stop_cluster' EXIT

# prepare COMMAND...: what comes before the tests; without it there is nothing to test
prepare() {
    "$@" || {
        echo "test-cluster.sh: ${1##*/} failed, no test was run" >&2
        echo "0 passed, 0 failed"
        exit 1
    }
}
# First, since it needs no cluster.
prepare "$cargo" test --quiet --locked --no-run -p "$package"
if [ -n "${KUBECONFIG:-}" ] && [ -n "${LATEBIND_REGISTRY:-}" ]; then
    echo "test-cluster.sh: on the cluster of $KUBECONFIG, with images from $LATEBIND_REGISTRY"
    prepare tests/cluster/push.sh
    targets=(--lib)
    for file in tests/cluster/tests/*.rs; do
        name=$(basename "$file" .rs)
        case $name in
        node_*) echo "test-cluster.sh: $name is not run here: it needs our own cluster" ;;
        *) targets+=(--test "$name") ;;
        esac
    done
else
    unset KUBECONFIG LATEBIND_REGISTRY
    prepare tests/cluster/install.sh
    prepare tests/cluster/build.sh
    tests/cluster/up.sh --is-up || started=yes
    prepare tests/cluster/up.sh
    prepare tests/cluster/push.sh
fi
# Two at a time: so many pods fit on our node.
step "tests on Kubernetes" "$cargo" test --locked --no-fail-fast -p "$package" ${targets[@]+"${targets[@]}"} \
    -- --test-threads=2
stop_cluster
conclude
