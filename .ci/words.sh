#!/bin/bash
# words.sh: fails where a word that CONTRIBUTING.md replaces by a standard one has come back.
set -euo pipefail
cd "$(dirname "$0")/.."
words='anew|mend|mends|mended|mending|unmended|chime|bell|can not'
found=$(git grep -nwiE "$words" -- . ':!CONTRIBUTING.md' ':!.ci/words.sh' ':!tests/fuzz/corpus' ':!tests/fuzz/regressions') ||
    [ $? = 1 ] # 1: none
[ -z "$found" ] || {
    echo "words.sh: see \"Words\" in CONTRIBUTING.md; instead of mend: reset or repair; bell, chime: notify; anew: again" >&2
    printf '%s\n' "$found" >&2
    exit 1
}
