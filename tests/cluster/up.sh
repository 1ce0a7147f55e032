#!/bin/bash
# up.sh [--is-up]: a real Kubernetes cluster of one node on this machine, on loopback addresses alone, with two image registries: one open, one that wants
# a password. What runs already is left as it is, so it also brings back a single process that has been stopped.
#
# All processes share a mount namespace of their own, in which the directories that kubelet and containerd have hard-coded
# lie in the state directory: nothing else of the machine is touched but some kernel settings, which down.sh puts back.
# --is-up only says whether a cluster runs, by the exit code. Tried with control groups of version 1 alone.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/settings.sh"
need_root
if [ "${1:-}" = --is-up ]; then
    alive namespace
    exit
fi
take_turn
for program in etcd containerd runc ctr docker-registry kubectl catatonit openssl jq curl; do
    command -v "$program" >/dev/null || die "$program is missing: run tests/cluster/install.sh"
done
for program in kube-apiserver kube-controller-manager kube-scheduler kubelet; do
    [ -x "$programs/$program" ] || die "$programs/$program is missing: run tests/cluster/build.sh"
done

# --- a fresh life, unless one is under way ------------------------------------------------------------------------------
if ! alive namespace; then
    [ ! -e "$run" ] || LATEBIND_TURN_TAKEN=1 "$here/down.sh" # what a crash or a reboot left
    if (: <>"/dev/tcp/127.0.0.1/$api_port") 2>/dev/null; then
        other=$(cat /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' | sed -n "s/^$mark=\(.*\):namespace\$/\1/p" | head -n 1) || true
        die "something listens on port $api_port already${other:+, perhaps the cluster of $other}: stop it, or set LATEBIND_CLUSTER_NUMBER for a second one"
    fi
    mkdir -p "$run"/{hard-coded/{pods,containers,containerd,cni,netns},etcd,containerd,kubelet} "$registries"/{open,closed} "$machine"
    rm -rf "$logs"
    mkdir -p "$logs"
    # Directories of these names are made on the machine where they are missing, and removed by down.sh.
    declare -A hard_coded=([/var/log/pods]=pods [/var/log/containers]=containers [/run/containerd]=containerd [/var/lib/cni]=cni
        [/run/netns]=netns)
    for place in "${!hard_coded[@]}"; do
        [ -d "$place" ] || { mkdir -p "$place" && echo "$place" >>"$machine/made-directories"; }
    done
    binds=$(for place in "${!hard_coded[@]}"; do echo "mount --bind '$run/hard-coded/${hard_coded[$place]}' $place"; done)
    # slave: mounts made on the machine later are seen here as well, and none of ours is seen there.
    start namespace unshare --mount --propagation slave sh -euc "$binds; touch '$run/namespace-made'; exec sleep infinity"
    wait_for 10 namespace "a mount namespace" test -e "$run/namespace-made"
fi

# --- certificates, accounts ---------------------------------------------------------------------------------------------
"$here/certificates.sh" "$pki"
# login FILE NAME: a kubeconfig with everything in it
login() {
    cat >"$1" <<Y
apiVersion: v1
kind: Config
clusters: [{name: latebind, cluster: {server: "https://127.0.0.1:$api_port", certificate-authority-data: $(base64 -w0 "$pki/ca.crt")}}]
users: [{name: $2, user: {client-certificate-data: $(base64 -w0 "$pki/$2.crt"), client-key-data: $(base64 -w0 "$pki/$2.key")}}]
contexts: [{name: latebind, context: {cluster: latebind, user: $2}}]
current-context: latebind
Y
    chmod 600 "$1"
}
login "$KUBECONFIG" admin
for name in kubelet controllers scheduler; do login "$run/$name.kubeconfig" "$name"; done

# --- registries ---------------------------------------------------------------------------------------------------------
# bcrypt is the only form that docker-registry reads; perl's crypt(3) is libxcrypt's, which has it.
[ -s "$run/htpasswd" ] || perl -e 'printf "%s:%s\n", $ARGV[0], crypt($ARGV[1], q($2y$05$latebindlatebindlateb.))' "$closed_user" "$closed_password" >"$run/htpasswd"
# registry_config ADDRESS DIRECTORY
registry_config() {
    cat <<Y
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $registries/$2}, delete: {enabled: true}}
http: {addr: $1, secret: latebind}
Y
}
registry_config "$registry" open >"$run/registry.yaml"
registry_config "$closed_registry" closed >"$run/closed-registry.yaml"
echo "auth: {htpasswd: {realm: latebind, path: $run/htpasswd}}" >>"$run/closed-registry.yaml"
launch registry docker-registry serve "$run/registry.yaml"
launch closed-registry docker-registry serve "$run/closed-registry.yaml"

