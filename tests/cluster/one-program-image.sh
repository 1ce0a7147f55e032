#!/bin/bash
# one-program-image.sh OUT.tar NAME PROGRAM PATH [ARGUMENT...]: the image of one static program, which is at PATH there (/name), as an
# archive that containerd imports. tar and sha256sum are all it takes.
set -euo pipefail
out=$1 name=$2 program=$3 path=$4
shift 4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"
cp "$program" "$work/root$path"
pack() { tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner "$@"; }
digest() { sha256sum "$1" | cut -d ' ' -f 1; }

pack -C "$work/root" -cf "$work/layer.tar" .
cat >"$work/config.json" <<J
{"architecture": "$(dpkg --print-architecture)", "os": "linux", "config": {"Cmd": ["$path"$([ $# = 0 ] || printf ', "%s"' "$@")]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$(digest "$work/layer.tar")"]}}
J
config=$(digest "$work/config.json").json
mv "$work/config.json" "$work/$config"
echo "[{\"Config\": \"$config\", \"RepoTags\": [\"$name\"], \"Layers\": [\"layer.tar\"]}]" >"$work/manifest.json"
pack -C "$work" -cf "$out" manifest.json "$config" layer.tar
