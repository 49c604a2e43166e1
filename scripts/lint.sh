#!/bin/sh
# SPDX-License-Identifier: MIT
# All static checks: layers, formatting, shell scripts, forbidden calls, words, sizes. Prints what is wrong; exit code 1.
set -u
cd "$(dirname "$0")/.." || exit 1
rc=0
complain() { # complain WHAT: standard input lists the places; an empty list is fine
    places=$(cat)
    [ -n "$places" ] || return 0
    printf '%s:\n%s\n' "$1" "$places"
    return 1
}
find_code() { find src cuda test bdpo-train.c -name "$1" 2>/dev/null | sort; }
find_text() {
    find . \( -path ./build -o -path ./.git -o -path ./runs \) -prune -o -type f \
        \( -name '*.[ch]' -o -name '*.cu' -o -name '*.sh' -o -name '*.sbatch' -o -name '*.py' -o -name '*.md' -o -name '*.json' \
        -o -name '*.svg' -o -name Makefile -o -name run \) -print | sort
}

sh scripts/check-layers.sh || rc=1

# headers are laid out by hand: a line each for what belongs together, with its comment beside it
# shellcheck source=scripts/clang-format.sh
if . scripts/clang-format.sh; then
    find_code '*.c' | while read -r f; do
        "$CLANG_FORMAT" "$f" | cmp -s - "$f" || echo "$f"
    done | complain 'not formatted (make format)' || rc=1
else
    rc=1
fi

if command -v shellcheck >/dev/null 2>&1; then
    find scripts test configs .ci \( -name '*.sh' -o -name '*.sbatch' -o -path .ci/run \) -exec shellcheck -x {} + || rc=1
else
    echo 'shellcheck is not there (Debian: apt-get install shellcheck)'
    rc=1
fi

# They accept garbage, overflow silently or stop at a locale's comma; src/io/json.h and checked loops do not.
{ find_code '*.c' && find_code '*.h'; } | grep '^src/\|^bdpo' |
    xargs grep -nE '\b(strto(l|ul|ll|ull|q|imax)|ato[ifl]+|sscanf|gets|strcpy|strcat|sprintf|alloca|system|tmpnam)[ ]*\(' |
    complain 'forbidden calls (strtol and its kin, ato*, sscanf, unbounded copies)' || rc=1
find_text | xargs grep -nE "\\b(TO[D]O|FIXM[E]|XX[X])\\b|not impl[e]mented|unimpl[e]mented|\\bstu[b](bed)?\\b" |
    complain 'unfinished' || rc=1
find_text | xargs grep -nE '(^|[^A-Za-z0-9_.~])/(wor[k]|far[m])/|/opt/ven[v]' | complain "a path of somebody's machine" || rc=1
find_code '*.[ch]' | while read -r f; do
    head -n 2 "$f" | grep -q 'SPDX-License-Identifier: MIT' || echo "$f"
done | complain 'no licence line (SPDX-License-Identifier: MIT)' || rc=1
find_code '*.[ch]' | xargs wc -l | awk '$2 != "total" && $1 > 600 { print $2 ": " $1 " lines" }' |
    complain 'files over 600 lines' || rc=1
find_text | xargs grep -nIE '[[:blank:]]+$' | complain 'blanks at the end of a line' || rc=1

[ $rc -ne 0 ] || echo 'lint: clean'
exit $rc
