#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What `make ci` runs; `ci.sh full` adds the tests built by clang, the thread sanitizer, the tests of ranks with a bundle and the demo.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-}
jobs=$(nproc)
step() { printf '\n--- %s (%d s so far)\n' "$1" "$SECONDS"; }
build() { make --no-print-directory -s -j"$jobs" WERROR=1 "$@"; }

step 'what is needed'
CC=gcc sh scripts/install-deps.sh build clang lint
step 'lint'
sh scripts/lint.sh
step 'build with gcc'
build CC=gcc all build-tests build/release/test/bench
step 'build with clang'
build CC=clang all build-tests
step 'CUDA: nvcc compiles all of it, and the program starts without a driver'
if sh scripts/install-deps.sh cuda; then
    build CC=gcc CUDA=1 all cuda-abi build/release-cuda/test/device/device_ops
    build/release-cuda/bdpo-train --version
    sh scripts/test-cuda.sh build/release-cuda/test/device/device_ops build/release-cuda/bdpo-train test/golden_test.py || [ $? -eq 77 ]
    build CC=gcc link
else
    echo 'skipped: there is no nvcc, and the package index gave none'
fi
step 'a rebuild has nothing to do'
make --no-print-directory -q WERROR=1 CC=gcc build-tests
step 'tests under the address and undefined-behaviour sanitizers'
build BUILD=asan build-tests
# all kernels are in t_cuda_ops too
make --no-print-directory -s BUILD=asan WERROR=1 WITHOUT="$([ "$mode" = full ] || echo t_cuda_attention)" test-sanitized
step 'the program built by clang; beside it, calls of the system that fail, under the sanitizers'
BDPO_TRAIN=$PWD/build/asan/bdpo-train BDPO_FAULTY=$PWD/build/asan/bdpo-train-fault python3 test/fault_test.py --share 0.03 >build/asan/fault.out 2>&1 &
faults=$!
make --no-print-directory -s CC=clang WERROR=1 test-c
wait $faults || { cat build/asan/fault.out; exit 1; }
tail -n 1 build/asan/fault.out
if [ "$mode" = full ]; then
    step 'the thread sanitizer'
    build BUILD=tsan CC=clang build-tests
    make --no-print-directory -s WERROR=1 tsan
    step 'the tests of several ranks with a bundle'
    BDPO_TRAIN=$PWD/build/release/bdpo-train python3 test/mpi_bundle_test.py --all
    step 'demo'
    make --no-print-directory demo
fi
# last, so that its count of tests is the last line
step 'all tests'
make --no-print-directory -s CC=gcc WERROR=1 test-built
