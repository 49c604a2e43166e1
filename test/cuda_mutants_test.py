#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Kernels of cuda/ with one mistake each: the tests on the emulated device must fail. Standard library only.

  cuda_mutants_test.py [--all]        after make build-tests, with the same BUILD, CC and WERROR in the environment or none; without --all every third of
                                      MUTANTS, and of MORE, which the slower tests of attention and the head must catch, every ninth
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
    ("a bias of the next eight columns", "reduce.cu", "reduce.cu", "load8(b + c, N - c)", "load8(b + (c + OCT < N ? c + OCT : c), N - c)", "bias"),
    ("no barrier before a tile of indices is read", "reduce.cu", "reduce.cu", "tile[threadIdx.x] = index[at + threadIdx.x];\n        __syncthreads();",
     "tile[threadIdx.x] = index[at + threadIdx.x];", "gather"),
    ("no barrier before a tile of indices is written over", "reduce.cu", "reduce.cu", "        }\n        __syncthreads();\n    }\n    if (i < n)",
     "        }\n    }\n    if (i < n)", "gather"),
    ("every row of a chain adds all", "reduce.cu", "reduce.cu", "if (at + j < i) l.first = 0;", "", "gather"),
    ("a sum of squares without its last block", "reduce.cu", "reduce.cu", "i < n; i += BLOCK)", "i < n - 1; i += BLOCK)", "flat"),
    ("the sum of squares in float", "reduce.cu", "reduce.cu", "q += (double)o.v[k] * (double)o.v[k];", "q += o.v[k] * o.v[k];", "flat"),
    ("a block's sum of squares with its neighbour's first", "reduce.cu", "reduce.cu", "end = MIN(first + block, n)", "end = MIN(first + block + 1, n)", "flat"),
    ("the wrong sign in a rotation", "elementwise.cu", "elementwise.cu", "b.v[k] = v * c.v[k] + u * w;", "b.v[k] = v * c.v[k] - u * w;", "rope"),
    ("a row's tail is one longer", "elementwise.cu", "elementwise.cu", "store8(y + t * F + c, g, F - c);", "store8(y + t * F + c, g, F - c + 1);", "swiglu"),
    ("the halves of a byte swapped", "elementwise.cu", "elementwise.cu", "o.v[k] = code[two >> 4] * scale;", "o.v[k] = code[two & 15] * scale;", "nf4"),
    ("codes are read before they are there", "elementwise.cu", "elementwise.cu", "codes.v[threadIdx.x];\n    __syncthreads();", "codes.v[threadIdx.x];", "nf4"),
    ("a scale of the next group", "elementwise.cu", "elementwise.cu", "most[1 + i / NF4_GROUP] + most[0]", "most[(1 + i / NF4_GROUP) % 2] + most[0]", "nf4_scales"),
    ("the second four elements dropped as the first", "elementwise.cu", "elementwise.cu", "dropout_factor(bits[k / 4], k % 4, below)", "dropout_factor(bits[0], k % 4, below)", "dropout"),
    ("a moment rounded by the weight's bits", "optim.cu", "optim.cu", "store_state(m, p, i, n, bits, 16);", "store_state(m, p, i, n, bits, 0);", "adamw"),
    ("gathers the next row", "elementwise.cu", "elementwise.cu", "y[i] = x[at * row + i % row];", "y[i] = x[(at + 1) % rows * row + i % row];", "gather"),
    ("rounds where it should not", "optim.cu", "optim.cu", "sqrtf(q.v[k]) * s.root", "sqrtf(q.v[k] * s.root)", "adamw"),
    ("no barrier in a row's maximum", "logp.cu", "logp.cu", BARRIER + "\n    float all = warps[0];", "\n    float all = warps[0];", "logp"),
    ("attention without the barrier before a tile", "attention_fwd.cu", "attention_fwd.cu", "        __syncthreads();", "", "attention"),
    ("attention that does not wait for its tile", "attention_fwd.cu", "attention_fwd.cu", "        ptx_copy_wait<0>();", "", "attention"),
    ("attention that sees one key too many", "attention_fwd.cu", "attention_fwd.cu", "row + (int32_t)threadIdx.x % 32 / 4, s.prefix_len, first)",
     "row + (int32_t)threadIdx.x % 32 / 4, s.prefix_len + 1, first)", "attention"),
    ("attention's sum over a quarter of its lanes", "attention_fwd.cu", "attention_fwd.cu", "sum += __shfl_xor_sync(ALL_LANES, sum, 2);", "", "attention"),
]

