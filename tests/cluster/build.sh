#!/bin/bash
# build.sh: kube-apiserver, kube-controller-manager, kube-scheduler and kubelet from Debian's source package with Debian's Go, without
# any network. About 4 min on two cores the first time, nothing when they are there already.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/settings.sh"
take_turn
commands=(kube-apiserver kube-controller-manager kube-scheduler kubelet)

sources=("$state"/src/kubernetes_*.dsc)
[ -s "${sources[0]}" ] || die "$state/src has no sources of Kubernetes: run tests/cluster/install.sh"
go=$(go version) || die "there is no go: run tests/cluster/install.sh"
# What the programs are made of; the same again needs no building.
recipe=$(sha256sum "$here/build.sh" "${sources[0]}" | cut -c1-64; echo "$go")
if [ "$(cat "$programs/recipe" 2>/dev/null)" = "$recipe" ] && (cd "$programs" && stat "${commands[@]}" >/dev/null 2>&1); then
    done_in "Kubernetes is built already"
    exit 0
fi

# The source tree is from before Go's modules were all there was: it is built where GOPATH expects it.
export GOPATH=$state/gopath GOCACHE=$state/gocache GO111MODULE=off GOFLAGS='' GOPROXY=off GOTOOLCHAIN=local CGO_ENABLED=0
tree=$GOPATH/src/k8s.io/kubernetes
mkdir -p "$programs"
if [ ! -f "$tree/go.mod" ]; then
    rm -rf "$tree"
    mkdir -p "${tree%/*}"
    dpkg-source --no-check -x "${sources[0]}" "$tree" >/dev/null
    done_in "sources unpacked"
fi
cd "$tree"
version=$(sed -n 's/^.*really\([0-9.]*\)-.*$/\1/p' <<<"${sources[0]}")
[ -n "$version" ] || die "the name of ${sources[0]} does not say which version it is"
IFS=. read -r major minor _ <<<"$version"

# reflect2 1.0.1, which Kubernetes 1.20 brings along, knows the map iterator of Go up to 1.17; with a later Go its copy is too
# small, and memory behind it is overwritten. Debian has 1.0.2, which asks the runtime instead.
vendored=vendor/github.com/modern-go/reflect2
if [ -e "$vendored/go_above_17.go" ]; then
    rm -rf "$vendored"
    cp -r "$debian/usr/share/gocode/src/github.com/modern-go/reflect2" "$vendored"
fi

# The API server's description of itself is generated, and not part of a release archive.
description=pkg/generated/openapi
if [ ! -s "$description/zz_generated.openapi.go" ]; then
    go build -o "$state/gopath/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
    # Packages of Kubernetes itself, and of its libraries under the name by which they are imported.
    packages=$(
        {
            grep -rl --include='*.go' '+k8s:openapi-gen=' pkg cmd plugin
            cd staging/src && grep -rl --include='*.go' '+k8s:openapi-gen=' k8s.io | sed 's,^,vendor/,'
        } | grep -vE 'zz_generated|_test\.go$|/testdata/|k8s\.io/(code-generator|sample-apiserver)/' |
            xargs -n 1 dirname | sort -u | sed 's,^,k8s.io/kubernetes/,' | paste -sd ,
    )
    "$state/gopath/openapi-gen" --logtostderr --go-header-file hack/boilerplate/boilerplate.generatego.txt --input-dirs "$packages" \
        --output-package "k8s.io/kubernetes/$description" --output-file-base zz_generated.openapi --report-filename /dev/null
    done_in "the API's description generated"
fi

# The version stands in two packages: one is what programs and node report, the other what the API server answers.
flags="-s -w"
for package in component-base/version client-go/pkg/version; do
    for pair in "gitVersion=v$version" "gitMajor=$major" "gitMinor=$minor" gitTreeState=archive; do
        flags+=" -X k8s.io/kubernetes/vendor/k8s.io/$package.$pair"
    done
done
say "compiling ${commands[*]}; about 4 min on two cores when nothing is cached"
nice -n 5 go build -trimpath -tags providerless,dockerless -ldflags "$flags" -o "$programs/" "${commands[@]/#/./cmd/}"
echo "$recipe" >"$programs/recipe"
done_in "built: $(cd "$programs" && du -h --apparent-size "${commands[@]}" | awk '{printf "%s %s  ", $2, $1}')"
