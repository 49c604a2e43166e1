#!/bin/sh
# SPDX-License-Identifier: MIT
# A directory that runs on another x86-64 Linux of the same or a newer C library with nothing installed: the program, its libraries
# beside it, and what tests and measures it on a CUDA device. CUDA's own libraries are left out: they are looked for there. MPI too: a copy of
# its library without its plug-ins starts no ranks; clusters build with their own.
# usage: bundle.sh BUILD_DIRECTORY OUT      (make CUDA=1 bundle)
set -eu
build=$1 out=$2
rm -rf "$out"
mkdir -p "$out/lib" "$out/test"
install -m 755 "$build/bdpo-train" "$out/bdpo-train"
for program in device/device_ops bench; do
    if [ -x "$build/test/$program" ]; then install -m 755 "$build/test/$program" "$out/test/"; fi
done
cp -r test/goldens "$out/test/"
cp test/golden_test.py scripts/compare_rows.py "$out/test/"
cp scripts/bench_steps.py scripts/bench_common.py scripts/bench_data.py scripts/demo_data.py "$out/test/"
cp scripts/test-cuda.sh "$out/"
# the C library, its loader and what belongs to it come with the machine
for program in "$out/bdpo-train" "$out"/test/device_ops "$out"/test/bench; do
    [ -x "$program" ] || continue
    ldd "$program" | awk '$3 ~ /^\// { print $3 }'
done | sort -u | grep -Ev '/(libc|libm|libdl|librt|libpthread|libresolv|ld-linux[^/]*)\.so' | while read -r library; do
    cp -L "$library" "$out/lib/"
    strip --strip-unneeded "$out/lib/$(basename "$library")" 2>/dev/null || true
done
find "$out" -maxdepth 2 -type f -perm -u+x ! -name '*.sh' ! -name '*.py' ! -path '*/lib/*' -exec strip {} +
if ! env -u LD_LIBRARY_PATH "$out/bdpo-train" --version >/dev/null; then
    echo "error: the bundle's program does not start" >&2
    exit 1
fi
tar -C "$(dirname "$out")" -cJf "$out.tar.xz" "$(basename "$out")"
bytes=$(wc -c <"$out.tar.xz")
echo "$out.tar.xz: $((bytes / 1024)) KiB"
[ "$bytes" -le $((40 * 1024 * 1024)) ] || { echo "error: more than 40 MiB" >&2; exit 1; }
