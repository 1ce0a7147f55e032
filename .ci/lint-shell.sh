#!/bin/sh
# lint-shell.sh: runs shellcheck over every shell script of the repository; its settings are in .shellcheckrc.
set -eu
cd "$(dirname "$0")/.."
command -v shellcheck >/dev/null || {
    echo "lint-shell.sh: shellcheck is missing: run .ci/setup.sh test" >&2
    exit 1
}
# Scripts that images/build.sh runs or that those source: no first line says which shell, it is `sh -eu`.
without_shebang="images/busybox-tree.sh images/*/rootfs"
# shellcheck disable=SC2086
shellcheck --shell=sh --source-path=images $without_shebang
ours=$(find . \( -path './target*' -o -path ./dist -o -path ./.git \) -prune -o -type f -exec awk '
    FNR == 1 && (/^#!.*[\/ ](ba|da)?sh( |$)/ || FILENAME ~ /[.]sh$/) { print FILENAME }
    FNR == 1 { nextfile }' {} + | sort)
printf '%s\n' "$ours" | grep -vxF ./images/busybox-tree.sh | xargs shellcheck
