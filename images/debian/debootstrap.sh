#!/bin/sh
# debootstrap.sh OUT.tar: root file system of Debian 12, its minimal variant, without documentation; kept for later runs.
set -eu
out=${1:?usage: debootstrap.sh OUT.tar}
suite=bookworm
# The archive that this machine uses itself, which may be the only one it reaches.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 2>/dev/null |
    sed -n "s/ $suite\$//p" | grep -m 1 /debian || echo http://deb.debian.org/debian)
echo "images: fetching Debian $suite from $mirror, about a minute, once; kept as $out"
mkdir -p "$(dirname "$out")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
debootstrap --variant=minbase "$suite" "$work/root" "$mirror" >"$work/log" 2>&1 || {
    tail -n 20 "$work/log" >&2
    echo "debootstrap.sh: debootstrap failed; the last lines of its log are above" >&2
    exit 1
}
cd "$work/root"
rm -rf var/cache/apt/* var/lib/apt/lists/* var/log/* usr/share/doc/* usr/share/man/* usr/share/locale/* usr/share/info/*
: >etc/resolv.conf
rm -f etc/hostname
tar --sort=name --numeric-owner --exclude='./dev/*' -cf "$work/root.tar" .
mv "$work/root.tar" "$out.new"
mv "$out.new" "$out"
