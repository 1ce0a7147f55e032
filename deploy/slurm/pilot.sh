#!/bin/bash
# pilot.sh SPOOL [OPTION...]: a Slurm job that is a pilot: it serves a spool (docs/protocol.md#spool) until that is
# empty, or the job's time is over, in containers within the limits of the job. What the node needs is in docs/slurm.md.
#
#   sbatch --mem=8G --cpus-per-task=2 --time=12:00:00 deploy/slurm/pilot.sh ~/spool --memory 7g --cpus 2
#
# OPTION           of `latebind-host pod`, such as --memory, --cpus, --allow, --slots
# IMAGES           an archive of images (podman save --multi-image-archive), where they come from no registry
# IDLE_EXIT        seconds after which an empty spool ends the job, default 60
# PRIVATE          where the pilot keeps its keys and the state of its jobs, default SPOOL-pilots/NAME-N with the job's
#                  name and its number in an array: one for each job that runs at the same time
#SBATCH --job-name=latebind
#SBATCH --ntasks=1
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
spool=$(realpath "${1:?usage: sbatch pilot.sh SPOOL [OPTION...]}")
shift
private=${PRIVATE:-$spool-pilots/$SLURM_JOB_NAME-${SLURM_ARRAY_TASK_ID:-0}}
mkdir -p "$spool/new" "$private"
exec 9>"$private.lock"
flock --nonblock 9 || {
    echo "pilot.sh: another job has $private: submit an array (sbatch --array=0-9), or name another one (PRIVATE)" >&2
    exit 1
}

# scancel and the time limit send TERM to this shell alone; the pod takes it as the request to drain, and a second one
# as that to end at once.
ends=''
trap 'ends=1' TERM
# Short, as podman 4 wants it, and not that of a session of the user on this node, which is outside of the job.
run=$(mktemp -d /tmp/lb.XXXXXX)
state=$(mktemp -d "${TMPDIR:-/tmp}/latebind.XXXXXX")
# podman has its storage mounted there, and the files in it are of the user's subordinate IDs.
# shellcheck disable=SC2016,SC2317 # for the shell inside; called by the trap
remove_state() {
    latebind-host podman unshare sh -c 'umount -l "$1/containers/overlay" 2>/dev/null; rm -rf "$1"' sh "$state" || :
    rm -rf "$run" "$state"
}
trap remove_state EXIT
export XDG_RUNTIME_DIR=$run LATEBIND_STATE=$state
LATEBIND_CGROUP_PARENT=$(sudo -n /usr/local/sbin/latebind-delegate)
export LATEBIND_CGROUP_PARENT
[ -z "${IMAGES:-}" ] || latebind-host podman load --quiet --input "$IMAGES"

# After TERM Slurm waits for KillWait, 30 s where the site says nothing else, of which the pod's removal takes some.
latebind-host pod --name "slurm-$SLURM_JOB_ID" --spool "$spool" --private "$private" --stop-timeout 20 "$@" \
    -- pilot --spool /spool --idle-exit "${IDLE_EXIT:-60}" &
host=$!
trap 'kill -TERM "$host" 2>/dev/null || :' TERM
[ -z "$ends" ] || kill -TERM "$host"
code=0
# A signal ends a wait and not what it waits for.
while :; do
    wait "$host" && code=0 || code=$?
    kill -0 "$host" 2>/dev/null || break
done
exit "$code"
