#!/bin/bash
# busybox-arm64.sh: Debian's static busybox for arm64, in the version that this machine has; prints its path. Kept in the
# cache.
set -euo pipefail
cd "$(dirname "$0")/.."
. images/debian-root.sh
. .ci/deb.sh
place=${XDG_CACHE_HOME:-$HOME/.cache}/latebind/busybox-arm64
[ -x "$place/bin/busybox" ] || {
    mkdir -p "${place%/*}"
    rm -rf "$place.new"
    unpack_deb "$(debian_mirror)" bookworm arm64 busybox-static "$place.new"
    rm -rf "$place"
    mv "$place.new" "$place"
}
echo "$place/bin/busybox"
