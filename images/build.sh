#!/bin/bash
# build.sh [NAME...]: builds images/NAME (default: all but those `by name only`) as localhost/latebind/NAME:1, from dist/ and Debian's packages, with no
# registry. An image whose inputs have not changed is left alone.
#
# images/NAME/Containerfile   what the image is. Its line "# inputs: ..." names what is put beside it: programs of dist/,
#                             `busybox` (Debian's static one), `debian.tar`, `htcondor.tar` (Debian trixie with HTCondor; sid with
#                             CONDOR=sid). A line "# by name only" leaves it out where no name is given
# images/NAME/rootfs          optional script: makes a file tree in the directory $1, put beside the Containerfile as rootfs.tar;
#                             for what COPY cannot say (links, odd owners and modes, broken programs)
#
# TARGET=aarch64-unknown-linux-musl makes them for that architecture, as localhost/latebind/NAME:1-arm64 (glue, pilot,
# busybox, noshell), from dist/aarch64/: nothing of them is run here. publish.sh puts both into one manifest list.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022
. .ci/deb.sh
export LC_ALL=C
# Raise when this script makes other images of the same inputs.
readonly format=1
podman() { images/podman "$@"; }
die() {
    echo "images/build.sh: $*" >&2
    exit 1
}

dist=dist tag=1 platform=()
case ${TARGET:-x86_64-unknown-linux-musl} in
x86_64-*) ;;
aarch64-*)
    dist=dist/aarch64 tag=1-arm64 platform=(--platform linux/arm64)
    export BUSYBOX=/bin/busybox # the same version, which runs here and can list what the other one has
    [ $# -gt 0 ] || set -- glue pilot busybox noshell
    ;;
*) die "TARGET is '$TARGET' (x86_64-unknown-linux-musl or aarch64-unknown-linux-musl)" ;;
esac

cache=${XDG_CACHE_HOME:-$HOME/.cache}/latebind
debian=$cache/debian-bookworm-$(dpkg --print-architecture).tar
condor=$cache/htcondor-${CONDOR:-trixie}-$(dpkg --print-architecture).tar
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# input NAME: path of an input, made if need be
input() {
    case $1 in
    glue | watcher | latebind-host | latebind-singularity | probe)
        [ -x "$dist/$1" ] || die "$dist/$1 is missing: make build${TARGET:+ TARGET=$TARGET}"
        echo "$dist/$1"
        ;;
    busybox)
        [ -x /bin/busybox ] || die "/bin/busybox is missing: .ci/setup.sh images"
        local debs=''
        [ "$dist" = dist ] || debs=$(kept_debs bookworm arm64 busybox-static) || exit
        echo "$debs/bin/busybox"
        ;;
    debian.tar)
        [ -s "$debian" ] || images/debian/debootstrap.sh "$debian" >&2
        echo "$debian"
        ;;
    htcondor.tar)
        [ -s "$condor" ] || images/htcondor-pilot/debootstrap.sh "${CONDOR:-trixie}" "$condor" >&2
        echo "$condor"
        ;;
    *) die "unknown input '$1'" ;;
    esac
}

declare -A digest # of the inputs of each image of this run
declare -A there  # of each image in the store
while read -r image inputs; do
    [ -z "$image" ] || there[$image]=$inputs
done < <(podman images --filter label=latebind.inputs --format '{{.Repository}}:{{.Tag}} {{index .Labels "latebind.inputs"}}')

build() {
    local name=$1 dir=images/$1 image=localhost/latebind/$1:$tag base='' inputs path old
    [ -z "${digest[$name]:-}" ] || return 0
    [ -f "$dir/Containerfile" ] || die "there is no $dir/Containerfile"
    inputs=$(sed -n 's/^# inputs: *//p' "$dir/Containerfile")
    base=$(sed -n 's|^FROM localhost/latebind/\([a-z-]*\):1.*|\1|p' "$dir/Containerfile")
    [ -z "$base" ] || [ "$dist" = dist ] || die "$name is built on $base, so only for this machine's architecture"
    if [ -n "$base" ]; then build "$base"; fi

    local -a files=()
    local word
    for word in $inputs; do
        path=$(input "$word") # not within the next line, where its failure would go unnoticed
        files+=("$path")
    done
    if [ -f "$dir/rootfs" ]; then files+=(images/busybox-tree.sh); fi
    digest[$name]=$(
        {
            echo "$format ${base:+$base ${digest[$base]}}"
            find "$dir" -type f -printf '%P %m\n' | sort
            find "$dir" -type f -print0 | sort -z | xargs -0 cat
            for path in "${files[@]}"; do
                # Reading a whole distribution each time would take longer than all the other images.
                case $path in *.tar) stat -c '%n %s %Y' "$path" ;; *) sha256sum <"$path" ;; esac
            done
        } | sha256sum | cut -c1-32
    )
    if [ "${there[$image]:-}" = "${digest[$name]}" ]; then
        unchanged=$((unchanged + 1))
        return 0
    fi

    local context=$work/$name
    mkdir "$context"
    cp -r "$dir/." "$context"
    for path in "${files[@]}"; do
        # A hard link where it is possible: an archive of a distribution is big.
        ln -L "$path" "$context/" 2>/dev/null || cp "$path" "$context/"
    done
    if [ -e "$context/${debian##*/}" ]; then mv "$context/${debian##*/}" "$context/debian.tar"; fi
    if [ -e "$context/${condor##*/}" ]; then mv "$context/${condor##*/}" "$context/htcondor.tar"; fi
    if [ -f "$context/rootfs" ]; then
        mkdir "$work/$name.tree"
        (cd "$context" && sh -eu ./rootfs "$work/$name.tree")
        tar --sort=name --mtime=@0 --numeric-owner -C "$work/$name.tree" -cf "$context/rootfs.tar" .
        rm -rf "$work/$name.tree"
    fi
    old=$(podman images -q --no-trunc "$image")
    podman build --quiet "${platform[@]}" --layers=false --network=none --pull=never \
        --label "latebind.inputs=${digest[$name]}" --timestamp 0 -t "$image" "$context" >/dev/null ||
        die "building $image failed"
    # The one before goes, unless a container still runs it.
    if [ -n "$old" ]; then podman rmi "$old" >/dev/null 2>&1 || :; fi
    rm -rf "$context"
    built=$((built + 1))
    echo "images: built $image"
}

unchanged=0 built=0 started=$SECONDS
if [ $# = 0 ]; then
    for dir in images/*/Containerfile; do
        grep -q '^# by name only' "$dir" && continue
        dir=${dir%/Containerfile}
        set -- "$@" "${dir#images/}"
    done
fi
# One at a time: two runs would build the same image twice and remove each other's.
lock=${LATEBIND_STATE:-/var/lib/latebind-host}/images.lock
mkdir -p "${lock%/*}"
exec 9>>"$lock"
# Whoever can read it can hold the lock, and keep this from building.
chmod 0600 "$lock"
flock 9
for name; do build "$name"; done
echo "images: $built built, $unchanged unchanged, in $((SECONDS - started)) s; see them with images/podman images"
