#!/bin/bash
# words.sh: fails where a word that CONTRIBUTING.md replaces by a standard one has come back.
set -euo pipefail
cd "$(dirname "$0")/.."
words='anew|mend|mends|mended|mending|unmended|chime|bell|can not'
found=$(git grep -nwiE "$words" -- . ':!CONTRIBUTING.md' ':!.ci/words.sh' \
    ':!tests/fuzz/corpus' ':!tests/fuzz/regressions') || [ $? = 1 ] # 1: none
[ -z "$found" ] || {
    echo "words.sh: replace these by the standard terms: see \"Words\" in CONTRIBUTING.md" >&2
    printf '%s\n' "$found" >&2
    exit 1
}
