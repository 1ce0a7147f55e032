# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by run.sh: a pilot of deploy/job-before-1.32 on the cluster of tests/cluster, whose one node is this machine.
# The cluster is started for it, and stopped afterwards; one that runs already (make cluster) is used and left running.
. tests/cluster/settings.sh
images=$registry/latebind
client=(env kubectl --cache-dir="$run/kubectl" --namespace "$pod")
our_cluster='' beside=''

prepare() {
    heading "A cluster of one node, on this machine"
    tests/cluster/up.sh --is-up || our_cluster=yes
    tests/cluster/all.sh glue pilot busybox debian noshell liar-shell
}
# The manifest as it is shipped, but for: where the images are; the node's network, since the API server listens on
# loopback alone; and directories of the node for the spool and what is the watcher's own.
kustomization() {
    cat <<Y
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: $pod
resources: ["$(realpath --relative-to="$results/deploy" deploy/job-before-1.32)"]
images:
- {name: localhost/latebind/glue, newName: "$images/glue"}
- {name: localhost/latebind/pilot, newName: "$images/pilot"}
patches:
- patch: |
    apiVersion: v1
    kind: PersistentVolumeClaim
    metadata: {name: latebind-spool}
    \$patch: delete
- patch: |
    apiVersion: batch/v1
    kind: Job
    metadata: {name: latebind}
    spec:
      template:
        spec:
          hostNetwork: true
          containers:
          - name: payload
          - name: pilot
            args: [pilot, --spool, /spool, --idle-exit, "1", --name, pilot, --keep-keys, /var/lib/latebind/keys]
            env:
            - {name: KUBERNETES_SERVICE_HOST, value: 127.0.0.1}
            - {name: KUBERNETES_SERVICE_PORT, value: "$api_port"}
          volumes:
          - name: spool
            persistentVolumeClaim: null
            hostPath: {path: "$results/spool", type: Directory}
          - name: private
            emptyDir: null
            hostPath: {path: "$results/private", type: Directory}
Y
}
has_pod() {
    uid=$("${client[@]}" get pods -l job-name=latebind -o 'jsonpath={.items[*].metadata.uid}') && [ -n "$uid" ]
}
serve() {
    mkdir "$results/deploy"
    kustomization >"$results/deploy/kustomization.yaml"
    kustomize build "$results/deploy" >"$results/deploy/manifest.yaml"
    "${client[@]}" create namespace "$pod"
    "${client[@]}" apply -f "$results/deploy/manifest.yaml"
    wait_for 60 kube-controller-manager "a pod of the Job" has_pod
    work=$run/kubelet/pods/$uid/volumes/kubernetes.io~empty-dir/data-0/work
    "${client[@]}" get pods --watch --no-headers \
        -o 'custom-columns=:.metadata.name,:.spec.containers[?(@.name=="payload")].image' >"$results/images" &
    beside=$!
    "${client[@]}" wait --for=condition=complete --timeout=600s job/latebind >/dev/null &
    host=$!
}
collect() {
    [ -z "$work" ] || "${client[@]}" logs job/latebind -c pilot >"$results/log" || "${client[@]}" describe pods
}
clean() {
    [ -z "$beside" ] || kill "$beside" 2>/dev/null || true
    if [ -n "$our_cluster" ]; then
        tests/cluster/down.sh
    else
        # The namespace first: in one that is going, the Job gets no other pod.
        {
            "${client[@]}" delete namespace "$pod" --wait=false --ignore-not-found
            "${client[@]}" delete pods --all --wait=false --grace-period=1
        } >/dev/null 2>&1 || true
        "${client[@]}" wait --for=delete --timeout=120s "namespace/$pod" >/dev/null || true
    fi
}
