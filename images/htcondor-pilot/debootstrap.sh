#!/bin/bash
# debootstrap.sh SUITE OUT.tar: root file system of Debian SUITE (trixie, or sid for HTCondor 25.x) with HTCondor as Debian has it,
# unmodified; kept for later runs.
set -euo pipefail
suite=${1:?usage: debootstrap.sh SUITE OUT.tar}
out=$(realpath -m "${2:?usage: debootstrap.sh SUITE OUT.tar}")
. "$(dirname "$0")/../debian-root.sh"
# The account that HTCondor's daemons have when they are not root. A fixed number, since `glue install --dir execute:UID:GID`, which
# runs in another image, gives it the EXECUTE directory. Below the payloads' 20000.
condor=19000
mirror=$(debian_mirror)
echo "images: fetching Debian $suite with HTCondor from $mirror, about two minutes, once; kept as $out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    tail -n 20 "$work/log" >&2
    echo "debootstrap.sh: $*; the last lines of its log are above" >&2
    exit 1
}
root=$work/root
debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$work/log" 2>&1 || fail "debootstrap of $suite failed"
printf 'condor:x:%s:%s:HTCondor:/var/lib/condor:/usr/sbin/nologin\n' "$condor" "$condor" >>"$root/etc/passwd"
printf 'condor:x:%s:\n' "$condor" >>"$root/etc/group"
install_packages "$root" condor procps >>"$work/log" 2>&1 || fail "HTCondor could not be installed"
pack_root "$root" "$out" "$root"/{var/log/apt,var/log/*.log,etc/condor/config.d/*}
