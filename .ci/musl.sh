#!/bin/bash
# musl.sh ARCHITECTURE: Debian's musl for another architecture (arm64), for linking static programs; prints the directory
# that has its files. Kept in the cache.
set -euo pipefail
cd "$(dirname "$0")/.."
. images/debian-root.sh
. .ci/deb.sh
architecture=${1:?usage: musl.sh ARCHITECTURE}
suite=bookworm
place=${XDG_CACHE_HOME:-$HOME/.cache}/latebind/musl-$suite-$architecture
mkdir -p "${place%/*}"
exec 9>"$place.lock"
flock 9
[ -d "$place" ] || {
    rm -rf "$place.new"
    for package in musl musl-dev; do
        unpack_deb "$(debian_mirror)" "$suite" "$architecture" "$package" "$place.new"
    done
    mv "$place.new" "$place"
}
echo "$place/usr"
