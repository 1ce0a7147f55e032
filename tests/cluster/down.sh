#!/bin/bash
# down.sh [--wipe]: stops the cluster with all its containers, and puts back what it changed on the machine. Programs, sources, pushed
# images and the logs stay; --wipe removes images and logs, too.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/settings.sh"
need_root
[ -n "${LATEBIND_TURN_TAKEN:-}" ] || take_turn

if [ ! -e "$run" ]; then
    if [ "${1:-}" = --wipe ]; then rm -rf "$registries" "$logs" "$pki"; fi
    say "no cluster runs, in $state"
    exit 0
fi

# our_groups: the control groups of our pods
our_groups() {
    local place
    for place in /sys/fs/cgroup/*/"$group" /sys/fs/cgroup/"$group"; do [ ! -d "$place" ] || echo "$place"; done
}
# KILL at once: nothing of a cluster outlives it, so there is nothing that a process would have to put in order. Again until nothing is left,
# since the first round may miss what is just being started.
for ((i = 0; i < 200; i++)); do
    # shellcheck disable=SC2046
    left=$({
        marked
        find $(our_groups) /dev/null -name cgroup.procs -exec cat {} + 2>/dev/null
    } | grep -vx 0 | sort -u) || true # 0: a process of another PID namespace, and to kill(1) ourselves
    [ -n "$left" ] || break
    # shellcheck disable=SC2086
    kill -KILL $left 2>/dev/null || true
    sleep 0.05
done
[ -z "$left" ] || die "these processes cannot be ended: ${left//$'\n'/ }"

# From the innermost outwards; a group may be busy for a moment after its last process.
for ((i = 0; i < 100; i++)); do
    groups=$(our_groups)
    [ -n "$groups" ] || break
    # shellcheck disable=SC2086
    find $groups -depth -type d -exec rmdir {} + 2>/dev/null || true
    sleep 0.02
done
[ -z "$groups" ] || die "control groups remain: ${groups//$'\n'/ }; look for processes in their cgroup.procs"
# As long as another cluster runs it needs both, and the directories are where its mounts are.
if ! grep -qszE "^$mark=" /proc/[0-9]*/environ; then
    if [ -s "$machine/kernel-settings" ]; then
        while read -r setting value; do echo "$value" >"/proc/sys/$setting"; done <"$machine/kernel-settings"
    fi
    if [ -s "$machine/made-directories" ]; then
        while read -r place; do rmdir "$place" 2>/dev/null || true; done <"$machine/made-directories"
    fi
    rm -rf "$machine"
fi
# The mounts beneath went with their namespace.
rm -rf "$run" "$KUBECONFIG"
if [ "${1:-}" = --wipe ]; then rm -rf "$registries" "$logs" "$pki"; fi
done_in "stopped${1:+, images and logs removed}"
