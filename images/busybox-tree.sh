# busybox_tree DIRECTORY [PREFIX]: sourced by the rootfs scripts; a small system around the static busybox beside the script.
busybox_tree() {
    mkdir -p "$1/bin" "$1/etc" "$1/root" "$1/tmp" "$1/usr/bin" "$1/var/lib"
    chmod 1777 "$1/tmp"
    chmod 0700 "$1/root"
    cp busybox "$1/bin/busybox"
    for applet in $("${BUSYBOX:-./busybox}" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n' >"$1/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$1/etc/group"
}
