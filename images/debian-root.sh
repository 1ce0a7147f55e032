# debian-root.sh: what the scripts that fetch a Debian root file system share; to be sourced.
# shellcheck shell=sh

# debian_mirror: the archive that this machine uses itself, which may be the only one it reaches.
debian_mirror() {
    apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 2>/dev/null |
        sed -n 's/ bookworm$//p' | grep -m 1 /debian || echo http://deb.debian.org/debian
}

# install_packages ROOT PACKAGE...: installs packages of its own suite in a root that debootstrap has made.
install_packages() {
    printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d" # nothing is started in a chroot
    chmod 755 "$1/usr/sbin/policy-rc.d"
    # In a mount namespace of its own, so that /proc, which some maintainer scripts read, is gone with it.
    unshare --mount sh -euc '
        root=$1
        shift
        mount -t proc proc "$root/proc"
        export DEBIAN_FRONTEND=noninteractive LC_ALL=C
        chroot "$root" apt-get -q install -y --no-install-recommends "$@"
    ' sh "$@" && rm "$1/usr/sbin/policy-rc.d"
}

# pack_root ROOT OUT.tar WHAT...: leaves out documentation, what packages were fetched from, what this machine has put there, and the paths WHAT;
# OUT.tar is there whole or not at all. ROOT's parent directory is used for it.
pack_root() (
    to=$2
    cd "$1" || exit
    shift 2
    rm -rf var/cache/apt/* var/lib/apt/lists/* usr/share/doc/* usr/share/man/* usr/share/locale/* usr/share/info/* "$@"
    : >etc/resolv.conf
    rm -f etc/hostname
    tar --sort=name --numeric-owner --exclude='./dev/*' --exclude='./proc/*' -cf ../root.tar .
    mkdir -p "$(dirname "$to")"
    mv ../root.tar "$to.new"
    mv "$to.new" "$to"
)
