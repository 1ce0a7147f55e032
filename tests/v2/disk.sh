#!/bin/bash
# disk.sh SUITE: the root disk of a machine of Debian SUITE (trixie, bookworm) with what users of podman,
# docker, Slurm and NFS have there, and the kernel for it; prints the disk's path. Kept for later runs in the cache,
# about four minutes the first time.
#
# The kernel is Debian's User Mode Linux of sid: a kernel that is an ordinary program, which needs no KVM and gives
# control groups v2 whatever the machine itself has. It needs a newer libc than Debian 12's, so it runs in the root of a
# trixie (boot.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."
. .ci/deb.sh
suite=${1:?usage: disk.sh SUITE}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/latebind/v2
# What is written below decides what the disk has: another text, another disk.
version=$(cat images/debian-root.sh .ci/deb.sh tests/v2/disk.sh tests/v2/latebind-v2.service | sha256sum | cut -c1-12)
disk=$cache/$suite-$version.ext4
kernel=$cache/kernel-$version
mirror=$(debian_mirror)
mkdir -p "$cache"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    [ ! -s "$work/log" ] || tail -n 20 "$work/log" >&2
    echo "disk.sh: $*" >&2
    exit 1
}

exec 9>"$cache/lock"
flock 9
[ -x "$kernel/usr/bin/linux.uml" ] || {
    unpack_debs "$work/kernel" sid amd64 user-mode-linux
    rm -rf "$cache"/kernel-*
    mv "$work/kernel" "$kernel"
}
[ -e "$disk" ] || {
    echo "disk.sh: fetching Debian $suite from $mirror, about four minutes, once; kept as $disk" >&2
    root=$work/root
    debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$work/log" 2>&1 || fail "debootstrap of $suite failed"
    # In Debian 12 the client is part of it.
    docker=docker.io
    [ "$suite" = bookworm ] || docker="docker.io docker-cli"
    # shellcheck disable=SC2086 # a list
    install_packages "$root" systemd systemd-sysv dbus dbus-user-session udev kmod procps iproute2 util-linux uidmap \
        podman crun netavark busybox-static ca-certificates openssl debootstrap e2fsprogs jq strace \
        $docker slurmctld slurmd slurm-client munge sudo nfs-kernel-server \
        >>"$work/log" 2>&1 || fail "packages could not be installed"
    rm -rf "$root"/var/{cache/apt,lib/apt/lists}/* "$root"/usr/share/{doc,man,locale}/*
    modules=$kernel/usr/lib/uml/modules
    mkdir -p "$root/lib/modules"
    cp -a "$modules"/. "$root/lib/modules/"
    chroot "$root" depmod "$(ls "$modules")"
    printf 'v2\n' >"$root/etc/hostname"
    printf '127.0.0.1 localhost v2\n' >"$root/etc/hosts"
    printf '/dev/ubda / ext4 defaults 0 0\n' >"$root/etc/fstab"
    cp tests/v2/latebind-v2.service "$root/etc/systemd/system/"
    mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
    ln -s ../latebind-v2.service "$root/etc/systemd/system/multi-user.target.wants/"
    # A test that needs one of these starts it.
    chroot "$root" systemctl --quiet disable docker.service docker.socket containerd.service slurmctld.service \
        slurmd.service munge.service nfs-server.service rpcbind.service rpcbind.socket \
        >>"$work/log" 2>&1 || fail "services could not be disabled"
    # Debian 12's udevd does not understand the kernel; nothing here needs one.
    for unit in systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket \
        systemd-udev-trigger.service systemd-udev-settle.service getty.target console-getty.service \
        apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
        systemd-timesyncd.service systemd-networkd.service; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit"
    done
    rm -f "$cache/$suite"-*.ext4
    mkfs.ext4 -q -m 0 -E lazy_itable_init=0 -d "$root" "$work/disk" 4G >/dev/null
    mv "$work/disk" "$disk"
}
echo "$disk"
