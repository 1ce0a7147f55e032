#!/bin/bash
# boot.sh SUITE EXCHANGE [DISK]: boots a machine of Debian SUITE with control groups v2, runs EXCHANGE/run in it as root
# (EXCHANGE is /host there, DISK is /dev/ubdb), and ends when it ended. What it prints goes to EXCHANGE/out, its exit
# status to EXCHANGE/code: a machine that was lost leaves none. The root disk is not changed by a run.
#
# LATEBIND_V2_MEMORY    of the machine, default 4G
# LATEBIND_V2_SECONDS   after which it is ended, default 3600
set -euo pipefail
cd "$(dirname "$0")"
suite=${1:?usage: boot.sh SUITE EXCHANGE [DISK]}
exchange=$(realpath "${2:?usage: boot.sh SUITE EXCHANGE [DISK]}")
extra=$(realpath "${3:-/dev/null}")
root=$(./disk.sh "$suite")
libc=$(./disk.sh trixie)
kernel=$(echo "$(dirname "$root")"/kernel-*)
memory=${LATEBIND_V2_MEMORY:-4G}
export exchange extra root libc kernel memory
rm -f "$exchange/code"
# In namespaces of its own, so that its mounts and its processes go with it, whatever ends this.
exec timeout --signal=KILL "${LATEBIND_V2_SECONDS:-3600}" unshare --mount --pid --fork --kill-child bash -euc '
    top=$(mktemp -d)
    mount -t tmpfs -o "size=$memory" tmpfs "$top"
    mkdir "$top/libc" "$top/tmp"
    mount -o ro,noload,loop "$libc" "$top/libc"
    for directory in tmp mnt srv opt; do mount -t tmpfs tmpfs "$top/libc/$directory"; done
    mount --bind "$kernel" "$top/libc/opt"
    mkdir "$top/libc/srv/disks" "$top/libc/srv/exchange"
    mount --bind "$exchange" "$top/libc/srv/exchange"
    touch "$top/libc/srv/disks/root" "$top/libc/srv/disks/extra"
    mount --bind "$root" "$top/libc/srv/disks/root"
    mount --bind "$extra" "$top/libc/srv/disks/extra"
    mount --bind "$top/tmp" "$top/libc/tmp"
    mount -t proc proc "$top/libc/proc"
    mount --bind /dev "$top/libc/dev"
    # The root disk is written to a file beside it (copy on write), which goes with the tmpfs.
    # Not as PID 1, which User Mode Linux cannot be: the shell stays.
    HOME=/tmp TMPDIR=/tmp chroot "$top/libc" /opt/usr/bin/linux.uml "mem=$memory" seccomp=auto quiet \
        ubd0=/tmp/changes,/srv/disks/root ubd1=/srv/disks/extra root=/dev/ubda rw \
        con=null con0=null,fd:1 net.ifnames=0 </dev/null || exit
'
