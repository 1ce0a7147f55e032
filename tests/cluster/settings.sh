# shellcheck shell=bash disable=SC2034,SC2013
# Sourced by the other scripts: where everything is kept, which ports are used, and how the cluster's processes are started and
# found again.
#
#   LATEBIND_CLUSTER         where sources, programs and state are kept (default ${XDG_CACHE_HOME:-~/.cache}/latebind-cluster)
#   LATEBIND_CLUSTER_NUMBER  0 to 9, default 0: a second cluster beside the first needs another number and another LATEBIND_CLUSTER

state=${LATEBIND_CLUSTER:-${XDG_CACHE_HOME:-$HOME/.cache}/latebind-cluster}
programs=$state/bin            # of Kubernetes, as build.sh makes them
debian=$state/debian           # packages of Debian, unpacked
PATH=$debian/usr/bin:$debian/usr/sbin:$PATH
run=$state/run                  # of this life of the cluster: sockets, process numbers, data; gone with the cluster
logs=$state/logs                # of the last life, also when it is over
registries=$state/registries    # pushed images; kept, so that the next push has little to do
pki=$state/pki
socket=$run/containerd.sock
export KUBECONFIG=$state/kubeconfig

# The node is named after its address: so the kubelet takes an address of the loopback interface, which it refuses otherwise.
node=127.0.0.1
number=${LATEBIND_CLUSTER_NUMBER:-0}
case $number in [0-9]) ;; *) echo "LATEBIND_CLUSTER_NUMBER is $number: set it to one digit" >&2 && exit 1 ;; esac
# In no two of them the same, whatever the numbers. src/access.rs has those that tests need.
api_port=$((7443 + 100 * number))
etcd_port=$((23790 + 100 * number))
etcd_peer_port=$((23800 + 100 * number))
kubelet_port=$((11250 + 100 * number))
kubelet_health_port=$((11248 + 100 * number))
controller_port=$((7457 + 100 * number))
scheduler_port=$((7459 + 100 * number))
registry=127.0.0.1:$((7500 + 100 * number))        # open to everybody
closed_registry=127.0.0.1:$((7501 + 100 * number)) # wants a user and a password
pod_network=10.$((120 + number)).0.0/24
group=latebind # the control group of the pods
[ "$number" = 0 ] || group=latebind-$number
# What clusters have changed on the machine; the last one puts it back.
machine=/var/lib/latebind-clusters
closed_user=latebind
closed_password=latebind

say() { echo "cluster: $*"; }
die() {
    echo "${0##*/}: $*" >&2
    exit 1
}
microseconds() { echo "${EPOCHREALTIME/[.,]/}"; }
begun=$(microseconds)
# done_in WHAT: says what has just been done, and how long the script has been at it
done_in() {
    local tenths=$((($(microseconds) - begun) / 100000))
    printf 'cluster: %4d.%d s  %s\n' $((tenths / 10)) $((tenths % 10)) "$*"
}

need_root() { [ "$(id -u)" = 0 ] || die "run this as root: it starts a container engine"; }
# One at a time: the second `up` waits for the first.
take_turn() {
    mkdir -p "$state"
    exec 9>"$state/lock"
    flock -w 600 9 || die "another script has held $state/lock for ten minutes: end it first"
}

# Each process of the cluster carries this variable, its children (containerd's shims) as well: they can be told from all others.
mark=LATEBIND_CLUSTER_PROCESS
# alive NAME: whether the process that launch started under that name is still there
alive() {
    local pid try
    pid=$(cat "$run/$1.pid" 2>/dev/null) && [ -n "$pid" ] || return 1
    # In the middle of an exec a process shows no environment.
    for try in 1 2 3; do
        grep -qzxF "$mark=$state:$1" "/proc/$pid/environ" 2>/dev/null && return 0
        kill -0 "$pid" 2>/dev/null || return 1
        sleep "0.0$try"
    done
    return 1
}
# marked: the numbers of all processes of this cluster but the containers' own
marked() {
    local file
    for file in $(grep -lzE "^$mark=$state:" /proc/[0-9]*/environ 2>/dev/null); do
        file=${file#/proc/}
        echo "${file%/environ}"
    done
}
# launch NAME PROGRAM ARGS...: starts what does not run yet, in the mount namespace of the cluster
launch() {
    local name=$1
    shift
    alive "$name" && return 0
    start "$name" nsenter --mount="/proc/$(cat "$run/namespace.pid")/ns/mnt" -- "$@"
}
# start NAME PROGRAM ARGS...: in the background, in a session of its own; returns when it carries its mark
start() {
    local name=$1 pid
    shift
    # 9 is the lock of take_turn, which must not live as long as the process.
    env "$mark=$state:$name" setsid "$@" >>"$logs/$name.log" 2>&1 </dev/null 9>&- &
    pid=$!
    echo $pid >"$run/$name.pid"
    until alive "$name" || ! kill -0 $pid 2>/dev/null; do sleep 0.01; done
}
# wait_for SECONDS NAME WHAT COMMAND...: until the command succeeds; fails at once when the process of that name has ended
wait_for() {
    local seconds=$1 name=$2 what=$3 deadline
    shift 3
    deadline=$(($(microseconds) + seconds * 1000000))
    until "$@" >/dev/null 2>&1; do
        alive "$name" || die "$name has ended; the last lines of $logs/$name.log:
$(tail -n 5 "$logs/$name.log")"
        [ "$(microseconds)" -lt "$deadline" ] || die "$what: not within $seconds s; see $logs/$name.log"
        sleep 0.05
    done
}
# kubectl with its cache here instead of in ~/.kube.
kubectl() { command kubectl --cache-dir="$run/kubectl" "$@"; }
# The engine's own client, in the namespace that the kubelet uses.
containers() { ctr --address "$socket" --namespace k8s.io "$@"; }
