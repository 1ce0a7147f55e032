#!/bin/bash
# publish.sh push|archive [NAME...]: takes images that build.sh has made to a cluster (default: glue pilot busybox debian).
#
# push      to $REGISTRY, a host[:port][/path], under the tag $TAG (default: the project's version); where an image was
#           built for arm64 too, both in one manifest list. Prints what to put into a kustomization, and leaves one in
#           dist/deploy. TLS is left out on loopback, and elsewhere with INSECURE=1.
# archive   into dist/images/NAME.tar, for `kind load image-archive`, `minikube image load`, `ctr -n k8s.io images import`
set -euo pipefail
cd "$(dirname "$0")/.."
podman() { images/podman "$@"; }
die() {
    echo "images/publish.sh: $*" >&2
    exit 1
}

verb=${1:-}
shift || :
[ $# -gt 0 ] || set -- glue pilot busybox debian
for name; do
    podman image exists "localhost/latebind/$name:1" || die "localhost/latebind/$name:1 is not there: make images"
done

# send NAME DESTINATION: pushes an image; as a manifest list, where it was built for another architecture too. Its
# digest goes to $work/digest.
send() {
    local list=localhost/latebind/$1:list
    if ! podman image exists "localhost/latebind/$1:1-arm64"; then
        podman push --quiet "${tls[@]}" --digestfile "$work/digest" "localhost/latebind/$1:1" "$2"
        return
    fi
    podman manifest rm "$list" >/dev/null 2>&1 || :
    # Without the transport podman asks a registry on localhost for them.
    local here=containers-storage:localhost/latebind/$1
    podman manifest create "$list" "$here:1" "$here:1-arm64" >/dev/null &&
        podman manifest push --quiet --all "${tls[@]}" --digestfile "$work/digest" "$list" "$2"
}

push() {
    [ -n "${REGISTRY:-}" ] || die "REGISTRY is not set: say where to, as REGISTRY=registry.example.org/me"
    registry=${REGISTRY%/}
    local host=${registry%%/*} name digest
    local -a tls=()
    case $registry in *://* | *@* | *[A-Z]*) die "REGISTRY is '$REGISTRY': give host[:port][/path] in lower case, without https:// and names" ;; esac
    case $host in
    localhost | localhost:* | 127.* | '[::1]'*) tls=(--tls-verify=false) ;;
    *.* | *:*) ;;
    # A node would look for a name like me/glue at whatever registry it likes best, or refuse it.
    *) die "REGISTRY is '$REGISTRY', whose '$host' is not a host name: give all of it, as docker.io/$registry" ;;
    esac
    [ -z "${INSECURE:-}" ] || tls=(--tls-verify=false)
    tag=${TAG:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    for name; do
        send "$name" "docker://$registry/$name:$tag" ||
            die "pushing $registry/$name:$tag failed; an account is given with: images/podman login $host"
        digest=$(cat "$work/digest")
        echo "pushed $registry/$name:$tag@$digest"
        case $name in
        glue | pilot | htcondor-pilot) printf -- '- {name: localhost/latebind/%s, newName: %s/%s, digest: "%s"}\n' \
            "$name" "$registry" "$name" "$digest" >>"$work/images" ;;
        esac
    done
    [ -s "$work/images" ] || return 0
    # ../../deploy is for the plain pilot alone.
    case " $* " in
    *" pilot "*) ;;
    *)
        printf '\nLines for your kustomization:\nimages:\n'
        cat "$work/images"
        return 0
        ;;
    esac
    mkdir -p dist/deploy
    cat >dist/deploy/kustomization.yaml - "$work/images" <<'Y'
# Written by images/publish.sh push: a start for a kustomization of your own, which would lie elsewhere.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: latebind
# kubectl before 1.21 calls this `bases`.
resources:
- ../../deploy
images:
Y
    echo
    echo "Lines for your kustomization; dist/deploy has them already (kubectl apply -k dist/deploy):"
    echo "images:"
    cat "$work/images"
}

archive() {
    local name
    mkdir -p dist/images
    for name; do
        # podman would add to an archive that is there.
        rm -f "dist/images/$name.tar"
        podman save --quiet --format docker-archive -o "dist/images/$name.tar" "localhost/latebind/$name:1" >/dev/null ||
            die "saving localhost/latebind/$name:1 failed"
        echo "archived dist/images/$name.tar: localhost/latebind/$name:1, $(stat -c %s "dist/images/$name.tar") bytes"
    done
}

case $verb in
push | archive) "$verb" "$@" ;;
*) die "unknown verb '$verb': push or archive" ;;
esac
