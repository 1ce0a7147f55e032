#!/bin/sh
# install.sh: copies what `make build` made below $DESTDIR$PREFIX: programs, the unit of a pod, manual pages and
# completions. Installs nothing of the distribution's, and enables nothing.
#
# PREFIX    default /usr/local
# DESTDIR   for packages: put in front of each path; not written into any file
set -eu
cd "$(dirname "$0")/.."
prefix=${PREFIX:-/usr/local}
case $prefix in
/*) ;;
*)
    echo "install.sh: PREFIX must be an absolute path: $prefix" >&2
    exit 2
    ;;
esac
to=${DESTDIR:-}$prefix
for program in watcher latebind-host latebind-singularity glue; do
    [ -x "dist/$program" ] || {
        echo "install.sh: dist/$program is missing: make build" >&2
        exit 1
    }
done

install -d "$to/bin" "$to/libexec/latebind" "$to/lib/systemd/system" "$to/share/doc/latebind"
install -m 755 dist/watcher dist/latebind-host dist/latebind-singularity "$to/bin/"
# No command for people: it belongs into images and init containers.
install -m 755 dist/glue "$to/libexec/latebind/glue"
sed "s|@PREFIX@|$prefix|g" 'deploy/systemd/latebind-pod@.service' >"$to/lib/systemd/system/latebind-pod@.service"
chmod 644 "$to/lib/systemd/system/latebind-pod@.service"
install -m 644 README.md LICENSE CHANGELOG.md docs/*.md docs/*.svg deploy/systemd/example.conf "$to/share/doc/latebind/"
for program in watcher latebind-host; do
    "dist/$program" --generate-pages "$to/share"
done
echo "installed below $to; images of pilot and glue: make images, or make push REGISTRY=..."
