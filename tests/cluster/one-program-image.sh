#!/bin/bash
# pause-image.sh OUT.tar NAME: the image of a pod's first container, as an archive that containerd imports: Debian's catatonit, a
# static program which waits and reaps. tar and sha256sum are all it takes.
set -euo pipefail
out=$1 name=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"
cp "$(command -v catatonit)" "$work/root/pause"
pack() { tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner "$@"; }
digest() { sha256sum "$1" | cut -d ' ' -f 1; }

pack -C "$work/root" -cf "$work/layer.tar" .
cat >"$work/config.json" <<J
{"architecture": "$(dpkg --print-architecture)", "os": "linux", "config": {"Cmd": ["/pause", "-P"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$(digest "$work/layer.tar")"]}}
J
config=$(digest "$work/config.json").json
mv "$work/config.json" "$work/$config"
echo "[{\"Config\": \"$config\", \"RepoTags\": [\"$name\"], \"Layers\": [\"layer.tar\"]}]" >"$work/manifest.json"
pack -C "$work" -cf "$out" manifest.json "$config" layer.tar
