#!/bin/bash
# test-cluster.sh: the tests on Kubernetes; ends with `N passed, M failed`. Expects dist/ and the images (make
# test-cluster makes them).
#
#   KUBECONFIG, LATEBIND_REGISTRY   a cluster of yours, and a host[:port][/path] that images can be pushed to and its
#                                   nodes pull from. Unless both are set, a cluster of one node is built and started here,
#                                   and stopped afterwards; one that runs already (make cluster) is used and left running.
#
#   LATEBIND_NODE_EXEC              how a command is run as root on the node: "ssh node",
#                                   "docker exec -i kind-control-plane".
#                                   By default the node of our own cluster is this machine.
#   LATEBIND_KUBELET_DIR            the kubelet's directory there, on a cluster of yours (default /var/lib/kubelet)
#
# Each test says which servers it is for and what it needs of the cluster (tests/cluster/src/needs.rs). Those that this
# cluster is not for are named with the reason, left out, and not counted.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
. .ci/rust.sh
. .ci/steps.sh
cargo=$(need_cargo) || exit
export LATEBIND_STATE=${LATEBIND_STATE:-/var/lib/latebind-test} # see the Makefile
export CARGO_TERM_COLOR=never
package=latebind-cluster-tests
left_out=() # arguments that leave tests out
own=''     # whether it is our own cluster
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
else
    unset KUBECONFIG LATEBIND_REGISTRY
    tests/cluster/up.sh --is-up || started=yes
    prepare tests/cluster/all.sh
    own=yes
fi
list=$(prepare "$cargo" run --quiet --locked -p "$package" --example left-out) || {
    echo "$list"
    exit 1
}
while read -r name file reason; do
    [ -n "$name" ] || continue
    echo "test-cluster.sh: left out: $file: $name: $reason"
    left_out+=(--skip "$name")
    announced=$((${announced:-0} + 1))
done <<<"$list"
# Two at a time: so many pods fit on our node.
step "tests on Kubernetes" "$cargo" test --locked --no-fail-fast -p "$package" \
    -- --test-threads=2 --exact ${left_out[@]+"${left_out[@]}"}
[ -z "$own" ] || step "demonstration" tests/demo/run.sh cluster
stop_cluster
conclude