ATT, LOGP = "t_cuda_attention", ("t_cuda_logp", "*")
MMA, PLAIN, LISTS = (ATT, "test_cuda_attention__mma_*"), (ATT, "test_cuda_attention__plain"), (ATT, "test_cuda_attention__lists")
OPS = "logp"
# file changed, text there, text instead, op or (program, its argument)
MORE = [
    # attention_fwd.cu
    ("attention_fwd.cu", "        __syncthreads(); /* tile t is there", "        /* tile t is there", MMA),
    ("attention_fwd.cu", "        ptx_copy_wait<0>();\n", "", MMA),
    ("attention_fwd.cu", "att_load_keys<D>(sk + (t + 1) % 2 * TILE", "att_load_keys<D>(sk + t % 2 * TILE", MMA),
    ("attention_fwd.cu", "(t + 1) * ATT_KEYS);\n            att_load_keys<D>(sv", "t * ATT_KEYS);\n            att_load_keys<D>(sv", MMA),
    ("attention_fwd.cu", "first + KEYS - 1 > s.prefix_len", "first + KEYS - 2 > s.prefix_len", MMA),
    ("attention_fwd.cu", "            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));\n", "", MMA),
    ("attention_fwd.cu", "            sum += __shfl_xor_sync(ALL_LANES, sum, 1);\n", "", MMA),
    ("attention_fwd.cu", "r.sum[m][i] * back + sum", "r.sum[m][i] + sum", MMA),
    ("attention_fwd.cu", "                o[m][n][2 * i + 1] *= back;\n", "", MMA),
    ("attention_fwd.cu", "r.top[m][i] * a.scale + logf(sum)", "r.top[m][i] + logf(sum)", MMA),
    ("attention_fwd.cu", "sk + t % 2 * TILE + k * D", "sk + t % 2 * TILE", MMA),
    # attention_mma.cuh and attention.cuh
    ("attention_mma.cuh", "> seen) c[m]", "> seen + 1) c[m]", MMA),
    ("attention_mma.cuh", "row + 16 * m + 8 * i);\n#pragma unroll\n            for (int n = 0; n < NT", "row + 16 * m);\n#pragma unroll\n            for (int n = 0; n < NT", MMA),
    ("attention_mma.cuh", "((h ^ (lane_row & 7)) << 3)", "((h ^ (lane_row & 3)) << 3)", MMA),
    ("attention_mma.cuh", "(lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1", "(lane & 15), lane >> 4", MMA),
    ("attention_mma.cuh", "p[m][2 * k + i / 2]", "p[m][2 * k + i % 2]", MMA),
    ("attention_mma.cuh", "        if (at + r >= rows) continue;\n", "        if (at + r > rows) continue;\n", MMA),
    ("attention_mma.cuh", "    __syncwarp();\n", "", MMA),
    ("attention_mma.cuh", "const bool there = at + r < rows;", "const bool there = true;", MMA),
    ("attention_mma.cuh", "head = g * a.G + p - token * a.G;", "head = g * a.G;", MMA),
    ("attention.cuh", "s.own + (j - s.prefix_len)", "s.own + j", MMA),
    ("attention.cuh", "w->own ? s.len : s.prefix_len;", "s.len;", MMA),
    ("attention.cuh", "w->first + n <= 0) continue;", "w->first < 0) continue;", MMA),
    ("attention.cuh", "if (++w->own == 2)", "if (++w->own == 1)", MMA),
    # attention_bwd.cu
    ("attention_bwd.cu", "        __syncthreads(); /* tile t is there", "        /* tile t is there", MMA),
    ("attention_bwd.cu", "        __syncthreads(); /* tile w is there", "        /* tile w is there", MMA),
    ("attention_bwd.cu", "        ptx_copy_wait<0>();\n        __syncthreads(); /* tile w", "        __syncthreads(); /* tile w", MMA),
    ("attention_bwd.cu", "sum = warp_sum(sum);", "sum += __shfl_xor_sync(ALL_LANES, sum, 16);", MMA),
    ("attention_bwd.cu", "if (more) dkv_row_put(rows[other], r);", "if (more) dkv_row_put(rows[stage], r);", MMA),
    ("attention_bwd.cu", "p[0][n][i] * (ds[0][n][i] - rows.delta", "p[0][n][i] * (ds[0][n][i] + rows.delta", MMA),
    ("attention_bwd.cu", "(dp[0][n][i] - delta[i / 2])", "(dp[0][n][i] - delta[i % 2])", MMA),
    ("attention_bwd.cu", "if (key < 0 || key > seen)", "if (key < 0 || key >= seen)", MMA),
    ("attention_bwd.cu", "key + 8 < 0 || key + 8 > seen", "key + 8 > seen", MMA),
    ("attention_bwd.cu", "w.first + ATT_KEYS > w.len ||", "w.first + ATT_KEYS > w.len + 1 ||", MMA),
    ("attention_bwd.cu", "sk, dk[0], a.scale,", "sk, dk[0], 1,", MMA),
    ("attention_bwd.cu", "struct dkv_row r = { INFINITY, 0 };", "struct dkv_row r = { 0, 0 };", MMA),
    ("attention_bwd.cu", "        if (r >= n) continue;\n", "        if (r > n) continue;\n", MMA),
    ("attention_bwd.cu", "att_product_add<D>(dk, ds, sq + r * D);", "att_product_add<D>(dk, ds, sq);", MMA),
    # attention_plain.cu
    ("attention_plain.cu", "        __syncthreads();\n        if (tid < N) plain_softmax", "        if (tid < N) plain_softmax", PLAIN),
    ("attention_plain.cu", "row[N] = row[N] * row[2 * N] + sum;", "row[N] = row[N] + sum;", PLAIN),
    ("attention_plain.cu", "for (int32_t i = 0; i < D; i++)\n        sum", "for (int32_t i = 0; i < D - 1; i++)\n        sum", PLAIN),
    ("attention_plain.cu", "            plain_ds(t, a, w, 0);\n            __syncthreads();\n", "            plain_ds(t, a, w, 0);\n", PLAIN),
    ("attention_plain.cu", "            __syncthreads();\n            plain_bwd_rows", "            plain_bwd_rows", PLAIN),
    ("attention_plain.cu", "if (key >= begin && key < w.len &&", "if (key > begin && key < w.len &&", PLAIN),
    ("attention_plain.cu", "plain_add(dk, t.ds + key, N + 1, t.q, a.D)", "plain_add(dk, t.ds + key, N, t.q, a.D)", PLAIN),
    # attention.cu
    ("attention.cu", "memcmp(list->data, segs->seg, (size_t)segs->n * sizeof *segs->seg) == 0", "true", LISTS),
    ("attention.cu", "list->n != segs->n || list->G != G", "list->n != segs->n", LISTS),
    ("attention.cu", "if (list->tile.rows != tile.rows || list->tile.keys != tile.keys) return false;", "", LISTS),
    ("attention.cu", "div_up(s->prefix_len + last + 1, tile.keys)", "div_up(s->prefix_len + last, tile.keys)", MMA),
    # logp.cu
    ("logp.cu", "    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;\n    __syncthreads();\n",
     "    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;\n", OPS),
    ("logp.cu", "    for (int i = 1; i < THREADS / 32; i++)\n        all = fmaxf", "    for (int i = 2; i < THREADS / 32; i++)\n        all = fmaxf", LOGP),
    ("logp.cu", " * exp((double)before - (double)top)", "", LOGP),
    ("logp.cu", "    rest += (sum - (s - y)) + (x - y);\n", "    (void)y;\n", LOGP),
    ("logp.cu", "if (column(i) + k == hit) r.hit[n]", "if (column(i) + k + 1 == hit) r.hit[n]", OPS),
    ("logp.cu", "    __syncthreads(); /* all is read before any is written */\n", "", OPS),
    ("logp.cu", "column(i) + k == hit ? expm1f(z[i].v[k] - l)", "column(i) + k == hit ? expf(z[i].v[k] - l) - 1", LOGP),
    ("logp.cu", "v0 ? 1 : 0));\n", "0));\n", OPS),
    ("logp.cu", "z.v[k] = column(i) + k == hit ?", "z.v[k] = column(i) + k == hit + 1 ?", LOGP),
    ("logp.cu", "scale = c * expf(top[tile * N + n] - l)", "scale = c * expf(top[n] - l)", LOGP),
    ("logp.cu", "if (k >= left) z[i].v[k] = -INFINITY;", "if (k > left) z[i].v[k] = -INFINITY;", OPS),
]
SAMPLE = 9
COMPILED = {"attention_mma.cuh": "attention_fwd.cu", "attention.cuh": "attention_bwd.cu"}  # a file that has the header's mistakes


