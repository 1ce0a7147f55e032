#!/bin/sh
# check-binary.sh FILE [--max-bytes N]: is FILE fit to be run as root in a stranger's image? It must need nothing of the image
# (static, no loader), be hard to exploit (position-independent, RELRO, no executable stack), and, if asked, be small.
set -eu
file=${1:?usage: check-binary.sh FILE [--max-bytes N]}
max=
[ "${2:-}" != --max-bytes ] || max=${3:?--max-bytes wants a number}
[ -f "$file" ] || {
    echo "check-binary: $file is missing: make build" >&2
    exit 1
}

header=$(LC_ALL=C readelf -hW "$file")
segments=$(LC_ALL=C readelf -lW "$file")
dynamic=$(LC_ALL=C readelf -dW "$file")
bad=0
check() { # check WHY-IT-MATTERS TEXT PATTERN: TEXT must have a line that matches; check ! ...: must have none
    want=yes
    if [ "$1" = ! ]; then
        want=no
        shift
    fi
    if printf '%s\n' "$2" | grep -Eq "$3"; then found=yes; else found=no; fi
    [ "$found" = "$want" ] || {
        echo "check-binary: $file: $1" >&2
        bad=1
    }
}
check "is not position-independent (ET_DYN): link it as a static PIE, with rcrt1.o" "$header" 'Type: +DYN'
check ! "names a dynamic loader (INTERP), which would be the image's own: link with --no-dynamic-linker" "$segments" '^ +INTERP'
check ! "needs shared libraries (NEEDED), which would be the image's own: link statically" "$dynamic" '\(NEEDED\)'
check "has no GNU_RELRO segment: link with -z relro" "$segments" '^ +GNU_RELRO'
check "does not resolve everything at its start: link with -z now" "$dynamic" 'BIND_NOW|Flags:.* NOW'
check "has no GNU_STACK header, so that its stack would be executable: link with -z noexecstack" "$segments" '^ +GNU_STACK'
check ! "asks for an executable stack: link with -z noexecstack" "$segments" '^ +GNU_STACK.* R?WE '
check ! "has a segment that is both writable and executable" "$segments" '^ +LOAD.* R?WE '
check ! "has relocations in its code (TEXTREL)" "$dynamic" 'TEXTREL'

size=$(stat -c %s "$file")
if [ -n "$max" ] && [ "$size" -gt "$max" ]; then
    echo "check-binary: $file has $size bytes, more than $max: see what grew with 'nm --size-sort -S' of an unstripped build" >&2
    bad=1
fi
[ $bad = 0 ] || exit 1
echo "check-binary: $file is a static PIE with RELRO and no executable stack, $size bytes${max:+ of $max}"
