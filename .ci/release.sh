#!/bin/bash
# release.sh: makes dist/release: static binaries, images as archives, an SBOM of each program, checksums. Uses the
# release recipe, whatever toolchain there is. Run by .github/workflows/release.yml.
set -euo pipefail
cd "$(dirname "$0")/.."
. .ci/rust.sh
CYCLONEDX=0.5.9
export RECIPE=debian
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
out=dist/release
programs=(glue watcher latebind-host latebind-singularity)

.ci/setup.sh build images
.ci/build.sh
images/build.sh glue pilot
images/publish.sh archive glue pilot

rm -rf "$out"
mkdir -p "$out"
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C dist \
    -czf "$out/latebind-$version-$MUSL_TARGET.tar.gz" "${programs[@]}"
for image in glue pilot; do
    gzip -nc "dist/images/$image.tar" >"$out/latebind-$version-image-$image.tar.gz"
done

# The crates that each program links; std and musl are those of the Debian packages that the build names.
cargo=$(need_cargo)
tool=${XDG_CACHE_HOME:-$HOME/.cache}/latebind/cargo-cyclonedx-$CYCLONEDX
[ -x "$tool/bin/cargo-cyclonedx" ] ||
    CARGO_PROFILE_DEV_DEBUG=0 "$cargo" install --quiet --locked --debug --root "$tool" "cargo-cyclonedx@$CYCLONEDX"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
CARGO=$cargo "$tool/bin/cargo-cyclonedx" cyclonedx --quiet --format json --describe binaries --target "$MUSL_TARGET"
for program in "${programs[@]}"; do
    mv "$(find glue watcher -maxdepth 2 -name "${program}_bin.cdx.json")" "$out/latebind-$version-$program.cdx.json"
done
find . -path ./target -prune -o -name '*_bin.cdx.json' -exec rm {} +

(cd "$out" && sha256sum -- * >SHA256SUMS)
ls -l "$out"
