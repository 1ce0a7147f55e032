#!/bin/bash
# words.sh: fails where a word that CONTRIBUTING.md replaces by a standard one has come back.
set -euo pipefail
cd "$(dirname "$0")/.."
words='anew|mend|mends|mended|mending|unmended|chime|bell|can not'
found=$(git grep -nwiE "$words" -- . ':!CONTRIBUTING.md' ':!.ci/words.sh' \
    ':!tests/fuzz/corpus' ':!tests/fuzz/regressions') || [ $? = 1 ] # 1: none
# The last of them with the end of a line between its words: files, without the line.
broken=$(git grep -lz '' -- . ':!CONTRIBUTING.md' ':!tests/fuzz/corpus' ':!tests/fuzz/regressions' |
    xargs -0 grep -lPz '(?i)\bcan\n[ \t#/*!>|-]*not\b') || [ $? = 123 ] # xargs: none in some files
[ -z "$found$broken" ] || {
    echo "words.sh: replace these by the standard terms: see \"Words\" in CONTRIBUTING.md" >&2
    printf '%s\n' "$found" "$broken" >&2
    exit 1
}
