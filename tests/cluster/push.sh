#!/bin/bash
# push.sh [NAME...]: copies localhost/latebind/NAME:1 (default: all of images/) from the project's storage into the cluster's open
# registry, as latebind/NAME:1; and busybox into the closed one, for tests of images that are denied. What is there already stays.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/settings.sh"
images=$here/../../images
need_root
alive registry || die "the registry on $registry does not run: run tests/cluster/up.sh"
if [ $# = 0 ]; then
    for file in "$images"/*/Containerfile; do
        file=${file%/Containerfile}
        set -- "$@" "${file##*/}"
    done
fi
pushed=0 unchanged=0
# push NAME REGISTRY MARK OPTION...: MARK is a file with the ID of what was pushed last
push() {
    local name=$1 to=$2 mark=$3 id
    shift 3
    id=$("$images/podman" images --quiet --no-trunc "localhost/latebind/$name:1")
    [ -n "$id" ] || die "there is no image localhost/latebind/$name:1 in the project's storage: run images/build.sh $name"
    if [ "$(cat "$mark" 2>/dev/null)" = "$id" ]; then
        unchanged=$((unchanged + 1))
        return 0
    fi
    "$images/podman" push --quiet --tls-verify=false "$@" "localhost/latebind/$name:1" "$to/latebind/$name:1" ||
        die "latebind/$name:1 was not pushed to $to; see $logs/registry.log"
    mkdir -p "${mark%/*}"
    echo "$id" >"$mark"
    pushed=$((pushed + 1))
}
for name; do push "$name" "$registry" "$registries/open/pushed/$name"; done
push busybox "$closed_registry" "$registries/closed/pushed/busybox" --creds "$closed_user:$closed_password"
done_in "$pushed images pushed, $unchanged unchanged; the open registry is $registry/latebind"