def more(step):
    return [(f"{file}: {old.strip()!r} -> {new.strip()!r}", COMPILED.get(file, file), file, old, new, op) for file, old, new, op in MORE[::step]]


def make(*args):
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")}
    kept = [f"{k}={os.environ[k]}" for k in ("BUILD", "CC", "WERROR", "MPICC") if k in os.environ]
    return subprocess.run(["make", "--no-print-directory", "-s", *kept, *args], cwd=ROOT, env=env, capture_output=True, text=True)


def judge(mutant):
    what, compiled, changed, old, new, op = mutant
    program, argument = ("t_cuda_ops", op) if isinstance(op, str) else op
    with tempfile.TemporaryDirectory(prefix="bdpo-mutant-") as d:
        # all headers, since one includes another from its own folder
        for name in {compiled, *(x for x in os.listdir(os.path.join(ROOT, "cuda")) if x.endswith((".h", ".cuh")))}:
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
        built = make("mutant", f"MUTANT={os.path.join(d, compiled)}", f"MUTANT_OUT={binary}", f"MUTANT_TEST={program}")
        if built.returncode != 0:
            return what, "does not build: " + built.stderr[-400:]
        try:
            ran = subprocess.run([binary, argument], cwd=ROOT, capture_output=True, text=True, timeout=250)
        except subprocess.TimeoutExpired:
            return what, None if what != CONTROL else "no end"  # a kernel that does not end is seen too
        if what == CONTROL:
            return what, None if ran.returncode == 0 else ran.stdout[-400:] + ran.stderr[-400:]
        return what, f"{program} {argument} passes" if ran.returncode == 0 else None


def main():
    passed = failed = 0
    with ThreadPoolExecutor(2) as pool:
        full = "--all" in sys.argv
        some = [m for i, m in enumerate(MUTANTS) if full or m[0] == CONTROL or i % 3 == 0]
        for what, wrong in pool.map(judge, some + more(1 if full else SAMPLE)):
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
