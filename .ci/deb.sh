# Sourced by scripts that take a package of another architecture or suite apart, without installing it.
# shellcheck shell=bash

# unpack_deb MIRROR SUITE ARCHITECTURE PACKAGE DIR: fetches a package, checks it against the archive's index, as apt
# would, and unpacks it into DIR. Fails with a message on standard error.
unpack_deb() {
    local mirror=${1%/} suite=$2 architecture=$3 package=$4 dir=$5 entry file sum deb
    entry=$(curl -fsS "$mirror/dists/$suite/main/binary-$architecture/Packages.gz" | zcat |
        awk -v RS= -v package="$package" '$0 ~ "^Package: " package "\n"')
    file=$(sed -n 's/^Filename: //p' <<<"$entry")
    sum=$(sed -n 's/^SHA256: //p' <<<"$entry")
    [ -n "$file" ] || {
        echo "${0##*/}: the archive at $mirror has no $package for $architecture in $suite" >&2
        return 1
    }
    deb=$(mktemp)
    if curl -fsS -o "$deb" "$mirror/$file" && echo "$sum  $deb" | sha256sum --quiet --check &&
        mkdir -p "$dir" && dpkg-deb -x "$deb" "$dir"; then
        rm -f "$deb"
        return
    fi
    rm -f "$deb"
    echo "${0##*/}: $mirror/$file could not be fetched, or is not what the archive's index says" >&2
    return 1
}
