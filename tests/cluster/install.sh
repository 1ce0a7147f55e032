#!/bin/bash
# install.sh: what the cluster needs, from the archive of Debian 12 alone: programs, and the source package of Kubernetes (34 MB).
# Debian ships only the client of Kubernetes as a program; build.sh makes the servers.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/settings.sh"
release=$(. /etc/os-release && echo "${ID:-} ${VERSION_ID:-}")
[ "$release" = "debian 12" ] || die "this is '$release': the recipe is for Debian 12; elsewhere set KUBECONFIG and LATEBIND_REGISTRY to a cluster of your own"
"$here/../../.ci/setup.sh" cluster
take_turn

sources=("$state"/src/kubernetes_*.dsc)
if [ ! -s "${sources[0]}" ]; then
    # /etc/apt stays as it is: the machine's own list of Debian, but of source packages, with indexes of its own.
    mkdir -p "$state/apt/lists/partial" "$state/apt/cache/archives/partial" "$state/src"
    if [ -s /etc/apt/sources.list.d/debian.sources ]; then
        list=$state/apt/debian.sources
        sed 's/^Types:.*/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >"$list"
    else
        list=$state/apt/debian.list
        sed -n 's/^deb \(.*debian.* main.*\)/deb-src \1/p' /etc/apt/sources.list >"$list"
    fi
    [ -s "$list" ] || die "no Debian archive in /etc/apt/sources.list.d/debian.sources or /etc/apt/sources.list: name one there"
    cat >"$state/apt/apt.conf" <<A
Dir::Etc::sourcelist "$list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$state/apt/lists";
Dir::Cache "$state/apt/cache";
APT::Sandbox::User "root";
A
    (
        cd "$state/src"
        export APT_CONFIG=$state/apt/apt.conf
        apt-get -q update
        apt-get -q source --download-only kubernetes
    )
    rm -rf "$state/apt"
fi
# Unpacked in the state directory, not installed: they are services, which Debian would start, and they exclude the packages of
# other origin that a machine may have (containerd.io, Google's kubectl). The last one is for build.sh.
packages=(containerd runc etcd-server docker-registry containernetworking-plugins catatonit kubernetes-client
    golang-github-modern-go-reflect2-dev)
mkdir -p "$debian/packages"
for package in "${packages[@]}"; do
    [ ! -e "$debian/packages/$package" ] || continue
    (cd "$debian/packages" && apt-get -q -o APT::Sandbox::User=root download "$package")
    dpkg-deb -x "$debian/packages/${package}_"*.deb "$debian"
    mv "$debian/packages/${package}_"*.deb "$debian/packages/$package"
done
# Its kubectl 1.20 knows no components (kustomize 3.7), which deploy/ has.
if [ ! -x "$debian/usr/bin/kustomize" ]; then
    # A script of sh(1), for the project's directory.
    # shellcheck source=/dev/null
    kustomize=$(cd "$here/../.." && . .ci/deb.sh && kept_debs trixie amd64 kustomize)
    cp "$kustomize/usr/bin/kustomize" "$debian/usr/bin/"
fi
done_in "packages and sources are there, in $state"
