#!/bin/bash
# first-record.sh kind|k3s|microshift|current: from nothing to the first record. Makes a cluster of one node, gives it
# the images, applies deploy/, runs one job, and shows its record. Run it by `make first-record ON=...`, which makes the
# images first.
#
#   kind        a cluster named latebind, in docker or podman; needs kind and kubectl
#   k3s         k3s as a service of this machine; needs root, and asks https://get.k3s.io for the installer
#   microshift  MicroShift in a container of podman; needs root, and asks https://microshift-io.github.io for the
#               installer. Its security context constraints know nothing of Pod Security: the pilot's account gets the
#               one named `privileged`, whose users can do more than `baseline` admits; give it one of your own later
#   current     the cluster of KUBECONFIG; needs kubectl, and REGISTRY=host[:port][/path], which its nodes pull from
#
# Only `current` was run by the project's tests, with KUSTOMIZATION; the other three need a network, which its machines
# lack.
#
#   KUSTOMIZATION   what is applied (default: deploy, and with REGISTRY dist/deploy)
#   NAMESPACE       where, if that kustomization has another one (default latebind)
#   IMAGE           what the job runs in (default localhost/latebind/busybox:1, and with REGISTRY the one pushed there)
set -euo pipefail
cd "$(dirname "$0")/.."
on=${1:-}
namespace=${NAMESPACE:-latebind}
kustomization=${KUSTOMIZATION:-deploy}
image=${IMAGE:-localhost/latebind/busybox:1}
die() {
    echo "first-record.sh: $*" >&2
    exit 1
}
need() { command -v "$1" >/dev/null || die "$1 is missing: $2"; }
need_root() { [ "$(id -u)" = 0 ] || die "$on is installed on this machine: run this as root"; }
# load COMMAND...: hands each image's archive to a command, as its last argument
load() {
    local name
    for name in glue pilot busybox; do
        [ -s "dist/images/$name.tar" ] || die "dist/images/$name.tar is missing: make images archive"
        "$@" "dist/images/$name.tar"
    done
}
load_into_microshift() { podman exec -i microshift-okd podman load <"$1"; }

case $on in
kind)
    need kind "see https://kind.sigs.k8s.io/docs/user/quick-start/#installation"
    need kubectl "see https://kubernetes.io/docs/tasks/tools/"
    kind get clusters 2>/dev/null | grep -qx latebind || kind create cluster --name latebind --wait 120s
    load kind load image-archive --name latebind
    kubectl() { command kubectl --context kind-latebind "$@"; }
    ;;
k3s)
    need_root
    command -v k3s >/dev/null || curl -sfL https://get.k3s.io | sh -
    load k3s ctr images import
    kubectl() { k3s kubectl "$@"; }
    ;;
microshift)
    need_root
    need podman "install podman"
    podman container exists microshift-okd || curl -s https://microshift-io.github.io/microshift/quickstart.sh | bash
    load load_into_microshift
    podman exec microshift-okd rm -rf /tmp/latebind
    podman cp deploy microshift-okd:/tmp/latebind
    [ -n "${KUSTOMIZATION:-}" ] || kustomization=/tmp/latebind
    kubectl() { podman exec -i microshift-okd oc "$@"; }
    ;;
current)
    need kubectl "see https://kubernetes.io/docs/tasks/tools/"
    if [ -n "${REGISTRY:-}" ]; then
        images/publish.sh push
        [ -n "${KUSTOMIZATION:-}" ] || kustomization=dist/deploy
        tag=${TAG:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}
        image=${IMAGE:-${REGISTRY%/}/busybox:$tag}
    elif [ -z "${KUSTOMIZATION:-}" ]; then
        die "REGISTRY is not set: say where the cluster's nodes pull from, as REGISTRY=registry.example.org/me"
    fi
    ;;
*) die "where? ON=kind, k3s, microshift or current" ;;
esac

kubectl get namespace "$namespace" >/dev/null 2>&1 || kubectl apply -f - <deploy/namespace.yaml
if [ "$on" = microshift ]; then
    kubectl -n "$namespace" create rolebinding latebind-privileged --clusterrole=system:openshift:scc:privileged \
        --serviceaccount="$namespace:latebind-pilot" --dry-run=client -o yaml | kubectl apply -f -
fi
# The node of a new cluster, and its default accounts, may need a moment.
kubectl wait --for=condition=Ready node --all --timeout=300s
kubectl apply -k "$kustomization"
kubectl -n "$namespace" rollout status statefulset/latebind --timeout=300s
results=/var/lib/latebind/first
kubectl -n "$namespace" exec latebind-0 -c pilot -- watcher run --results "$results" "$image" -- echo hello
kubectl -n "$namespace" exec latebind-0 -c pilot -- watcher results "$results"
