#!/bin/bash
# push.sh [NAME...]: copies localhost/latebind/NAME:1 (default: all of images/; those that are built by name only where they were) from the
# project's storage to where the cluster pulls from, and notes the digests there, which tests ask for.
#
#   LATEBIND_REGISTRY   host[:port][/path], as NAME:1; INSECURE=1 leaves TLS out. By default the own cluster's open registry, where what
#                       is there already is left alone; and busybox goes into the closed one too, for tests of images that are denied.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/settings.sh"
images=$here/../../images
need_root
if [ $# = 0 ]; then
    for file in "$images"/*/Containerfile; do
        name=${file%/Containerfile}
        name=${name##*/}
        if grep -q '^# by name only' "$file" && ! "$images/podman" image exists "localhost/latebind/$name:1"; then continue; fi
        set -- "$@" "$name"
    done
fi
pushed=0 unchanged=0
# push NAME TO NOTE OPTION...: NOTE is a file with the image's ID and digest when it was pushed last, if that is to be relied on
push() {
    local name=$1 to=$2 note=$3 id old=
    shift 3
    id=$("$images/podman" images --quiet --no-trunc "localhost/latebind/$name:1")
    [ -n "$id" ] || die "there is no image localhost/latebind/$name:1 in the project's storage: run images/build.sh $name"
    [ -z "$ours" ] || read -r old _ 2>/dev/null <"$note" || true
    if [ "$old" = "$id" ]; then
        unchanged=$((unchanged + 1))
        return 0
    fi
    mkdir -p "${note%/*}"
    "$images/podman" push --quiet "$@" --digestfile "$note.digest" "localhost/latebind/$name:1" "$to/$name:1" ||
        die "$name:1 was not pushed to $to; an account is given with: images/podman login ${to%%/*}"
    # The node pulls a tag that it knows no more.
    [ -z "$ours" ] || ! alive containerd || containers images rm "$to/$name:1" >/dev/null 2>&1 || true
    echo "$id $(cat "$note.digest")" >"$note"
    rm "$note.digest"
    pushed=$((pushed + 1))
}

to=${LATEBIND_REGISTRY:-$registry/latebind}
to=${to%/}
ours=''
if [ "$to" = "$registry/latebind" ]; then
    alive registry || die "the registry on $registry does not run: run tests/cluster/up.sh"
    ours=yes
fi
options=()
case $to in localhost[:/]* | 127.*) options=(--tls-verify=false) ;; esac
[ -z "${INSECURE:-}" ] || options=(--tls-verify=false)
for name; do push "$name" "$to" "$registries/pushed/${to//\//_}/$name" ${options[@]+"${options[@]}"}; done
if [ -n "$ours" ]; then
    push busybox "$closed_registry/latebind" "$registries/pushed/closed/busybox" --tls-verify=false --creds "$closed_user:$closed_password"
fi
done_in "$pushed images pushed to $to, $unchanged unchanged"
