#!/bin/sh
# build.sh: static x86_64-unknown-linux-musl release binaries of the whole workspace, into dist/; with
# TARGET=aarch64-unknown-linux-musl those of that architecture, into dist/aarch64/, by a cross compiler.
# `build.sh --tests` builds the test programs of glue's own crates for TARGET instead, and prints their paths.
#
# Two recipes (rust.sh decides):
#   rustup  `rustup target add x86_64-unknown-linux-musl` was done: its std as it comes. Sizes are printed, not checked.
#   debian  the release recipe: Debian's rustc-web, with std rebuilt from rust-web-src for musl. glue gets the smallest
#           std there is, which ends a panic at once; the other programs get one that says why they panic.
set -eu
cd "$(dirname "$0")/.."
. .ci/rust.sh
root=$PWD
dist=dist
# Apart from the target directory of `cargo test`, and one for each set of flags: a changed flag rebuilds everything.
target=${CARGO_TARGET_DIR:-$root/target}/static
[ "$MUSL_ARCH" = x86_64 ] || dist=dist/$MUSL_ARCH target=$target-$MUSL_ARCH
recipe=$(static_recipe)
GLUE_MAX=$((256 * 1024))
[ "$MUSL_ARCH" = x86_64 ] || GLUE_MAX=$((288 * 1024)) # each instruction has four bytes
started=$(date +%s)
# One build at a time: each removes what an earlier one left.
mkdir -p "$target"
exec 9>"$target/lock"
flock 9

# Settings of the caller's shell that would change what is built.
unset RUSTFLAGS CARGO_BUILD_TARGET CARGO_BUILD_RUSTFLAGS RUSTC_WRAPPER CARGO_ENCODED_RUSTFLAGS

# No path of the building machine in the binaries.
trim="--remap-path-prefix=$root=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"

say() { printf '%s\n' "build: $*" >&"$said"; }
fail() {
    printf '%s\n' "build.sh: $*" >&2
    exit 1
}

# What cargo is asked for.
said=1 work="build --quiet --release --bins" std="-Zbuild-std=std,panic_abort"
if [ "${1:-}" = --tests ]; then
    work="test --no-run -p glue -p latebind-linux -p latebind-contract" std=$std,test said=2
fi

# cargo_build NAME FLAGS CARGO-ARGUMENTS...: binaries end in $target/NAME/$MUSL_TARGET/release
build_rustup() {
    name=$1 flags="-Ctarget-feature=+crt-static $trim"
    shift 2
    # shellcheck disable=SC2086 # words
    env CARGO_TARGET_DIR="$target/$name" RUSTFLAGS="$flags" \
        cargo $work --locked --target "$MUSL_TARGET" "$@"
}

build_debian() {
    name=$1 flags=$2
    shift 2
    # gcc would choose glibc's start files, and `musl-gcc` links a *dynamic* PIE. So: no start files of gcc's, musl's
    # own for a static PIE (rcrt1.o relocates the program itself), and no dynamic loader named in the result.
    flags="$flags -Ctarget-feature=+crt-static -Clink-self-contained=no -Clinker=$cc $trim
        -Lnative=$musl -Lnative=$target/lib
        -Zpre-link-args=-nostartfiles -Zpre-link-args=$musl/rcrt1.o -Zpre-link-args=$musl/crti.o
        -Clink-arg=$musl/crtn.o -Clink-arg=-Wl,--no-dynamic-linker -Clink-arg=-Wl,-z,relro,-z,now,-z,noexecstack"
    # rustc makes static programs position-independent for x86_64 only.
    [ "$MUSL_ARCH" = x86_64 ] || flags="$flags -Crelocation-model=pic -Clink-arg=-static-pie"
    # shellcheck disable=SC2086 # words
    # RUSTC_BOOTSTRAP: -Z options in a stable compiler, here for std's sake alone.
    env CARGO_TARGET_DIR="$target/$name" RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc \
        RUSTFLAGS="$(printf %s "$flags" | tr -s '\n ' ' ')" \
        /usr/bin/cargo $work --locked --target "$MUSL_TARGET" \
        $std -Zbuild-std-features=optimize_for_size "$@"
}

# For crates that compile C: objects only, so that its way of linking does not matter.
if [ "$MUSL_ARCH" = x86_64 ]; then
    cc=gcc
    musl=/usr/lib/x86_64-linux-musl
    if command -v musl-gcc >/dev/null; then
        CC_x86_64_unknown_linux_musl="musl-gcc"
        export CC_x86_64_unknown_linux_musl
    fi
