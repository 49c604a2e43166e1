#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Kernels of cuda/ with one mistake each: the tests on the emulated device must fail. Standard library only.

  cuda_mutants_test.py        after make build-tests, with the same BUILD, CC and WERROR in the environment or none
"""
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
BARRIER = "    __syncthreads();"
# what, file compiled, file changed, text there, text instead, op that is run
CONTROL = "nothing is wrong"
MUTANTS = [
    (CONTROL, "norm.cu", "norm.cu", BARRIER, BARRIER, "rmsnorm"),
    (CONTROL, "attention_fwd.cu", "attention_fwd.cu", BARRIER, BARRIER, "attention"),
    ("no barrier before the sums of a norm's weight are read", "norm.cu", "norm.cu", BARRIER, "", "rmsnorm"),
    ("only the last group's sum counts", "norm.cu", "norm.cu", "all += sums[g][threadIdx.x];", "all = sums[g][threadIdx.x];", "rmsnorm"),
    ("rstd off by one", "norm.cu", "norm.cu", "rstd[blockIdx.x] = scale;", "rstd[blockIdx.x + 1] = scale;", "rmsnorm"),
    ("the mean is over one element more", "norm.cu", "norm.cu", "block_sum(q, warps) / (float)D", "block_sum(q, warps) / (float)(D + 1)", "rmsnorm"),
    ("a warp takes rows that another takes", "norm.cu", "norm.cu", "i += GROUPS", "i += GROUPS - 1", "headnorm"),
    ("half of a warp is left out of its sum", "norm.cu", "kernel.cuh", "for (int x = 16; x; x >>= 1)\n        v += ", "for (int x = 8; x; x >>= 1)\n        v += ", "rmsnorm"),
    ("no barrier in the sum over a block", "norm.cu", "kernel.cuh", "warps[warp] = v;\n    __syncthreads();", "warps[warp] = v;", "rmsnorm"),
    ("a barrier in a branch", "norm.cu", "kernel.cuh", "if (threadIdx.x % 32 == 0) warps[warp] = v;\n    __syncthreads();",
     "if (threadIdx.x % 32 == 0) { warps[warp] = v; __syncthreads(); }", "rmsnorm"),
    ("a row too many joins a bias", "reduce.cu", "reduce.cu", "end = MIN(first + ROWS, T)", "end = MIN(first + ROWS + 1, T)", "bias"),
    ("no barrier before a tile of indices is read", "reduce.cu", "reduce.cu", "tile[threadIdx.x] = index[at + threadIdx.x];\n        __syncthreads();",
     "tile[threadIdx.x] = index[at + threadIdx.x];", "gather"),
    ("no barrier before a tile of indices is written over", "reduce.cu", "reduce.cu", "        }\n        __syncthreads();\n    }\n    if (i < n)",
     "        }\n    }\n    if (i < n)", "gather"),
    ("every row of a chain adds all", "reduce.cu", "reduce.cu", "if (at + j < i) l.first = 0;", "", "gather"),
    ("a sum of squares without its last block", "reduce.cu", "reduce.cu", "i < n; i += BLOCK)", "i < n - 1; i += BLOCK)", "flat"),
    ("the sum of squares in float", "reduce.cu", "reduce.cu", "q += (double)o.v[k] * (double)o.v[k];", "q += o.v[k] * o.v[k];", "flat"),
    ("the wrong sign in a rotation", "elementwise.cu", "elementwise.cu", "b.v[k] = v * c.v[k] + u * w;", "b.v[k] = v * c.v[k] - u * w;", "rope"),
    ("a row's tail is one longer", "elementwise.cu", "elementwise.cu", "store8(y + t * F + c, g, F - c);", "store8(y + t * F + c, g, F - c + 1);", "swiglu"),
    ("gathers the next row", "elementwise.cu", "elementwise.cu", "y[i] = x[at * row + i % row];", "y[i] = x[(at + 1) % rows * row + i % row];", "gather"),
    ("rounds where it should not", "optim.cu", "optim.cu", "sqrtf(q.v[k]) * s.root", "sqrtf(q.v[k] * s.root)", "adamw"),
    ("no barrier in a row's maximum", "logp.cu", "logp.cu", BARRIER + "\n    float all = warps[0];", "\n    float all = warps[0];", "logp"),
    ("attention without the barrier before a tile", "attention_fwd.cu", "attention_fwd.cu", "        __syncthreads();", "", "attention"),
    ("attention that does not wait for its tile", "attention_fwd.cu", "attention_fwd.cu", "        ptx_copy_wait<0>();", "", "attention"),
    ("attention that sees one key too many", "attention_fwd.cu", "attention_fwd.cu", "row + (int32_t)threadIdx.x % 32 / 4, s.prefix_len, first)",
     "row + (int32_t)threadIdx.x % 32 / 4, s.prefix_len + 1, first)", "attention"),
    ("attention's sum over a quarter of its lanes", "attention_fwd.cu", "attention_fwd.cu", "sum += __shfl_xor_sync(ALL_LANES, sum, 2);", "", "attention"),
]


def make(*args):
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")}
    kept = [f"{k}={os.environ[k]}" for k in ("BUILD", "CC", "WERROR") if k in os.environ]
    return subprocess.run(["make", "--no-print-directory", "-s", *kept, *args], cwd=ROOT, env=env, capture_output=True, text=True)


def judge(mutant):
    what, compiled, changed, old, new, op = mutant
    with tempfile.TemporaryDirectory(prefix="bdpo-mutant-") as d:
        for name in {compiled, changed}:
            with open(os.path.join(ROOT, "cuda", name), encoding="utf-8") as f:
                text = f.read()
            if name == changed:
                if old not in text:
                    return what, f"its text is not in cuda/{changed} any more"
                text = text.replace(old, new, 1)
            # quoted paths that leave the folder are made whole
            text = re.sub(r'#include "\.\./', f'#include "{os.path.abspath(ROOT)}/', text)
            with open(os.path.join(d, name), "w", encoding="utf-8") as f:
                f.write(text)
        binary = os.path.join(d, "mutant")
        built = make("mutant", f"MUTANT={os.path.join(d, compiled)}", f"MUTANT_OUT={binary}")
        if built.returncode != 0:
            return what, "does not build: " + built.stderr[-400:]
        ran = subprocess.run([binary, op], cwd=ROOT, capture_output=True, text=True, timeout=250)
        if what == CONTROL:
            return what, None if ran.returncode == 0 else ran.stdout[-400:] + ran.stderr[-400:]
        return what, f"the rows of {op} pass" if ran.returncode == 0 else None


def main():
    passed = failed = 0
    with ThreadPoolExecutor(2) as pool:
        for what, wrong in pool.map(judge, MUTANTS):
            if wrong:
                print(f"FAIL {what}: {wrong}")
                failed += 1
            else:
                print(f"ok   {what}" + ("" if what == CONTROL else ": caught"))
                passed += 1
    print(f"{passed} passed, {failed} failed, 0 skipped")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
