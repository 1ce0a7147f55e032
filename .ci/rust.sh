# Sourced by the other scripts: which Rust toolchain does what. There may be rustup, Debian's packages, or nothing yet.
# shellcheck shell=sh

# TARGET=aarch64-unknown-linux-musl builds for the other architecture.
MUSL_TARGET=${TARGET:-x86_64-unknown-linux-musl}
# shellcheck disable=SC2034 # read by the scripts that source this
MUSL_ARCH=${MUSL_TARGET%%-*}
case $MUSL_TARGET in
x86_64-unknown-linux-musl | aarch64-unknown-linux-musl) ;;
*)
    echo "${0##*/}: TARGET is '$MUSL_TARGET' (x86_64-unknown-linux-musl or aarch64-unknown-linux-musl)" >&2
    exit 2
    ;;
esac

# rustup's default place is not on the PATH of every service or CI shell.
if [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    export PATH
fi

# How static binaries are made here: `rustup` where it has the musl target, else `debian`, which is the release recipe.
# RECIPE=debian asks for the release recipe in any case.
static_recipe() {
    if [ -n "${RECIPE:-}" ]; then
        echo "$RECIPE"
    elif command -v rustup >/dev/null && rustup target list --installed 2>/dev/null | grep -qx "$MUSL_TARGET"; then
        echo rustup
    else
        echo debian
    fi
}

# The cargo for tests and lints: the first of version 1.89 or later (Cargo.toml's rust-version); nothing if there is
# none.
dev_cargo() {
    for cargo in "$(command -v cargo || :)" /usr/bin/cargo; do
        [ -x "$cargo" ] || continue
        minor=$("$cargo" --version 2>/dev/null | sed -n 's/^cargo 1\.\([0-9]*\)\..*/\1/p')
        if [ "${minor:-0}" -ge 89 ]; then
            echo "$cargo"
            return
        fi
    done
}

need_cargo() {
    found=$(dev_cargo)
    if [ -z "$found" ]; then
        echo "${0##*/}: no cargo of version 1.89 or later: run .ci/setup.sh test" >&2
        return 1
    fi
    echo "$found"
}
