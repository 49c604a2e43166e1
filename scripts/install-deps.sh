#!/bin/sh
# SPDX-License-Identifier: MIT
# Install what is missing to build and test bdpo-train, and say so. Does nothing where all is there.
# usage: install-deps.sh [build] [clang] [fuzz] [lint] [venv] [cuda] [cudnn] [mpi]      (default: build)
# cuda: nvcc and the runtime to link, from the package index into build/nvcc where no nvcc is found (about 300 MB)
# mpi: both of Debian's MPI libraries, for a bundle
set -eu

cc=${CC:-gcc}
missing=
need() { # need PACKAGE COMMAND...: the package is missing when the command fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
header() { # does the compiler find a header?
    printf '#include <%s>\n' "$1" | "$cc" -E -x c -o /dev/null - 2>/dev/null
}
openmp() { # does clang link an OpenMP program?
    out=$(mktemp) || return 1
    rc=0
    printf '#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n' |
        clang -fopenmp -x c -o "$out" - 2>/dev/null || rc=1
    rm -f "$out"
    return $rc
}

fuzzer() { # does clang link libFuzzer?
    out=$(mktemp) || return 1
    rc=0
    printf 'int LLVMFuzzerTestOneInput(const char *s, long n);\nint LLVMFuzzerTestOneInput(const char *s, long n) { return n && s[0] ? 0 : 0; }\n' |
        clang -fsanitize=fuzzer -x c -o "$out" - 2>/dev/null || rc=1
    rm -f "$out"
    return $rc
}

nvcc_there() {
    command -v nvcc >/dev/null 2>&1 || [ -x /usr/local/cuda/bin/nvcc ] || [ -x build/nvcc/bin/nvcc ]
}

# Debian's nvcc is too old for the newest cards; the wheels hold the compiler as the toolkit has it
install_nvcc() {
    echo "installing nvcc from the package index into build/nvcc"
    mkdir -p build
    python3 -m venv build/nvcc-venv
    build/nvcc-venv/bin/pip install --quiet 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' \
        'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*'
    for root in build/nvcc-venv/lib/python3*/site-packages/nvidia/cu13; do
        ln -sfn "${root#build/}" build/nvcc
    done
    build/nvcc/bin/nvcc --version >/dev/null
}

# header-only; cudnn.h itself comes with cuDNN, or with pip's nvidia-cudnn-cu13
install_cudnn() {
    [ ! -e build/cudnn/include/cudnn_frontend.h ] || return 0
    echo "installing cuDNN's frontend from the package index into build/cudnn"
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-deps --target build/cudnn nvidia-cudnn-frontend
}

get_nvcc=
get_cudnn=
[ $# -gt 0 ] || set -- build
for part in "$@"; do
    case $part in
    build)
        need make command -v make
        need gcc command -v gcc
        need g++ command -v g++
        need libc6-dev sh -c "printf '#include <stdio.h>\n' | gcc -E -x c -o /dev/null -"
        need pkg-config command -v pkg-config
        need python3 command -v python3
        need libjansson-dev pkg-config --exists jansson
        need zlib1g-dev pkg-config --exists zlib
        need libpcre2-dev pkg-config --exists libpcre2-8
        need libutf8proc-dev pkg-config --exists libutf8proc
        need libcmocka-dev pkg-config --exists cmocka
        command -v "$cc" >/dev/null 2>&1 || cc=gcc
        need libdnnl-dev header dnnl.h
        command -v "${MPICC:-mpicc}" >/dev/null 2>&1 || need libopenmpi-dev false
        command -v mpirun >/dev/null 2>&1 || need openmpi-bin false
        ;;
    clang)
        need clang command -v clang
        need libomp-dev openmp
        ;;
    fuzz) # libFuzzer comes with the runtime libraries of the sanitizers
        need "libclang-rt-$(clang -dumpversion 2>/dev/null | cut -d. -f1)-dev" fuzzer
        ;;
    lint)
        need clang-format command -v clang-format
        need shellcheck command -v shellcheck
        need git command -v git
        ;;
    venv) need python3-venv python3 -c 'import ensurepip, venv' ;;
    cuda)
        need g++ command -v g++
        if ! nvcc_there; then
            need python3-venv python3 -c 'import ensurepip, venv'
            get_nvcc=1
        fi
        ;;
    cudnn)
        need python3-pip python3 -m pip --version
        get_cudnn=1
        ;;
    mpi)
        need libopenmpi-dev command -v mpicc.openmpi
        need openmpi-bin command -v ompi_info
        need libmpich-dev command -v mpicc.mpich
        ;;
    *)
        echo "install-deps.sh: unknown part '$part'; one of build, clang, fuzz, lint, venv, cuda, cudnn, mpi" >&2
        exit 2
        ;;
    esac
done
missing=${missing# }
if [ -z "$missing" ]; then
    [ -z "$get_nvcc" ] || install_nvcc
    [ -z "$get_cudnn" ] || install_cudnn
    exit 0
fi

if ! command -v apt-get >/dev/null 2>&1; then
    echo "error: missing: $missing (Debian's names). There is no apt-get here; install their like with this system's package manager." >&2
    exit 1
fi
as_root=
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "error: missing: $missing. Neither root nor sudo is at hand; as root run: apt-get install -y $missing" >&2
        exit 1
    fi
    as_root=sudo
fi
echo "installing with apt-get: $missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086 # word splitting is wanted: $missing is a list, $as_root may be empty
if ! { { $as_root apt-get update -q || echo "apt-get update failed; trying with the lists that are there"; } &&
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "error: apt-get could not install: $missing" >&2
    exit 1
fi
[ -z "$get_nvcc" ] || install_nvcc
[ -z "$get_cudnn" ] || install_cudnn
