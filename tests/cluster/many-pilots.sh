#!/bin/bash
# many-pilots.sh [PODS [BINDS-A-SECOND [SECONDS]]]: what the binds of many pilots cost the API server of the own cluster
# (up.sh), with simulated kubelets; then 200 pods at once while the server throttles (priority and fairness), and while
# it is started again. docs/scale.md says how to read it. By default 200 pods, 2 binds a second, 60 s.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/settings.sh"
need_root
program=$here/../../target/debug/examples/many-pilots
[ -x "$program" ] || die "cargo build -p latebind-cluster-tests --example many-pilots comes first"
alive kube-apiserver || die "no cluster runs: run tests/cluster/up.sh"
namespace=many-pilots
account=/var/run/secrets/kubernetes.io/serviceaccount
end() {
    kubectl delete --wait=false namespace "$namespace" >/dev/null 2>&1 || true
    kubectl delete node simulated >/dev/null 2>&1 || true
    kubectl delete flowschema,prioritylevelconfiguration many-pilots >/dev/null 2>&1 || true
    # No kubelet says that they have ended.
    kubectl -n "$namespace" delete pods --all --force --grace-period=0 --wait=false >/dev/null 2>&1 || true
    rm -rf "$work"
    rmdir -p "$account" 2>/dev/null || true
}
work=$(mktemp -d)
trap end EXIT
kubectl create namespace "$namespace"
kubectl apply -f - <<Y
apiVersion: v1
kind: Node
metadata: {name: simulated}
spec: {taints: [{key: simulated, effect: NoSchedule}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: pilot, namespace: $namespace}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: pilot, namespace: $namespace}
rules: [{apiGroups: [""], resources: [pods], verbs: [get, watch, patch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: pilot, namespace: $namespace}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: pilot}
subjects: [{kind: ServiceAccount, name: pilot, namespace: $namespace}]
Y
cat >"$work/throttle.yaml" <<Y
apiVersion: flowcontrol.apiserver.k8s.io/v1beta1
kind: PriorityLevelConfiguration
metadata: {name: many-pilots}
spec: {type: Limited, limited: {assuredConcurrencyShares: 1, limitResponse: {type: Reject}}}
---
apiVersion: flowcontrol.apiserver.k8s.io/v1beta1
kind: FlowSchema
metadata: {name: many-pilots}
spec:
  priorityLevelConfiguration: {name: many-pilots}
  matchingPrecedence: 100
  rules:
  - subjects: [{kind: ServiceAccount, serviceAccount: {name: pilot, namespace: $namespace}}]
    resourceRules: [{apiGroups: ["*"], resources: ["*"], verbs: ["*"], namespaces: ["*"]}]
Y
token() {
    local secret
    secret=$(kubectl -n "$namespace" get serviceaccount pilot -o 'jsonpath={.secrets[0].name}') && [ -n "$secret" ] &&
        kubectl -n "$namespace" get secret "$secret" -o 'jsonpath={.data.token}' | base64 -d >"$work/token" &&
        [ -s "$work/token" ]
}
wait_for 30 kube-controller-manager "a token" token
cp "$pki/ca.crt" "$work/ca.crt"
echo -n "$namespace" >"$work/namespace"
processes=
for name in kube-apiserver etcd; do processes+="$name=$(cat "$run/$name.pid") "; done
relay_port=${MANY_PILOTS_PORT:-7999}
export LATEBIND_PROCESSES=$processes LATEBIND_AUDIT_LOG=$logs/audit.log
export LATEBIND_API_PORT=$api_port LATEBIND_RELAY_PORT=$relay_port
export LATEBIND_THROTTLE="kubectl apply -f $work/throttle.yaml"
export LATEBIND_THROTTLE_END="kubectl delete -f $work/throttle.yaml"
server=$(cat "$run/kube-apiserver.pid")
export LATEBIND_RESTART="kill -KILL $server; while kill -0 $server 2>/dev/null; do sleep 0.1; done; $here/up.sh"
ulimit -n "$(ulimit -Hn)"
say "load of the machine: $(cut -d' ' -f1-3 /proc/loadavg), $(nproc) processors"
# The binder finds server and token where a pod has them.
mkdir -p "$account"
export KUBERNETES_SERVICE_HOST=127.0.0.1 KUBERNETES_SERVICE_PORT=$relay_port
unshare -m bash -c "mount --bind '$work' '$account' && exec '$program' '$namespace' ${1:-200} ${2:-2} ${3:-60}"
