# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Sourced: sets CLANG_FORMAT to a clang-format 14, whose output .clang-format was made for (others differ in details).
CLANG_FORMAT=
for c in clang-format-14 clang-format; do
    if command -v "$c" >/dev/null 2>&1 && "$c" --version | grep -q 'version 14\.'; then
        CLANG_FORMAT=$c
        break
    fi
done
if [ -z "$CLANG_FORMAT" ]; then
    echo "clang-format 14 is not there (Debian 12: apt-get install clang-format)" >&2
    false
fi
