#!/bin/bash
# test-aarch64.sh: what is built for aarch64, tried under QEMU's user emulation: unit tests of glue's crates, programs
# of its images in containers, and messages about programs and images of the wrong architecture; ends with
# `N passed, M failed`. Expects dist/, dist/aarch64/ and the images of both (make test-aarch64 makes them).
#
# While it runs, this machine's kernel executes programs for aarch64 by the emulator (binfmt_misc).
set -uo pipefail
cd "$(dirname "$0")/.." || exit
. .ci/deb.sh
. .ci/rust.sh
. .ci/steps.sh
cargo=$(need_cargo) || exit
export LATEBIND_STATE=${LATEBIND_STATE:-/var/lib/latebind-test} # see the Makefile
export CARGO_TERM_COLOR=never
target=aarch64-unknown-linux-musl

# Debian 12's emulator lacks openat2(2), which glue needs.
emulator=${XDG_CACHE_HOME:-$HOME/.cache}/latebind/qemu-aarch64
[ -x "$emulator" ] || {
    unpack_debs "$emulator.debs" trixie amd64 qemu-user || exit
    mv "$emulator.debs/usr/bin/qemu-aarch64" "$emulator"
    rm -rf "$emulator.debs"
}

# On x86_64, without the emulator: what is said of the other architecture's programs.
step "programs and images of the wrong architecture, images of both" \
    "$cargo" test --locked -p latebind-aarch64-tests --test wrong_architecture --test manifest_list

binfmt=$(mktemp -d)
name=latebind-aarch64
finish() {
    [ ! -e "$binfmt/$name" ] || echo -1 >"$binfmt/$name"
    umount "$binfmt" && rmdir "$binfmt"
    rm -f "$log"
}
trap finish EXIT
mount -t binfmt_misc binfmt_misc "$binfmt" || exit
# The head of an ELF file for aarch64 (binfmt-misc.rst of the kernel). F: the emulator is opened now, for containers;
# P: it gets argv[0] as the program would; C: with the program's own credentials.
[ -e "$binfmt/$name" ] || printf ':%s:M::%s:%s:%s:FPC' "$name" \
    '\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00' \
    '\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff' "$emulator" \
    >"$binfmt/register" || exit

programs=$(TARGET=$target .ci/build.sh --tests) || exit
for program in $programs; do
    step "${program##*/}" tests/own-pid-namespace "$PWD/$program"
done
export LATEBIND_TEST_ARCHITECTURE=arm64
step "images for arm64 in containers" "$cargo" test --locked -p latebind-aarch64-tests --test emulated
conclude