# --- etcd, container engine, API server ---------------------------------------------------------------------------------
# A cluster that does not outlive its processes needs no fsync.
launch etcd etcd --name latebind --data-dir "$run/etcd" --unsafe-no-fsync \
    --listen-client-urls "http://127.0.0.1:$etcd_port" --advertise-client-urls "http://127.0.0.1:$etcd_port" \
    --listen-peer-urls "http://127.0.0.1:$etcd_peer_port" --initial-advertise-peer-urls "http://127.0.0.1:$etcd_peer_port" \
    --initial-cluster "latebind=http://127.0.0.1:$etcd_peer_port"

pause=localhost/pause:1
cat >"$run/containerd.toml" <<T
version = 2
root = "$run/containerd/root"
state = "$run/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "$socket"
[plugins."io.containerd.internal.v1.opt"]
  path = "$run/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$pause"
  restrict_oom_score_adj = true # else a caller with a raised score could start nothing
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$debian/usr/lib/cni"
    conf_dir = "$run/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
T
# For pods without hostNetwork; without any network the node never gets Ready. Such a pod does not reach the API server,
# which listens on loopback.
mkdir -p "$run/cni"
cat >"$run/cni/10-latebind.conflist" <<J
{"cniVersion": "0.4.0", "name": "latebind", "plugins": [{"type": "ptp",
 "ipam": {"type": "host-local", "dataDir": "$run/addresses", "subnet": "$pod_network"}}]}
J
launch containerd containerd --config "$run/containerd.toml"

# Each request of a pod's service account, as it comes in: tests count them.
cat >"$run/audit-policy.yaml" <<Y
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [ResponseStarted, ResponseComplete]
rules:
- {level: None, userGroups: ["system:serviceaccounts:kube-system"]}
- {level: Metadata, userGroups: ["system:serviceaccounts"]}
- {level: None}
Y
launch kube-apiserver "$programs/kube-apiserver" \
    --etcd-servers="http://127.0.0.1:$etcd_port" --storage-media-type=application/json \
    --bind-address=127.0.0.1 --secure-port="$api_port" --insecure-port=0 --advertise-address=127.0.0.1 --endpoint-reconciler-type=none \
    --service-cluster-ip-range=10.0.0.0/24 --cert-dir="$run" --client-ca-file="$pki/ca.crt" \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --audit-policy-file="$run/audit-policy.yaml" --audit-log-path="$logs/audit.log" \
    --service-account-issuer=https://kubernetes.default.svc \
    --service-account-signing-key-file="$pki/accounts.key" --service-account-key-file="$pki/accounts.pub" \
    --kubelet-client-certificate="$pki/admin.crt" --kubelet-client-key="$pki/admin.key" --kubelet-preferred-address-types=InternalIP

for name in registry closed-registry; do
    address=$(sed -n 's/^http: {addr: \([^,]*\),.*/\1/p' "$run/$name.yaml")
    # Any answer will do: the closed one says 401.
    wait_for 20 "$name" "the registry on $address" curl -s -o /dev/null "http://$address/v2/"
done
wait_for 20 containerd "the container engine" containers version
if ! containers images ls -q 2>/dev/null | grep -qx "$pause"; then
    # Waits and reaps: what the first container of a pod is for.
    "$here/one-program-image.sh" "$run/pause.tar" "$pause" "$(command -v catatonit)" /pause -P
    containers images import "$run/pause.tar" >>"$logs/import.log" 2>&1 || die "the pause image was not imported: see $logs/import.log"
fi
done_in "registries on $registry (open) and $closed_registry (user $closed_user, password $closed_password), container engine"
wait_for 60 kube-apiserver "the API server" kubectl get --raw /readyz
done_in "API server on 127.0.0.1:$api_port"

