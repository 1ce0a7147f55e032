# Sourced, in the project's directory, by scripts that take Debian's packages of another architecture or suite apart,
# without installing them.
# shellcheck shell=sh
. images/debian-root.sh

# unpack_debs DIR SUITE ARCHITECTURE PACKAGE...: fetches packages, which apt verifies by the archive's signature, and
# unpacks them into DIR, which is there whole or not at all.
unpack_debs() (
    dir=$1 suite=$2 architecture=$3
    shift 3
    work=$(mktemp -d) || exit
    trap 'rm -rf "$work"' EXIT
    # apt with one source and nothing of this machine's own lists: its files stay in $work.
    ask() {
        (cd "$work/debs" && apt-get -qq -o Dir::Etc::SourceList="$work/sources" -o Dir::Etc::SourceParts=- \
            -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root \
            -o APT::Architecture="$architecture" -o APT::Architectures="$architecture" "$@" >/dev/null)
    }
    mirror=$(debian_mirror)
    mkdir -p "$work/lists/partial" "$work/cache" "$work/debs" || exit
    echo "deb $mirror $suite main" >"$work/sources" || exit
    if ! ask update || ! ask download "$@"; then
        echo "${0##*/}: cannot fetch $* for $architecture of Debian $suite from $mirror" >&2
        exit 1
    fi
    rm -rf "$dir.new" && mkdir -p "$dir.new" || exit
    for deb in "$work"/debs/*.deb; do
        dpkg-deb -x "$deb" "$dir.new" || exit
    done
    rm -rf "$dir" && mv "$dir.new" "$dir"
)

# kept_debs SUITE ARCHITECTURE PACKAGE...: prints the directory of the cache in which these packages are unpacked.
kept_debs() (
    place=${XDG_CACHE_HOME:-$HOME/.cache}/latebind/debs-$(echo "$*" | tr ' ' -)
    mkdir -p "${place%/*}" || exit
    exec 9>"$place.lock"
    flock 9
    [ -d "$place" ] || unpack_debs "$place" "$@" || exit
    echo "$place"
)
