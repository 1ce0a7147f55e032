#!/bin/sh
# setup.sh PURPOSE...: installs what `make build|images|demo|test|bench|fuzz|test-v2|cluster` need on Debian and is not
# installed yet; first says what, and how long it takes. Only packages of the distribution; running it again does
# nothing.
set -eu
. "$(dirname "$0")/rust.sh"

# Said before anything is compiled, which takes minutes.
for purpose; do
    case $purpose in
    images | demo | test | bench | v2 | cluster)
        [ "$(id -u)" = 0 ] || {
            echo "setup.sh: images are made here, and containers run, as root: run this as root." \
                "(make build and make install need no root; what they make runs without it: docs/operations.md)" >&2
            exit 1
        }
        ;;
    esac
done

want='' seconds=0
add() { # add SECONDS PACKAGE...: SECONDS are what downloading and unpacking these took on two cores, rounded up
    cost=$1 new=
    shift
    for package; do
        case " $want " in *" $package "*) continue ;; esac
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || new="$new $package"
    done
    [ -n "$new" ] || return 0
    want="$want$new" seconds=$((seconds + cost))
}

for purpose; do
    case $purpose in
    build)
        add 20 ca-certificates gcc libc6-dev binutils
        # The watcher's TLS has parts in C.
        add 5 musl-tools
        # Debian's toolchain comes with the sources of std, which the release recipe rebuilds for musl.
        [ "$(static_recipe)" = rustup ] || add 60 rustc-web cargo-web rust-web-src
        [ "$MUSL_ARCH" = x86_64 ] || add 20 gcc-aarch64-linux-gnu
        ;;
    images) add 30 podman runc crun netavark busybox-static debootstrap gcc libc6-dev ;;
    demo) add 5 openssl procps ;;
    test)
        add 20 gcc libc6-dev bash dash util-linux procps openssl shellcheck strace
        # Archives of each form that inputs may have.
        add 2 xz-utils zip zstd
        # The tests start a daemon and a registry of their own, and ask the latter.
        add 15 docker.io docker-registry curl
        # rustup's toolchain has its own components; a step that lacks one names it.
        case $(dev_cargo) in
        '' | /usr/bin/cargo) add 30 rustc-web cargo-web rustfmt-web rust-web-clippy ;;
        esac
        ;;
    bench) add 5 tini dumb-init strace ;;
    fuzz)
        add 20 g++ libc6-dev bash dash util-linux
        # As a package of its own or in another one: they exclude each other.
        command -v busybox >/dev/null || add 5 busybox-static
        [ -n "$(dev_cargo)" ] || add 60 rustc-web cargo-web
        ;;
    v2) add 5 debootstrap e2fsprogs util-linux ;;
    # Programs for tests/cluster, which takes the rest apart from what is installed.
    cluster) add 20 golang-go dpkg-dev libseccomp2 openssl jq curl ;;
    *)
        echo "setup.sh: unknown purpose '$purpose' (build, images, demo, test, bench, fuzz, v2, cluster)" >&2
        exit 2
        ;;
    esac
done

if [ -z "$want" ]; then
    echo "set-up: everything for '$*' is installed already"
    exit 0
fi
echo "set-up for '$*': will install from this machine's Debian archive, in about $(((seconds + 59) / 60)) min:"
echo " $want"
if [ "$(id -u)" != 0 ]; then
    echo "setup.sh: only root can install packages; run this as root: apt-get install --no-install-recommends$want" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# Packages with services (docker.io) must not start them: nothing here needs the machine's own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
fi
# An unreachable third-party list must not stop the set-up: what is really missing shows at the next step.
apt-get -q -o DPkg::Lock::Timeout=600 update ||
    echo "set-up: apt-get update failed, continuing with the existing lists" >&2
# --no-remove: never take a toolchain away that somebody chose; apt names the package in the way instead.
# shellcheck disable=SC2086
apt-get -q -o DPkg::Lock::Timeout=600 install -y --no-install-recommends --no-remove $want