# --- controllers, scheduler, kubelet ------------------------------------------------------------------------------------
launch kube-controller-manager "$programs/kube-controller-manager" --kubeconfig="$run/controllers.kubeconfig" \
    --bind-address=127.0.0.1 --secure-port="$controller_port" --port=0 --cert-dir="$run" --leader-elect=false \
    --authentication-kubeconfig="$run/controllers.kubeconfig" --authorization-kubeconfig="$run/controllers.kubeconfig" \
    --service-account-private-key-file="$pki/accounts.key" --root-ca-file="$pki/ca.crt" --use-service-account-credentials=true \
    --flex-volume-plugin-dir="$run/volume-plugins"
launch kube-scheduler "$programs/kube-scheduler" --kubeconfig="$run/scheduler.kubeconfig" \
    --authentication-kubeconfig="$run/scheduler.kubeconfig" --authorization-kubeconfig="$run/scheduler.kubeconfig" \
    --bind-address=127.0.0.1 --secure-port="$scheduler_port" --port=0 --cert-dir="$run" --leader-elect=false

# Settings of the kernel that the kubelet and the network plugin change.
if [ ! -s "$machine/kernel-settings" ]; then
    for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys \
        kernel/keys/root_maxbytes net/ipv4/ip_forward; do
        echo "$setting $(cat "/proc/sys/$setting")"
    done >"$machine/kernel-settings"
fi
# The pods' control groups are below one of our own, which must be there in each hierarchy, with processors to hand out.
for hierarchy in /sys/fs/cgroup/*/ /sys/fs/cgroup/; do
    [ -e "$hierarchy/cgroup.procs" ] || continue
    mkdir -p "$hierarchy/$group"
    for file in cpuset.cpus cpuset.mems; do
        [ ! -e "$hierarchy/$group/$file" ] || cat "$hierarchy/$file" >"$hierarchy/$group/$file" 2>/dev/null || true
    done
done
cat >"$run/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
port: $kubelet_port
healthzBindAddress: 127.0.0.1
healthzPort: $kubelet_health_port
readOnlyPort: 0
# Logs and exec come from the API server, which has a certificate.
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: $pki/ca.crt}}
authorization: {mode: AlwaysAllow}
registerNode: true
cgroupDriver: cgroupfs
cgroupRoot: /$group
enforceNodeAllocatable: []
failSwapOn: false
makeIPTablesUtilChains: false
oomScoreAdj: 0
maxOpenFiles: 20000
volumePluginDir: $run/volume-plugins
resolvConf: /etc/resolv.conf
# A registry that never answers, which tests have, must not keep the images of other pods waiting.
serializeImagePulls: false
# Never for want of disk: tests count on images and pods that stay.
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
nodeStatusUpdateFrequency: 1s
# How often a volume's use is measured: no test waits a minute for the eviction of a pod that fills one.
volumeStatsAggPeriod: 5s
featureGates: {DevicePlugins: false}
Y
fresh=0
alive kubelet || fresh=$(date +%s)
launch kubelet "$programs/kubelet" --config="$run/kubelet.yaml" --kubeconfig="$run/kubelet.kubeconfig" --hostname-override="$node" \
    --root-dir="$run/kubelet" --cert-dir="$run/kubelet/pki" \
    --container-runtime=remote --container-runtime-endpoint="unix://$socket" --v=2

# ready: the node says so, and not as the last word of a kubelet that has been stopped
ready() {
    local word at
    read -r word at < <(kubectl get node "$node" \
        -o 'jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{end}')
    [ "$word" = True ] && [ "$(date -d "$at" +%s)" -ge "$fresh" ]
}
wait_for 60 kube-controller-manager "the default service account" kubectl get serviceaccount/default configmap/kube-root-ca.crt
wait_for 90 kubelet "a node that is ready" ready
# The last taint of a new node goes with a controller, and pods wait for that.
schedulable() { [ -z "$(kubectl get node "$node" -o 'jsonpath={.spec.taints}')" ]; }
wait_for 60 kube-controller-manager "a node that takes pods" schedulable
done_in "the node $node is ready; export KUBECONFIG=$KUBECONFIG"
