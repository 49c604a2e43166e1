#!/bin/sh
# SPDX-License-Identifier: MIT
# What only a CUDA device can show: the ops, whole jobs against PyTorch's results, the sanitizer's four tools, two equal runs. From a
# checkout after `make CUDA=1` (make test-cuda) or from a bundle.
# usage: test-cuda.sh DEVICE_OPS BDPO_TRAIN GOLDEN_TEST.PY      exit code 77: no device
set -u
device_ops=$1 bdpo_train=$2 golden=$3
passed=0 failed=0 skipped=0
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
count() { # count WHAT RC
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
        echo "ok   $1"
    else
        failed=$((failed + 1))
        echo "FAIL $1"
        tail -n 20 "$out/log" | sed 's/^/     /'
    fi
}

if "$device_ops" >"$out/log" 2>&1 && grep -q 'no device:' "$out/log"; then
    grep 'no device:' "$out/log"
    exit 77
fi
"$device_ops" >"$out/log" 2>&1
rc=$?
head -n 2 "$out/log"
count 'ops against the double-precision oracle, each twice with the same bits' $rc
python3 "$golden" --binary "$bdpo_train" --backend cuda >"$out/log" 2>&1
count "whole jobs against PyTorch's results (test/goldens)" $?
python3 "$golden" --binary "$bdpo_train" --backend cuda --twice >"$out/log" 2>&1
count 'two runs of each job: the same bytes in metrics.jsonl and model/' $?
BDPO_TRAIN=$bdpo_train python3 "$(dirname "$golden")/cuda_ranks_test.py" --card >"$out/log" 2>&1
rc=$?
if grep -q '^skip' "$out/log"; then
    grep '^skip' "$out/log"
    skipped=$((skipped + 1))
else
    grep -h '^ok.*ranks: ' "$out/log" || true
    count 'several ranks, with a device each or with one for all: the bits of one' $rc
fi
if command -v compute-sanitizer >/dev/null 2>&1; then
    for tool in memcheck racecheck initcheck synccheck; do
        compute-sanitizer --tool "$tool" --error-exitcode 9 "$device_ops" attention logp rmsnorm headnorm gather put_rows bias swiglu rope adamw flat >"$out/log" 2>&1
        count "compute-sanitizer $tool" $?
    done
else
    echo 'skip compute-sanitizer is not on PATH'
    skipped=$((skipped + 4))
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
