#!/bin/sh
# SPDX-License-Identifier: MIT
# A file in layer N includes its own folder and folders of a lower layer, nothing else.
set -u
rank() {
    case $1 in
    base) echo 0 ;;
    io | ops | loss) echo 1 ;;
    cpu | cuda | dist | data) echo 2 ;;
    model | report) echo 3 ;;
    train) echo 4 ;;
    *) echo 9 ;;
    esac
}
rc=0
for f in src/*/*.[ch] cuda/*.*; do
    [ -f "$f" ] || continue
    d=${f#src/}
    d=${d%%/*}
    if [ "$(rank "$d")" = 9 ]; then
        echo "$f: folder $d has no layer; name it in scripts/check-layers.sh and docs/DESIGN.md"
        rc=1
    fi
    # folder names hold no blanks
    # shellcheck disable=SC2013
    for i in $(sed -n 's|^ *# *include "\(.*\)/[^/]*".*|\1|p' "$f" | sed 's|.*/||'); do
        if [ "$i" != "$d" ] && [ "$(rank "$i")" -ge "$(rank "$d")" ]; then
            echo "$f: $d must not include $i"
            rc=1
        fi
    done
done
exit $rc