else
    cc=$MUSL_ARCH-linux-gnu-gcc
    command -v "$cc" >/dev/null || fail "$cc is missing: run .ci/setup.sh build, which installs gcc-aarch64-linux-gnu"
    . .ci/deb.sh
    own=$(kept_debs bookworm arm64 musl musl-dev)/usr
    musl=$own/lib/$MUSL_ARCH-linux-musl
    mkdir -p "$target"
    cat >"$target/$MUSL_ARCH-musl-gcc" <<C
#!/bin/sh
exec $cc -nostdinc -isystem $own/include/$MUSL_ARCH-linux-musl -isystem $("$cc" -print-file-name=include) "\$@"
C
    chmod +x "$target/$MUSL_ARCH-musl-gcc"
    CC_aarch64_unknown_linux_musl=$target/$MUSL_ARCH-musl-gcc
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=$cc
    export CC_aarch64_unknown_linux_musl CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER
fi

case $recipe in
rustup) say "with rustup's $MUSL_TARGET; glue's size is only checked in the release recipe (RECIPE=debian)" ;;
debian)
    for file in /usr/bin/cargo /usr/bin/rustc /usr/lib/rustlib/src/rust/library/Cargo.lock "$musl/rcrt1.o"; do
        [ -e "$file" ] || fail "$file is missing: run .ci/setup.sh build," \
            "which installs rustc-web cargo-web rust-web-src musl-tools"
    done
    minor=$(/usr/bin/rustc --version | sed -n 's/^rustc 1\.\([0-9]*\)\..*/\1/p')
    [ "${minor:-0}" -ge 92 ] || fail "/usr/bin/rustc is $(/usr/bin/rustc --version), too old to rebuild std this way:" \
        "enable bookworm-updates and bookworm-security, apt-get install rustc-web cargo-web rust-web-src, or use rustup"
    mkdir -p "$target/lib"
    # std's panic message asks libunwind for a backtrace; there is none for musl in Debian, and the message is enough.
    cat >"$target/lib/unwind.c" <<'C'
int _Unwind_Backtrace(void *step, void *state) { (void)step, (void)state; return 5; /* end of stack */ }
unsigned long _Unwind_GetIP(void *frame) { (void)frame; return 0; }
C
    "$cc" -Os -c -o "$target/lib/unwind.o" "$target/lib/unwind.c"
    rm -f "$target/lib/libunwind.a"
    ar crsD "$target/lib/libunwind.a" "$target/lib/unwind.o"
    say "with Debian's $(/usr/bin/rustc --version | cut -d' ' -f1,2), std rebuilt for musl;" \
        "about 4 min the first time on two cores"
    ;;
*) fail "RECIPE is '$recipe': use rustup or debian" ;;
esac

if [ "${1:-}" = --tests ]; then
    # The release recipe's std is built to end a panic at once, so each test runs in a process of its own.
    flags=''
    [ "$recipe" = rustup ] || flags="-Cpanic=abort -Zpanic_abort_tests"
    "build_$recipe" tests "$flags" 2>"$target/tests.log" || {
        cat "$target/tests.log" >&2
        fail "the tests of glue's crates cannot be built for $MUSL_TARGET"
    }
    sed -n 's/^ *Executable .*(\(.*\))$/\1/p' "$target/tests.log"
    exit
fi

# What an earlier build left under a name that is gone now must not be taken along; cargo puts back what is still there.
find "$target"/*/"$MUSL_TARGET"/release -maxdepth 1 -type f -perm -u+x -exec rm -f {} + 2>/dev/null || :

# Nothing unwinds in glue: tables for it would be a fifth of the binary. The outliner makes one function of instructions
# that stand in several places, and calls into libc go the short way.
"build_$recipe" glue "-Zunstable-options -Cpanic=immediate-abort -Cforce-unwind-tables=no
    -Zplt=yes -Cllvm-args=-enable-machine-outliner=always" -p glue
"build_$recipe" rest "" --workspace --exclude glue

mkdir -p "$dist"
find "$target"/*/"$MUSL_TARGET"/release -maxdepth 1 -type f -perm -u+x ! -name '*.so' | while read -r file; do
    name=${file##*/}
    # Unchanged files keep their time: images are rebuilt by content, and make looks at times.
    cmp -s "$file" "$dist/$name" || { cp "$file" "$dist/.$name.new" && mv "$dist/.$name.new" "$dist/$name"; }
    say "$dist/$name $(stat -c %s "$dist/$name") bytes"
done

if [ "$recipe" = debian ]; then
    glue/check-binary.sh "$dist/glue" --max-bytes "$GLUE_MAX"
else
    glue/check-binary.sh "$dist/glue"
fi
for name in watcher latebind-host latebind-singularity; do
    [ ! -e "$dist/$name" ] || glue/check-binary.sh "$dist/$name"
done
say "done in $(($(date +%s) - started)) s"
