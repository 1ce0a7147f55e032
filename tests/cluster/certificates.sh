#!/bin/bash
# certificates.sh DIR: an authority, and what it signs for API server, kubelet, controllers, scheduler and administrator; the key of
# service accounts. Made once.
set -euo pipefail
dir=$1
[ ! -e "$dir/complete" ] || exit 0
rm -rf "$dir"
mkdir -p "$dir"
chmod 700 "$dir"
cd "$dir"
umask 077
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }
# certificate NAME SUBJECT EXTENSION...
certificate() {
    local name=$1 subject=$2
    shift 2
    key "$name"
    openssl req -new -key "$name.key" -subj "$subject" -out "$name.csr"
    printf '%s\n' "$@" >"$name.ext"
    openssl x509 -req -in "$name.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -extfile "$name.ext" -out "$name.crt" 2>/dev/null
    rm "$name.csr" "$name.ext"
}
key ca
openssl req -x509 -new -key ca.key -subj /CN=latebind-cluster -days 3650 -out ca.crt \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
# 10.0.0.1 is the first address of the services' range: the API server's own service.
names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc
certificate apiserver /CN=kube-apiserver extendedKeyUsage=serverAuth "subjectAltName=IP:127.0.0.1,IP:10.0.0.1,$names"
certificate admin /O=system:masters/CN=admin extendedKeyUsage=clientAuth
certificate kubelet /O=system:nodes/CN=system:node:127.0.0.1 extendedKeyUsage=clientAuth
certificate controllers /CN=system:kube-controller-manager extendedKeyUsage=clientAuth
certificate scheduler /CN=system:kube-scheduler extendedKeyUsage=clientAuth
openssl genrsa -out accounts.key 2048 2>/dev/null
openssl rsa -in accounts.key -pubout -out accounts.pub 2>/dev/null
touch complete
