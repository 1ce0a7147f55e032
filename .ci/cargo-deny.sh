#!/bin/sh
# cargo-deny.sh CARGO ARGS...: `cargo deny ARGS` in a fixed version, built with CARGO once and kept in the user's cache.
set -eu
cd "$(dirname "$0")/.."
VERSION=0.20.2
CARGO=$1
export CARGO
shift
tool=${XDG_CACHE_HOME:-$HOME/.cache}/latebind/cargo-deny-$VERSION
if [ ! -x "$tool/bin/cargo-deny" ]; then
    echo "cargo-deny.sh: building cargo-deny $VERSION, about a minute on two cores, once; kept in $tool"
    # Optimised it would take three times as long to build, and the checks take a second either way.
    CARGO_PROFILE_DEV_DEBUG=0 "$CARGO" install --quiet --locked --debug --root "$tool" "cargo-deny@$VERSION"
fi
exec "$tool/bin/cargo-deny" "$@"
