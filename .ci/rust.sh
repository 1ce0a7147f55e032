# Sourced by the other scripts: which Rust toolchain does what. There may be rustup, Debian's packages, or nothing yet.
# shellcheck shell=sh

MUSL_TARGET=x86_64-unknown-linux-musl

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
